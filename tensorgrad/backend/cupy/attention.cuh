// Shared by the attention kernels: which keys a query sees, tiles in shared memory, products on tensor cores.
//
// Every head of every sequence is independent: y = softmax(scale q k^T) v, with q (T, D), k and v (S, D). The T x S
// matrix of scores would be the largest array of the whole model, so it is never stored: one small tile at a time is
// computed in registers and used at once (Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691).
//
// A tensor core multiplies 16 x 16 by 16 x 8 and adds the product to 16 x 8 numbers in float32. A warp's 32 lanes hold
// the three matrices together, each lane a *fragment*. Of the 16 x 8 result, lane 4 i + j holds four numbers:
//
//     c[0], c[1]: row i,     columns 2 j and 2 j + 1
//     c[2], c[3]: row i + 8, the same columns
//
// and two adjacent results, narrowed to half precision, have exactly the layout of the left operand (16 x 16) of the
// next product. So scores go from the first product of attention to the second without leaving the registers: see
// `to_operand` below.
#pragma once

#include "mma.cuh"

constexpr float LOG2_E = 1.4426950408889634f;  // 2^x is one instruction, e^x is two: exponents are scaled by this

// --- causal visibility -----------------------------------------------------------------------------------------------

// The number of keys that a query may see: with causal attention, the last query sees all.
__device__ __forceinline__ int n_seen(int query, int n_query, int n_key, int causal) {
    return causal ? min(n_key, max(0, query + 1 + n_key - n_query)) : n_key;
}

// The first query that sees a key.
__device__ __forceinline__ int first_seeing(int key, int n_query, int n_key, int causal) {
    return causal ? max(0, key - (n_key - n_query)) : 0;
}

struct Assignment {
    int head, block;
};

// The work of a thread block: a head (of all sequences), and a block of its rows. HEADS_TOGETHER heads are processed at
// a time, so that their operands stay in the L2 cache: first block 0 of all these heads, then block 1 ...
constexpr int HEADS_TOGETHER = 64;

__device__ __forceinline__ Assignment assignment_of(int index, int n_heads, int n_blocks) {
    const int first = index / (HEADS_TOGETHER * n_blocks) * HEADS_TOGETHER;
    const int together = min(HEADS_TOGETHER, n_heads - first);
    const int rest = index - first * n_blocks;
    return {first + rest % together, rest / together};
}

// --- tiles in shared memory ------------------------------------------------------------------------------------------

// Rows of HEAD numbers (D rounded up to 16, zeros after D) are padded by 16 bytes: HEAD is even in units of 16 bytes,
// so the stride is odd, and 16 bytes of each of eight rows are in eight different groups of the 32 banks. ldmatrix
// reads eight rows at a time without bank conflicts.
template <int HEAD> constexpr int row_size = HEAD + 8;

// Start copying rows first ... first + ROWS - 1 of x (n, d) into a tile, 16 bytes at a time; zeros beyond n and d.
template <int ROWS, int HEAD, int THREADS, typename Number>
__device__ __forceinline__ void load_tile(Number* tile, const Number* x, long long stride, int first, int n, int d) {
    constexpr int PIECES = HEAD / 8;
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        const int row = i / PIECES, column = i % PIECES * 8;
        const bool inside = first + row < n && column < d;
        cp_async_16(tile + row * row_size<HEAD> + column, inside ? x + (first + row) * stride + column : x, inside);
    }
}

// Write a warp's M * 16 rows of results, each row times its factor, to rows first ... of y (n, d). They are first
// stored in the warp's rows of a tile, since a lane holds two adjacent numbers and memory is best written 16 bytes at a
// time.
template <int M, int HEAD, typename Number>
__device__ __forceinline__ void store_rows(
    Number* y, long long stride, int first, int n, int d, Number* tile, const float (&c)[M][HEAD / 8][4],
    const float (&factor)[M][2]
) {
    const int lane = threadIdx.x % WARP;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Number* pairs = tile + (m * 16 + half * 8 + lane / 4) * row_size<HEAD> + lane % 4 * 2;
            const float by = factor[m][half];
#pragma unroll
            for (int i = 0; i < HEAD / 8; ++i)
                *reinterpret_cast<Register*>(pairs + i * 8) =
                    pack<Number>(c[m][i][2 * half] * by, c[m][i][2 * half + 1] * by);
        }
    __syncwarp();
    constexpr int PIECES = HEAD / 8;
    for (int i = lane; i < M * 16 * PIECES; i += WARP) {
        const int row = i / PIECES, column = i % PIECES * 8;
        if (first + row < n && column < d)
            *reinterpret_cast<int4*>(y + (first + row) * stride + column) =
                *reinterpret_cast<const int4*>(tile + row * row_size<HEAD> + column);
    }
}

