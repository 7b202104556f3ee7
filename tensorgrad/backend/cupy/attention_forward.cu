// Attention, forward, on tensor cores (see attention.cuh): FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//
// A thread block computes ROWS queries of one head, each of its four warps a quarter of them, and loops over the keys
// that they see, KEYS at a time. While one tile of keys and values is used, the next is copied from memory to the other
// half of a double buffer. Every query has three running values, as in Milakov and Gimelshein 2018 (arXiv:1805.02867),
// where s are the scores of a tile:
//
//     top' = max(top, max s)
//     sum' = sum 2^(top - top') + the sum of 2^(s - top')
//     y'   = y   2^(top - top') + 2^(s - top') v
//
// At the end y / sum is the result, and top + log2(sum), converted to base e, is the row's logsumexp, from which
// backward recomputes the weights. Scores and sums are in float32; 2^(s - top') is narrowed to half precision for its
// product with v.
#include "attention_dropout.cuh"
#include "attention.cuh"

constexpr int WARPS = 4, THREADS = WARP * WARPS;
constexpr int M = HEAD > 96 ? 1 : 2, ROWS = 16 * M * WARPS;  // 16 M queries per warp share the tiles that it reads
constexpr int KEYS = HEAD <= 64 && !DROPOUT ? 64 : 32;       // as many scores as fit into registers
constexpr int BLOCKS = M == 1 ? 3 : 2;  // minimum on a multiprocessor at once: limits the registers of a thread

// --- one tile, by one warp -------------------------------------------------------------------------------------------

// One step of the recurrences above: s becomes 2^(s - top'), and y and sum are rescaled. A row's scores are in four
// lanes; each keeps its own part of `sum`.
__device__ __forceinline__ void softmax_step(
    float (&s)[M][KEYS / 8][4], float (&y)[M][HEAD / 8][4], float (&top)[M][2], float (&sum)[M][2], float scale
) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float highest = top[m][half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
                highest = fmaxf(highest, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 2));
            const float shift = highest == -INFINITY ? 0 : highest * scale;  // if no key was seen, avoid inf - inf
            const float shrink = power_of_2(top[m][half] * scale - shift);
            top[m][half] = highest;
            sum[m][half] *= shrink;
#pragma unroll
            for (int n = 0; n < HEAD / 8; ++n) y[m][n][2 * half] *= shrink, y[m][n][2 * half + 1] *= shrink;
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    s[m][n][i] = power_of_2(fmaf(s[m][n][i], scale, -shift));
                    sum[m][half] += s[m][n][i];
                }
        }
}

// Weights that dropout drops become 0; they still count in the sum of the row.
__device__ __forceinline__ void drop(
    float (&s)[M][KEYS / 8][4], const WeightDropout& dropout, unsigned long long corner
) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
            const unsigned long long element = corner + (unsigned long long)(m * 16) * dropout.n_key + n * 8;
            const unsigned keep = dropout.keep_queries_by_keys(element);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (!(keep >> i & 1)) s[m][n][i] = 0;
        }
}

// --- the kernel ------------------------------------------------------------------------------------------------------

