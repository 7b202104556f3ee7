// Shared by all kernels: half precision, accesses of 16 bytes, and sums and maxima over a warp or a block.
//
// The same files are compiled by NVRTC for the GPU and, with CUDA_EMU defined, by a C++ compiler for the tests on a CPU
// (tests/tensorgrad/backend/cupy/cuda_emulation). Code that only one of them compiles is in this header and in mma.cuh.
#pragma once

#ifdef CUDA_EMU
#include "cuda_emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define INFINITY __int_as_float(0x7f800000)  // NVRTC has no <math.h>

// Declare `name`, a pointer to the dynamic shared memory of the launch.
#define DYNAMIC_SHARED(type, name)                            \
    extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared)
#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// --- dtypes: arithmetic is in at least float32 --------------------------------------------------------------

template <typename Number> struct WideOf { using type = float; };
template <> struct WideOf<double> { using type = double; };
template <typename Number> using Wide = typename WideOf<Number>::type;

__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }

template <typename Number> __device__ __forceinline__ Number narrow(Wide<Number> x);
template <> __device__ __forceinline__ __half narrow<__half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ double narrow<double>(double x) { return x; }

// Half precision has at most 11 bits: the exponential and the division of the hardware are accurate enough.
template <typename Number> __device__ __forceinline__ Wide<Number> exponential(Wide<Number> x) {
    if constexpr (sizeof(Number) == 2) return __expf(x);
    else return exp(x);
}

template <typename Number> __device__ __forceinline__ Wide<Number> divide(Wide<Number> a, Wide<Number> b) {
    if constexpr (sizeof(Number) == 2) return __fdividef(a, b);
    else return a / b;
}

// --- memory: N numbers at once; addresses are aligned to their size, but at most to 16 bytes ------------

template <typename Number, int N> struct alignas(sizeof(Number) * N > 16 ? 16 : sizeof(Number) * N) Vector {
    Number at[N];
};

// The numbers in 16 bytes, the widest memory access.
template <typename Number> constexpr int PER_16_BYTES = 16 / sizeof(Number);

// Whether the arrays, which may be null, and their rows of n_bytes are aligned to 16 bytes.
template <typename... Pointers> __device__ __forceinline__ bool aligned(long long n_bytes, Pointers... arrays) {
    return (n_bytes | ... | reinterpret_cast<long long>(arrays)) % 16 == 0;
}

template <int N, typename Number>
__device__ __forceinline__ void load(const Number* from, Wide<Number> (&to)[N]) {
    const Vector<Number, N> whole = *reinterpret_cast<const Vector<Number, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = widen(whole.at[i]);
}

template <int N, typename Number>
__device__ __forceinline__ void store(Number* to, const Wide<Number> (&from)[N]) {
    Vector<Number, N> whole;
#pragma unroll
    for (int i = 0; i < N; ++i) whole.at[i] = narrow<Number>(from[i]);
    *reinterpret_cast<Vector<Number, N>*>(to) = whole;
}

// --- a warp: every lane gets the result ----------------------------------------------------------------------------

template <typename Number> __device__ __forceinline__ Number warp_sum(Number x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

template <typename Number> __device__ __forceinline__ Number larger(Number a, Number b) { return a > b ? a : b; }

template <typename Number> __device__ __forceinline__ Number warp_max(Number x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// --- a block of whole warps, `partial` one number a warp: every thread gets the result ------------------------------

template <typename Number> __device__ __forceinline__ Number block_sum(Number x, Number* partial) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    __syncthreads();  // earlier results have been read
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? partial[lane] : Number(0));
}

template <typename Number> __device__ __forceinline__ Number block_max(Number x, Number* partial) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? partial[lane] : partial[0]);
}

// --- a row, by the threads of a block --------------------------------------------------------------------------------

// Call `many(i)` for all aligned 16 bytes of a row of n elements, and `few(i)` for each element before and after them:
// rows of an odd number of elements are not aligned. All arrays that are accessed at i must have the misalignment of
// `row`.
template <typename Number, typename Few, typename Many>
__device__ __forceinline__ void over_row(const Number* row, int n, Few few, Many many) {
    constexpr int N = PER_16_BYTES<Number>;
    const int past = static_cast<int>(reinterpret_cast<unsigned long long>(row) / sizeof(Number) % N);
    const int start = past == 0 ? 0 : (N - past < n ? N - past : n), end = start + (n - start) / N * N;
    for (int i = threadIdx.x; i < start; i += blockDim.x) few(i);
    for (int i = start + threadIdx.x * N; i < end; i += blockDim.x * N) many(i);
    for (int i = end + threadIdx.x; i < n; i += blockDim.x) few(i);
}