// --- products --------------------------------------------------------------------------------------------------------

// Two adjacent 16 x 8 results += a 16 x 16 left operand times 16 x 16 of the right one, as loaded by ldmatrix.
template <typename Number>
__device__ __forceinline__ void add_product(
    float (&c)[4], float (&next)[4], const Register (&a)[4], const Register (&b)[4]
) {
    const Register first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_m16n8k16<Number>(c, a, first, c);
    mma_m16n8k16<Number>(next, a, second, next);
}

// c (M * 16, N) += a b^T, with a and b (N, HEAD) in tiles: the scores of M * 16 queries with N keys. (Queries in
// registers would save a fifth of the reads, but there are not enough registers.)
template <int M, int N, int HEAD, typename Number>
__device__ __forceinline__ void add_product_nt(float (&c)[M][N / 8][4], const Number* a, const Number* b) {
    const int lane = threadIdx.x % WARP;
    const Number* corner_a = a + lane % 16 * row_size<HEAD> + lane / 16 * 8;
    const Number* corner_b = b + (lane / 16 * 8 + lane % 8) * row_size<HEAD> + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < HEAD / 16; ++k) {
        Register left[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) ldmatrix<4, false>(left[m], corner_a + m * 16 * row_size<HEAD> + k * 16);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            Register right[4];
            ldmatrix<4, false>(right, corner_b + n * 16 * row_size<HEAD> + k * 16);
#pragma unroll
            for (int m = 0; m < M; ++m) add_product<Number>(c[m][2 * n], c[m][2 * n + 1], left[m], right);
        }
    }
}

// Results of one product, narrowed, as the left operand of the next.
template <typename Number, int M, int N>
__device__ __forceinline__ void to_operand(Register (&a)[M][N / 16][4], const float (&c)[M][N / 8][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int k = 0; k < N / 16; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float (&four)[4] = c[m][2 * k + i / 2];
                a[m][k][i] = pack<Number>(four[i % 2 * 2], four[i % 2 * 2 + 1]);
            }
}

// c (M * 16, HEAD) += a b, with b (K, HEAD) a tile, whose 8 x 8 matrices ldmatrix transposes.
template <int M, int K, int HEAD, typename Number>
__device__ __forceinline__ void add_product_nn(
    float (&c)[M][HEAD / 8][4], const Register (&a)[M][K / 16][4], const Number* b
) {
    const int lane = threadIdx.x % WARP;
    const Number* corner = b + lane % 16 * row_size<HEAD> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < K / 16; ++k)
#pragma unroll
        for (int n = 0; n < HEAD / 16; ++n) {
            Register right[4];
            ldmatrix<4, true>(right, corner + k * 16 * row_size<HEAD> + n * 16);
#pragma unroll
            for (int m = 0; m < M; ++m) add_product<Number>(c[m][2 * n], c[m][2 * n + 1], a[m][k], right);
        }
}

// --- scores ----------------------------------------------------------------------------------------------------------

// 2^x in one instruction, to 2 parts in 2^23; results below 2^-126 become 0.
__device__ __forceinline__ float power_of_2(float x) {
#ifdef CUDA_EMU
    return std::exp2(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Scores (M * 16 queries, N keys) of keys that a query may not see become -inf. query, key: the first of each.
template <int M, int N>
__device__ __forceinline__ void hide(float (&s)[M][N / 8][4], int query, int key, int n_query, int n_key, int causal) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = query + m * 16 + half * 8 + lane / 4;
            const int seen = n_seen(row, n_query, n_key, causal) - key - lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < N / 8; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    if (n * 8 + i >= seen) s[m][n][2 * half + i] = -INFINITY;
        }
}
