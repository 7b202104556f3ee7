// Layer normalization (Ba, Kiros, Hinton 2016, arXiv:1607.06450) and RMS normalization (Zhang, Sennrich 2019,
// arXiv:1910.07467) of the rows of x (rows, n). T is the dtype of x, W that of weight and bias.
//
//   forward:   y = xhat weight + bias,  xhat = (x - mean) rstd,  rstd = 1 / sqrt(mean((x - mean)^2) + eps)
//   backward:  dx = rstd (g - mean(g) - xhat mean(g xhat)),  g = dy weight
//              dweight = sum of dy xhat over the rows,  dbias = sum of dy
//
// and for RMS the same without mean(x), mean(g) and bias. One warp per row, which is read from memory in the first
// pass, and from registers or the cache in the others. The gradients of weight and bias are sums over blocks of rows here and then
// over the blocks, in a fixed order (linear.cu): they are reproducible bit by bit. layer_norm_backward computes them
// together with dx, from the same reading of dy and x; the other kernels compute one of them.
#include "common.cuh"

using Real = Wide<T>;

constexpr int WARPS = 8;  // of a block

// Whether a lane keeps its part of a row in registers: this file was compiled for rows of COLUMNS numbers.
template <int N> constexpr bool KEPT = COLUMNS > 0 && N > 1;
template <int N> constexpr int STEPS = KEPT<N> ? COLUMNS / (WARP * N) : 1;

// Call f(step, i) for every N columns, from column i on, that this lane accesses.
template <int N, typename F> __device__ __forceinline__ void each(int n, F f) {
    const int first = threadIdx.x % WARP * N;
    if constexpr (KEPT<N>) {
#pragma unroll
        for (int step = 0; step < STEPS<N>; ++step) f(step, first + step * WARP * N);
    } else {
        for (int i = first; i < n; i += WARP * N) f(0, i);
    }
}

// A lane's part of a row, which may be null. If it is kept, all of its loads are on their way before the first arrives.
template <int N> struct Row {
    const T* row;
    Vector<T, N> kept[STEPS<N>];

    __device__ __forceinline__ explicit Row(const T* from) : row(from) {
        if constexpr (KEPT<N>)
            if (from != nullptr)
                each<N>(0, [&](int step, int i) { kept[step] = *reinterpret_cast<const Vector<T, N>*>(from + i); });
    }
    __device__ __forceinline__ void read(int step, int i, Real (&to)[N]) const {
        if constexpr (KEPT<N>)
            for (int j = 0; j < N; ++j) to[j] = widen(kept[step].at[j]);
        else load<N>(row + i, to);
    }
    __device__ __forceinline__ void keep(int step, const Real (&from)[N]) {
        if constexpr (KEPT<N>)
            for (int j = 0; j < N; ++j) kept[step].at[j] = narrow<T>(from[j]);
    }
};

// With a residual, x + residual is written to `sum` and normalized; without, both are null.
template <int N, bool CENTERED>
__device__ void forward(
    const T* x, const T* residual, T* sum, const W* weight, const W* bias, T* y, Real* mean, Real* rstd, int n, Real eps
) {
    Row<N> row(x), added(residual);
    Real part[N], other[N], total = 0, squares = 0;
    Wide<W> column[N];
    each<N>(n, [&](int step, int i) {
        row.read(step, i, part);
        if (residual != nullptr) {
            added.read(step, i, other);
            for (int j = 0; j < N; ++j) part[j] = widen(narrow<T>(part[j] + other[j]));  // rounded, as it is read below
            store<N>(sum + i, part);
            row.keep(step, part);
        }
        for (int j = 0; j < N; ++j) {
            total += part[j];
            squares += part[j] * part[j];
        }
    });
    if (residual != nullptr) row.row = sum;  // of which a lane reads only what it wrote
    Real middle = 0;
    if (CENTERED) {
        middle = warp_sum(total) / n;
        squares = 0;
        each<N>(n, [&](int step, int i) {
            row.read(step, i, part);
            for (int j = 0; j < N; ++j) squares += (part[j] - middle) * (part[j] - middle);
        });
    }
    const Real scale = 1 / sqrt(warp_sum(squares) / n + eps);
    if (threadIdx.x % WARP == 0) {
        if (CENTERED) *mean = middle;
        *rstd = scale;
    }
    each<N>(n, [&](int step, int i) {
        row.read(step, i, part);
        for (int j = 0; j < N; ++j) part[j] = (part[j] - middle) * scale;
        if (weight != nullptr) {
            load<N>(weight + i, column);
            for (int j = 0; j < N; ++j) part[j] *= Real(column[j]);
        }
        if (bias != nullptr) {
            load<N>(bias + i, column);
            for (int j = 0; j < N; ++j) part[j] += Real(column[j]);
        }
        store<N>(y + i, part);
    });
}

