// What the emulation is tested with: kernels that are right, and kernels with one mistake each.
#include "mma.cuh"

extern "C" __global__ void sum_and_max(const float* x, float* sums, float* tops) {
    __shared__ float partial[WARP];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    sums[i] = block_sum(x[i], partial);
    tops[i] = block_max(x[i], partial);
}

// y = a b + c for a (16, 16), c (16, 8), and b (16, 8) if transposed, else its transpose (8, 16).
extern "C" __global__ void product(const T* a, const T* b, const float* c, float* y, int transposed) {
    __shared__ __align__(16) T a_tile[16 * 16], b_tile[16 * 8];
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    cp_async_16(a_tile + 8 * lane, a + 8 * lane);
    cp_async_commit();
    cp_async_16(b_tile + 8 * (lane % 16), b + 8 * (lane % 16));
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    Register a_part[4], b_part[2];
    ldmatrix<4, false>(a_part, a_tile + (lane % 16) * 16 + lane / 16 * 8);
    if (transposed) ldmatrix<2, true>(b_part, b_tile + (lane % 16) * 8);
    else ldmatrix<2, false>(b_part, b_tile + (lane % 8) * 16 + lane % 16 / 8 * 8);
    float sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    mma_m16n8k16<T>(sum, a_part, b_part, sum);
    for (int i = 0; i < 4; ++i) y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

extern "C" __global__ void round_all(const float* x, T* y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = narrow<T>(x[i]);
}

extern "C" __global__ void correct(const float* x, float* y) {
    DYNAMIC_SHARED(float, buffer);
    buffer[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = buffer[63 - threadIdx.x];
}

extern "C" __global__ void reads_too_early(const float* x, float* y) {
    DYNAMIC_SHARED(float, buffer);
    buffer[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = buffer[63 - threadIdx.x];
}

extern "C" __global__ void reads_what_nobody_wrote(const float* x, float* y) {
    __shared__ float buffer[64];
    if (threadIdx.x < 60) buffer[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = buffer[63 - threadIdx.x];
}

extern "C" __global__ void forgets_to_wait(const float* x, float* y) {
    DYNAMIC_SHARED(float, buffer);
    if (threadIdx.x < 16) cp_async_16(buffer + 4 * threadIdx.x, x + 4 * threadIdx.x);
    cp_async_commit();
    cp_async_wait<1>();  // all but one group
    __syncthreads();
    y[threadIdx.x] = buffer[threadIdx.x];
}

extern "C" __global__ void leaves_before_the_barrier(const float* x, float* y) {
    if (threadIdx.x >= 32) return;
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void shuffles_in_a_branch(const float* x, float* y) {
    if (threadIdx.x % 2) y[threadIdx.x] = warp_sum(x[threadIdx.x]);
}

extern "C" __global__ void writes_outside(const float* x, float* y) { y[threadIdx.x + 1] = x[threadIdx.x]; }

extern "C" __global__ void reads_outside(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }

extern "C" __global__ void writes_outside_of_shared(const float* x, float* y) {
    DYNAMIC_SHARED(float, buffer);
    buffer[threadIdx.x + 1] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = buffer[threadIdx.x + 1];
}

extern "C" __global__ void wants_alignment(const float* x, float* y) {
    DYNAMIC_SHARED(float, buffer);
    buffer[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    Register part[2];
    ldmatrix<2, false>(part, buffer + 1);
    y[threadIdx.x] = __uint_as_float(part[0]);
}
