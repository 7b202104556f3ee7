// The sums of the columns of x (rows, n), for the gradient of a bias: sums over blocks of rows in one launch, and the
// sums of those in a second launch of the same kernel. The order of the additions depends only on the shape, so results
// are reproducible bit by bit. T is the dtype of x, O that of the sums.
#include "common.cuh"

using Real = Wide<T>;

constexpr int WARPS = 8;

// N columns per lane, every eighth row per warp.
template <int N>
__device__ void column_sums(const T* x, O* sums, Real* shared, long long first, long long last, int n) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = (blockIdx.x * WARP + lane) * N;
    Real total[N] = {}, part[N];
    for (long long row = first + warp; column < n && row < last; row += WARPS) {
        load<N>(x + row * n + column, part);
        for (int j = 0; j < N; ++j) total[j] += part[j];
    }
    for (int j = 0; j < N; ++j) shared[(warp * N + j) * WARP + lane] = total[j];
    __syncthreads();
    for (int j = warp; j < N && column < n; j += WARPS) {
        Real sum = 0;
        for (int w = 0; w < WARPS; ++w) sum += shared[(w * N + j) * WARP + lane];
        sums[column + j] = narrow<O>(sum);
    }
}

// sums (blocks, n). `per_lane` columns are read at once: 16 bytes of them, or 1.
extern "C" __global__ void __launch_bounds__(256) column_sum(
    const T* __restrict__ x, O* __restrict__ sums, long long rows, int rows_per_block, int n, int per_lane
) {
    __shared__ Real shared[WARPS * PER_16_BYTES<T> * WARP];
    const long long first = (long long)blockIdx.y * rows_per_block;
    const long long last = first + rows_per_block < rows ? first + rows_per_block : rows;
    O* own = sums + (long long)blockIdx.y * n;
    if (per_lane == 1) column_sums<1>(x, own, shared, first, last, n);
    else column_sums<PER_16_BYTES<T>>(x, own, shared, first, last, n);
}