extern "C" __global__ void __launch_bounds__(256, 4) layer_norm(
    const T* __restrict__ x, const T* __restrict__ residual, T* sum, const W* __restrict__ weight,
    const W* __restrict__ bias, T* __restrict__ y, Real* mean, Real* rstd, long long rows, int n, Real eps
) {
    const long long row = (long long)blockIdx.x * WARPS + threadIdx.x / WARP, at = row * n;
    if (row >= rows) return;
    if (residual != nullptr) residual += at, sum += at;
    if (aligned(n * sizeof(T), x, residual, sum, weight, bias, y))
        forward<PER_16_BYTES<T>, true>(x + at, residual, sum, weight, bias, y + at, mean + row, rstd + row, n, eps);
    else
        forward<1, true>(x + at, residual, sum, weight, bias, y + at, mean + row, rstd + row, n, eps);
}

extern "C" __global__ void __launch_bounds__(256, 4) rms_norm(
    const T* __restrict__ x, const T* __restrict__ residual, T* sum, const W* __restrict__ weight, T* __restrict__ y,
    Real* rrms, long long rows, int n, Real eps
) {
    const long long row = (long long)blockIdx.x * WARPS + threadIdx.x / WARP, at = row * n;
    if (row >= rows) return;
    if (residual != nullptr) residual += at, sum += at;
    const W* no_bias = nullptr;
    Real* no_mean = nullptr;
    if (aligned(n * sizeof(T), x, residual, sum, weight, y))
        forward<PER_16_BYTES<T>, false>(x + at, residual, sum, weight, no_bias, y + at, no_mean, rrms + row, n, eps);
    else
        forward<1, false>(x + at, residual, sum, weight, no_bias, y + at, no_mean, rrms + row, n, eps);
}

// Where a warp's sum for column i is kept, of which a lane reads N at once: so that the lanes of a warp, which add to
// their first column together, then to their second ..., use 32 different banks of shared memory.
template <int N> __device__ __forceinline__ int slot(int i) {
    return i / (WARP * N) * (WARP * N) + i % N * WARP + i % (WARP * N) / N;
}

// `dsum`, if not null, is a further gradient of x + residual, which is added. With SUMS, dy xhat and dy are added to the
// warp's own sums for dweight and dbias: (2, width) in shared memory, of which every lane uses the columns it reads.
template <int N, bool CENTERED, bool SUMS = false>
__device__ void backward(
    const T* dy, const T* x, const W* weight, Real middle, Real scale, const T* dsum, T* dx, int n,
    Real* sums = nullptr, int width = 0
) {
    const Row<N> dy_row(dy), x_row(x), dsum_row(dsum);
    Real g[N], xhat[N], other[N], total = 0, along = 0;
    Wide<W> column[N];
    const auto read = [&](int step, int i) {
        dy_row.read(step, i, g);
        x_row.read(step, i, xhat);
        for (int j = 0; j < N; ++j) xhat[j] = (xhat[j] - middle) * scale;
    };
    const auto weigh = [&](int i) {
        if (weight == nullptr) return;
        load<N>(weight + i, column);
        for (int j = 0; j < N; ++j) g[j] *= Real(column[j]);
    };
    each<N>(n, [&](int step, int i) {
        read(step, i);
        weigh(i);
        for (int j = 0; j < N; ++j) {
            total += g[j];
            along += g[j] * xhat[j];
        }
    });
    const Real mean_g = CENTERED ? warp_sum(total) / n : Real(0);
    along = warp_sum(along) / n;
    each<N>(n, [&](int step, int i) {
        read(step, i);
        if constexpr (SUMS) {
            for (int j = 0; j < N; ++j) {
                sums[slot<N>(i) + j * WARP] += g[j] * xhat[j];
                sums[width + slot<N>(i) + j * WARP] += g[j];
            }
        }
        weigh(i);
        for (int j = 0; j < N; ++j) g[j] = scale * (g[j] - mean_g - xhat[j] * along);
        if (dsum != nullptr) {
            dsum_row.read(step, i, other);
            for (int j = 0; j < N; ++j) g[j] += other[j];
        }
        store<N>(dx + i, g);
    });
}

extern "C" __global__ void __launch_bounds__(256, 2) layer_norm_backward_x(
    const T* __restrict__ dy, const T* __restrict__ x, const W* __restrict__ weight, const Real* __restrict__ mean,
    const Real* __restrict__ rstd, const T* __restrict__ dsum, T* __restrict__ dx, long long rows, int n
) {
    const long long row = (long long)blockIdx.x * WARPS + threadIdx.x / WARP, at = row * n;
    if (row >= rows) return;
    if (dsum != nullptr) dsum += at;
    if (aligned(n * sizeof(T), dy, x, weight, dsum, dx))
        backward<PER_16_BYTES<T>, true>(dy + at, x + at, weight, mean[row], rstd[row], dsum, dx + at, n);
    else
        backward<1, true>(dy + at, x + at, weight, mean[row], rstd[row], dsum, dx + at, n);
}

