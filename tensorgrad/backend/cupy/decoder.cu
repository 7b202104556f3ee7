// A step of generation for a few rows: one token each, whose number and position are in memory.
//
// Every weight is read once, which takes longer than all arithmetic. A warp multiplies one row of a weight with all
// rows of x. It loads the first part of the weight before x is ready, since the norm of x, which every block computes
// for itself, has to wait for memory too. What follows a product, and the sum with the residual stream, is computed
// while the result is in registers.
#include "common.cuh"

// Macros: ROWS of x. NORM of x: 0 none, 1 layer norm, 2 RMS norm. ACTIVATION: 0 none, 1 GELU by tanh, 2 GELU, 3 SwiGLU.
constexpr int WARPS = 8, THREADS = WARP * WARPS, N = PER_16_BYTES<T>;
constexpr int PREFETCH = 4;  // pieces of 16 bytes that a lane loads before it uses the first of them
using Piece = Vector<T, N>;

// y (B, C) = wte[token] + wpe[position]; wpe may be null. grid: B. A token of -1, after logits that were not finite,
// reads row 0.
extern "C" __global__ void __launch_bounds__(THREADS) embed_token(
    const T* wte, const T* wpe, const long long* token, const long long* position, T* y, int n
) {
    const int row = blockIdx.x;
    const T* own = wte + (token[row] < 0 ? 0 : token[row]) * n;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const float x = widen(own[i]);
        y[(long long)row * n + i] = narrow<T>(wpe == nullptr ? x : x + widen(wpe[position[row] * n + i]));
    }
}

// The pieces of a row of a weight (k), from the piece `first` of every lane.
__device__ __forceinline__ void load_pieces(const T* weight, int k, int first, Piece (&pieces)[PREFETCH]) {
#pragma unroll
    for (int i = 0; i < PREFETCH; ++i) {
        const int at = ((first + i) * WARP + int(threadIdx.x % WARP)) * N;
        if (at < k) pieces[i] = *reinterpret_cast<const Piece*>(weight + at);
    }
}

// The products of a row of a weight, of which the first pieces have been loaded, with all rows of x (ROWS, k).
__device__ __forceinline__ void multiply(
    const T* weight, const T* x, int k, Piece (&pieces)[PREFETCH], float (&sums)[ROWS]
) {
#pragma unroll
    for (int row = 0; row < ROWS; ++row) sums[row] = 0;
    for (int first = 0; first * WARP * N < k; first += PREFETCH) {
        if (first > 0) load_pieces(weight, k, first, pieces);
#pragma unroll
        for (int i = 0; i < PREFETCH; ++i) {
            const int at = ((first + i) * WARP + int(threadIdx.x % WARP)) * N;
            if (at >= k) continue;
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                float part[N];
                load<N>(x + row * k + at, part);
#pragma unroll
                for (int j = 0; j < N; ++j) sums[row] = fmaf(widen(pieces[i].at[j]), part[j], sums[row]);
            }
        }
    }
#pragma unroll
    for (int row = 0; row < ROWS; ++row) sums[row] = warp_sum(sums[row]);
}

// Copy a row of x (k) to shared memory, and normalize it there. A warp; a lane reads only what it wrote.
__device__ __forceinline__ void normalize(const T* x, const T* weight, const T* bias, T* y, int k, float eps) {
    const int lane = threadIdx.x % WARP;
    float part[N], column[N], middle = 0, squares = 0;
    for (int i = lane * N; i < k; i += WARP * N) {
        load<N>(x + i, part);
        store<N>(y + i, part);
#pragma unroll
        for (int j = 0; j < N; ++j) middle += part[j];
    }
    middle = NORM == 1 ? warp_sum(middle) / k : 0;
    for (int i = lane * N; i < k; i += WARP * N) {
        load<N>(y + i, part);
#pragma unroll
        for (int j = 0; j < N; ++j) squares += (part[j] - middle) * (part[j] - middle);
    }
    const float scale = 1 / sqrtf(warp_sum(squares) / k + eps);
    for (int i = lane * N; i < k; i += WARP * N) {
        load<N>(y + i, part);
        load<N>(weight + i, column);
#pragma unroll
        for (int j = 0; j < N; ++j) part[j] = (part[j] - middle) * scale * column[j];
        if (bias != nullptr) {
            load<N>(bias + i, column);
#pragma unroll
            for (int j = 0; j < N; ++j) part[j] += column[j];
        }
        store<N>(y + i, part);
    }
}

__device__ __forceinline__ float activate(float x, float other) {
    if (ACTIVATION == 1) return x / (1 + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    if (ACTIVATION == 2) return 0.5f * x * (1 + erff(x * 0.7071067811865476f));
    if (ACTIVATION == 3) return x / (1 + expf(-x)) * other;
    return x;
}

// y (ROWS, n_0 + n_1 + n_2) = activation(norm(x) weight^T + bias) + residual, of x (ROWS, k) and the weights (n_i, k)
// one below the other. For SwiGLU weight_0 is the gate, weight_1 the other factor, and y (ROWS, n_0). norm_weight,
// norm_bias, bias and residual may be null. Shared memory: x, (ROWS, k).
extern "C" __global__ void __launch_bounds__(THREADS, 3) linear_rows(
    const T* x, const T* norm_weight, const T* norm_bias, const T* weight_0, const T* weight_1, const T* weight_2,
    const T* bias, const T* residual, T* y, int k, int n_0, int n_1, int n_2, float eps
) {
    DYNAMIC_SHARED(T, rows);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, step = gridDim.x * WARPS;
    const int n = ACTIVATION == 3 ? n_0 : n_0 + n_1 + n_2;
    const auto weight = [&](int i) {
        if (i < n_0) return weight_0 + (long long)i * k;
        return i < n_0 + n_1 ? weight_1 + (long long)(i - n_0) * k : weight_2 + (long long)(i - n_0 - n_1) * k;
    };
    int i = blockIdx.x * WARPS + warp;
    Piece pieces[PREFETCH];
    if (i < n) load_pieces(weight(i), k, 0, pieces);
    if (NORM > 0) {
        for (int row = warp; row < ROWS; row += WARPS)
            normalize(x + row * k, norm_weight, norm_bias, rows + row * k, k, eps);
    } else {
        for (int at = threadIdx.x * N; at < ROWS * k; at += THREADS * N)
            *reinterpret_cast<Piece*>(rows + at) = *reinterpret_cast<const Piece*>(x + at);
    }
    __syncthreads();
    for (; i < n; i += step) {
        float sums[ROWS], others[ROWS] = {};
        multiply(weight(i), rows, k, pieces, sums);
        if (ACTIVATION == 3) {
            const T* other = weight_1 + (long long)i * k;
            load_pieces(other, k, 0, pieces);
            multiply(other, rows, k, pieces, others);
        }
        if (i + step < n) load_pieces(weight(i + step), k, 0, pieces);
        const float shift = bias == nullptr ? 0 : widen(bias[i]);
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            if (lane != row) continue;
            const long long at = (long long)row * n + i;
            const float value = activate(sums[row] + shift, others[row]);
            y[at] = narrow<T>(residual == nullptr ? value : value + widen(residual[at]));
        }
    }
}
