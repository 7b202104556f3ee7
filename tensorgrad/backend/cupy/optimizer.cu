// The update of all parameters, the norm of all gradients, and their scaling: one launch for any number of arrays.
//
//   AdamW (Loshchilov, Hutter 2019, arXiv:1711.05101), in step t:
//     m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
//     w = (1 - lr decay) w - lr mhat / (sqrt(vhat) + eps),  mhat = m / (1 - beta1^t),  vhat = v / (1 - beta2^t)
//
// Kernels get a table of addresses (arrays, addresses per array), the sizes of the arrays, and a list of chunks (array,
// number of the chunk), one per block. Numbers that change from step to step may be in memory, for CUDA graphs that
// replay a launch. The norm is summed over each thread's elements, each block's threads and the blocks, always in that
// order, so it is reproducible bit by bit. T is the dtype of parameters, G that of gradients; moments and masters are
// Wide<T>.
#include "common.cuh"

using Real = Wide<T>;

constexpr int CHUNK = 16384;  // elements: CHUNK of optimizer.py
constexpr int N = 4;          // elements at a time: 16 bytes of float32

template <typename Number> __device__ __forceinline__ Number* array_at(unsigned long long address) {
    return reinterpret_cast<Number*>(address);
}

// many(i) for every N elements of a chunk, few(i) for each element that is left over.
template <typename Many, typename Few> __device__ __forceinline__ void over_chunk(bool wide, long long first, long long last, Many many, Few few) {
    const long long whole = wide ? first + (last - first) / N * N : first;
    for (long long i = first + threadIdx.x * N; i < whole; i += blockDim.x * N) many(i);
    for (long long i = whole + threadIdx.x; i < last; i += blockDim.x) few(i);
}

struct Numbers {
    Real beta1, beta2, keep, rate, correction, eps, scale;
};

template <int COUNT>
__device__ __forceinline__ void update(T* p, const G* g, Real* m, Real* v, Real* master, long long i, const Numbers& k) {
    Real weight[COUNT], first[COUNT], second[COUNT];
    Wide<G> gradient[COUNT];
    load<COUNT>(g + i, gradient);
    load<COUNT>(m + i, first);
    load<COUNT>(v + i, second);
    if (master != nullptr) load<COUNT>(master + i, weight);
    else load<COUNT>(p + i, weight);
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        const Real slope = Real(gradient[j]) * k.scale;
        first[j] = k.beta1 * first[j] + (1 - k.beta1) * slope;
        second[j] = k.beta2 * second[j] + (1 - k.beta2) * (slope * slope);
        weight[j] = k.keep * weight[j] - k.rate * first[j] / (k.correction * sqrt(second[j]) + k.eps);
    }
    store<COUNT>(m + i, first);
    store<COUNT>(v + i, second);
    if (master != nullptr) store<COUNT>(master + i, weight);
    store<COUNT>(p + i, weight);
}

// table (arrays, 5): addresses of parameter, gradient, moments, and master, which is 0 if there is none. lr and step
// are read from memory if lr_at and step_at are given, and so is scale, by which gradients are multiplied; *skip skips
// the update.
extern "C" __global__ void __launch_bounds__(256) adamw(
    const unsigned long long* __restrict__ table, const long long* __restrict__ sizes, const int* __restrict__ chunks,
    double lr, double beta1, double beta2, double eps, double decay, long long step, const double* lr_at,
    const long long* step_at, const bool* skip, const double* scale_at, double scale
) {
    if (skip != nullptr && *skip) return;
    __shared__ Numbers shared;
    if (threadIdx.x == 0) {
        const double rate = lr_at == nullptr ? lr : *lr_at, t = step_at == nullptr ? step : *step_at;
        shared.beta1 = beta1, shared.beta2 = beta2, shared.eps = eps;
        shared.keep = 1 - rate * decay;
        shared.rate = rate / (1 - pow(beta1, t));
        shared.correction = 1 / sqrt(1 - pow(beta2, t));
        shared.scale = scale_at == nullptr ? scale : *scale_at;
    }
    __syncthreads();
    const Numbers k = shared;
    const int array = chunks[2 * blockIdx.x];
    const long long first = (long long)chunks[2 * blockIdx.x + 1] * CHUNK;
    const long long last = first + CHUNK < sizes[array] ? first + CHUNK : sizes[array];
    table += 5 * array;
    T* p = array_at<T>(table[0]);
    const G* g = array_at<G>(table[1]);
    Real *m = array_at<Real>(table[2]), *v = array_at<Real>(table[3]), *master = array_at<Real>(table[4]);
    over_chunk(
        aligned(0, p, g, m, v, master), first, last,
        [&](long long i) { update<N>(p, g, m, v, master, i, k); },
        [&](long long i) { update<1>(p, g, m, v, master, i, k); }
    );
}

// partial (chunks): the sum of the squares of each chunk of the arrays of G at table (arrays).
extern "C" __global__ void __launch_bounds__(256) sum_squares(
    const unsigned long long* __restrict__ table, const long long* __restrict__ sizes, const int* __restrict__ chunks,
    double* __restrict__ partial
) {
    __shared__ double sums[WARP];
    const int array = chunks[2 * blockIdx.x];
    const long long first = (long long)chunks[2 * blockIdx.x + 1] * CHUNK;
    const long long last = first + CHUNK < sizes[array] ? first + CHUNK : sizes[array];
    const G* x = array_at<const G>(table[array]);
    Wide<G> part[N];
    double total = 0;
    over_chunk(
        aligned(0, x), first, last,
        [&](long long i) {
            load<N>(x + i, part);
            for (int j = 0; j < N; ++j) total += (double)part[j] * part[j];
        },
        [&](long long i) {
            part[0] = widen(x[i]);
            total += (double)part[0] * part[0];
        }
    );
    const double sum = block_sum(total, sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// norm: the root of the sum of all partial sums; factor: scales it down to max_norm, or 1 if it is not larger or
// is not finite. One block.
extern "C" __global__ void __launch_bounds__(256) norm_and_factor(
    const double* __restrict__ partial, int n, double max_norm, double* norm, double* factor
) {
    __shared__ double sums[WARP];
    double total = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += partial[i];
    total = sqrt(block_sum(total, sums));
    if (threadIdx.x > 0) return;
    *norm = total;
    *factor = total > max_norm && total < INFINITY ? max_norm / (total + 1e-6) : 1;  // PyTorch's guard
}

// Arrays of G times *factor, in place; does nothing if the factor is 1.
extern "C" __global__ void __launch_bounds__(256) scale(
    const unsigned long long* __restrict__ table, const long long* __restrict__ sizes, const int* __restrict__ chunks,
    const double* __restrict__ factor
) {
    const Wide<G> by = *factor;
    if (by == 1) return;
    const int array = chunks[2 * blockIdx.x];
    const long long first = (long long)chunks[2 * blockIdx.x + 1] * CHUNK;
    const long long last = first + CHUNK < sizes[array] ? first + CHUNK : sizes[array];
    G* x = array_at<G>(table[array]);
    Wide<G> part[N];
    over_chunk(
        aligned(0, x), first, last,
        [&](long long i) {
            load<N>(x + i, part);
            for (int j = 0; j < N; ++j) part[j] *= by;
            store<N>(x + i, part);
        },
        [&](long long i) { x[i] = narrow<G>(widen(x[i]) * by); }
    );
}