// dx, and partial (blocks, 2, n): the sums of dy xhat and of dy over each block of rows. Dynamic shared memory: 2 width
// numbers for each warp, width being n rounded up to what a warp reads at once.
template <int N>
__device__ void backward_with_sums(
    const T* dy, const T* x, const W* weight, const Real* mean, const Real* rstd, const T* dsum, T* dx, Real* partial,
    Real* sums, long long first, long long last, int n, int width
) {
    const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP;
    for (int i = threadIdx.x; i < warps * 2 * width; i += blockDim.x) sums[i] = 0;
    __syncthreads();
    for (long long row = first + warp; row < last; row += warps) {
        const long long at = row * n;
        backward<N, true, true>(
            dy + at, x + at, weight, mean[row], rstd[row], dsum == nullptr ? dsum : dsum + at, dx + at, n,
            sums + warp * 2 * width, width
        );
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * n; i += blockDim.x) {
        const int at = i < n ? slot<N>(i) : width + slot<N>(i - n);
        Real total = 0;
        for (int w = 0; w < warps; ++w) total += sums[w * 2 * width + at];
        partial[i] = total;
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) layer_norm_backward(
    const T* __restrict__ dy, const T* __restrict__ x, const W* __restrict__ weight, const Real* __restrict__ mean,
    const Real* __restrict__ rstd, const T* __restrict__ dsum, T* __restrict__ dx, Real* __restrict__ partial,
    long long rows, int rows_per_block, int n, int width
) {
    DYNAMIC_SHARED(Real, sums);
    const long long first = (long long)blockIdx.x * rows_per_block;
    const long long last = first + rows_per_block < rows ? first + rows_per_block : rows;
    partial += (long long)blockIdx.x * 2 * n;
    if (aligned(n * sizeof(T), dy, x, weight, dsum, dx))
        backward_with_sums<PER_16_BYTES<T>>(dy, x, weight, mean, rstd, dsum, dx, partial, sums, first, last, n, width);
    else
        backward_with_sums<1>(dy, x, weight, mean, rstd, dsum, dx, partial, sums, first, last, n, width);
}

extern "C" __global__ void __launch_bounds__(256, 2) rms_norm_backward_x(
    const T* __restrict__ dy, const T* __restrict__ x, const W* __restrict__ weight, const Real* __restrict__ rrms,
    const T* __restrict__ dsum, T* __restrict__ dx, long long rows, int n
) {
    const long long row = (long long)blockIdx.x * WARPS + threadIdx.x / WARP, at = row * n;
    if (row >= rows) return;
    if (dsum != nullptr) dsum += at;
    if (aligned(n * sizeof(T), dy, x, weight, dsum, dx))
        backward<PER_16_BYTES<T>, false>(dy + at, x + at, weight, Real(0), rrms[row], dsum, dx + at, n);
    else
        backward<1, false>(dy + at, x + at, weight, Real(0), rrms[row], dsum, dx + at, n);
}

// The sums over one block of rows: N columns per lane, every eighth row per warp.
template <int N>
__device__ void weight_sums(
    const T* dy, const T* x, const Real* mean, const Real* rstd, Real* dweight, Real* shared, long long first,
    long long last, int n
) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = (blockIdx.x * WARP + lane) * N;
    Real total[N] = {}, g[N], part[N];
    for (long long row = first + warp; column < n && row < last; row += WARPS) {
        load<N>(dy + row * n + column, g);
        load<N>(x + row * n + column, part);
        const Real middle = mean == nullptr ? Real(0) : mean[row], scale = rstd[row];
        for (int j = 0; j < N; ++j) total[j] += g[j] * ((part[j] - middle) * scale);
    }
    for (int j = 0; j < N; ++j) shared[(warp * N + j) * WARP + lane] = total[j];
    __syncthreads();
    for (int j = warp; j < N && column < n; j += WARPS) {
        Real sum = 0;
        for (int w = 0; w < WARPS; ++w) sum += shared[(w * N + j) * WARP + lane];
        dweight[column + j] = sum;
    }
}

// partial (blocks, n): the sums of dy xhat over each block of rows; mean is null for RMS. `per_lane` columns are read
// at once: 16 bytes of them, or 1.
extern "C" __global__ void __launch_bounds__(256, 4) layer_norm_backward_weight(
    const T* __restrict__ dy, const T* __restrict__ x, const Real* __restrict__ mean, const Real* __restrict__ rstd,
    Real* __restrict__ partial, long long rows, int rows_per_block, int n, int per_lane
) {
    __shared__ Real shared[WARPS * PER_16_BYTES<T> * WARP];
    const long long first = (long long)blockIdx.y * rows_per_block;
    const long long last = first + rows_per_block < rows ? first + rows_per_block : rows;
    Real* dweight = partial + (long long)blockIdx.y * n;
    if (per_lane == 1) weight_sums<1>(dy, x, mean, rstd, dweight, shared, first, last, n);
    else weight_sums<PER_16_BYTES<T>>(dy, x, mean, rstd, dweight, shared, first, last, n);
}