// q, y (B, H, T, D) and key, v (B, G, S, D), each with its strides in numbers; D a multiple of 8, all rows aligned to
// 16 bytes -> y, and lse (B, H, T). grid: B * H * blocks of ROWS queries. scale > 0. threshold ... step_offset:
// dropout.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_forward(
    const T* q, long long q_stride_b, long long q_stride_h, long long q_stride_t,
    const T* key, long long key_stride_b, long long key_stride_h, long long key_stride_t,
    const T* v, long long v_stride_b, long long v_stride_h, long long v_stride_t,
    T* y, long long y_stride_b, long long y_stride_h, long long y_stride_t,
    float* lse, int n_batch, int n_head, int n_group, int n_query, int n_key, int d, int causal, float scale,
    unsigned threshold, float kept_scale, unsigned long long seed, unsigned stream, unsigned step,
    const unsigned* step_offset
) {
    DYNAMIC_SHARED(T, memory);
    constexpr int TILE = KEYS * row_size<HEAD>;
    T* q_tile = memory;
    T* key_tiles = q_tile + ROWS * row_size<HEAD>;
    T* v_tiles = key_tiles + 2 * TILE;

    const int n_blocks = (n_query + ROWS - 1) / ROWS;
    Assignment work = assignment_of(blockIdx.x, n_batch * n_head, n_blocks);
    work.block = n_blocks - 1 - work.block;  // the last queries see the most keys: they start first
    const int b = work.head / n_head, h = work.head % n_head, g = h / (n_head / n_group);
    q += b * q_stride_b + h * q_stride_h;
    key += b * key_stride_b + g * key_stride_h;
    v += b * v_stride_b + g * v_stride_h;
    y += b * y_stride_b + h * y_stride_h;
    const int block_query = work.block * ROWS, last_query = min(block_query + ROWS, n_query) - 1;
    const int n_tiles = (n_seen(last_query, n_query, n_key, causal) + KEYS - 1) / KEYS;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int query = block_query + warp * 16 * M;  // the warp's first
    const int warp_sees = n_seen(query + 16 * M - 1, n_query, n_key, causal);
    T* q_rows = q_tile + warp * 16 * M * row_size<HEAD>;

    const WeightDropout dropout{threshold, kept_scale, seed, stream, offset_step(step, step_offset), n_key};

    load_tile<ROWS, HEAD, THREADS>(q_tile, q, q_stride_t, block_query, n_query, d);
    load_tile<KEYS, HEAD, THREADS>(key_tiles, key, key_stride_t, 0, n_key, d);
    load_tile<KEYS, HEAD, THREADS>(v_tiles, v, v_stride_t, 0, n_key, d);
    cp_async_commit();

    float result[M][HEAD / 8][4] = {}, top[M][2], sum[M][2] = {};
#pragma unroll
    for (int m = 0; m < M; ++m) top[m][0] = top[m][1] = -INFINITY;
    for (int tile = 0; tile < n_tiles; ++tile) {
        cp_async_wait<0>();
        __syncthreads();  // this tile is loaded, and all warps are done with the one before, which the next overwrites
        const int first = tile * KEYS, now = tile % 2 * TILE, next = TILE - now;
        if (tile + 1 < n_tiles) {
            load_tile<KEYS, HEAD, THREADS>(key_tiles + next, key, key_stride_t, first + KEYS, n_key, d);
            load_tile<KEYS, HEAD, THREADS>(v_tiles + next, v, v_stride_t, first + KEYS, n_key, d);
        }
        cp_async_commit();

        if (first >= warp_sees) continue;

        float s[M][KEYS / 8][4] = {};
        add_product_nt<M, KEYS, HEAD>(s, q_rows, key_tiles + now);
        if (first + KEYS > n_seen(query, n_query, n_key, causal))
            hide<M, KEYS>(s, query, first, n_query, n_key, causal);
        softmax_step(s, result, top, sum, scale * LOG2_E);
        if (DROPOUT) drop(s, dropout, ((unsigned long long)work.head * n_query + query) * n_key + first);
        Register weights[M][KEYS / 16][4];
        to_operand<T, M, KEYS>(weights, s);
        add_product_nn<M, KEYS, HEAD>(result, weights, v_tiles + now);
    }
    cp_async_wait<0>();
    __syncthreads();  // without any tile, the queries may still be loading

    float factor[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float total = sum[m][half];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            factor[m][half] = total > 0 ? (DROPOUT ? kept_scale : 1.0f) / total : 0;  // no key seen: zeros
            const int row = query + m * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0 && row < n_query)
                lse[(long long)work.head * n_query + row] = total > 0 ? top[m][half] * scale + logf(total) : -INFINITY;
        }
    store_rows<M, HEAD>(y, y_stride_t, query, n_query, d, q_rows, result, factor);
}
