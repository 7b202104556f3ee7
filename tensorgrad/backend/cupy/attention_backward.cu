// Attention, backward, on tensor cores (see attention.cuh), in two kernels.
//
// With p the weights, recomputed from the scores and each row's logsumexp, and delta = the sum of dy y over a row,
//
//     dv   = p^T dy
//     ds   = p (dy v^T - delta)              the gradient of scale q k^T, from that of the softmax
//     dq   = scale ds k
//     dkey = scale ds^T q
//
// dq is a sum over keys, dv and dkey are sums over queries. FlashAttention-2 computes ds once and adds its part of dq
// to memory with atomics, in a random order of thread blocks. Here a single block computes every sum, so that results
// are reproducible bit by bit: attention_backward_query has blocks of queries and loops over the keys,
// attention_backward_key has blocks of keys and loops over the queries. This costs seven products instead of five.
//
// In the second kernel a warp's rows are keys: it computes p^T and ds^T, the left operands of the next products. So in
// both kernels nothing of size T x S is stored, not even in shared memory.
#include "attention_dropout.cuh"
#include "attention.cuh"

// --- dq, and delta ---------------------------------------------------------------------------------------------------

constexpr int WARPS = 4, THREADS = WARP * WARPS;
constexpr int Q_M = HEAD > 96 ? 1 : 2, Q_ROWS = 16 * Q_M * WARPS;  // 16 Q_M queries per warp
constexpr int Q_KEYS = 32;

// The rows of a warp: delta, and shift, their logsumexp in base 2, which is subtracted from their scores. For a row
// that sees no key, or does not exist, shift is +inf, so that all its weights are 0.
struct Rows {
    float delta[Q_M][2], shift[Q_M][2];
};

__device__ __forceinline__ Rows read_rows(
    const T* dy_rows, const T* y, long long stride, const float* lse, int query, int n_query, int d
) {
    Rows rows;
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < Q_M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = m * 16 + half * 8 + lane / 4;
            const bool inside = query + row < n_query;
            float sum = 0;
            for (int column = lane % 4 * 8; inside && column < d; column += 32) {
                float a[8], b[8];
                load<8>(dy_rows + row * row_size<HEAD> + column, a);
                load<8>(y + (query + row) * stride + column, b);
#pragma unroll
                for (int i = 0; i < 8; ++i) sum += a[i] * b[i];
            }
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            rows.delta[m][half] = sum;
            const float found = inside ? lse[query + row] : -INFINITY;
            rows.shift[m][half] = found == -INFINITY ? INFINITY : found * LOG2_E;
        }
    return rows;
}

// s, the scores, become ds. dp is dy v^T; corner: the element of the first weight, for dropout.
__device__ __forceinline__ void score_gradients(
    float (&s)[Q_M][Q_KEYS / 8][4], const float (&dp)[Q_M][Q_KEYS / 8][4], const Rows& rows, float scale,
    const WeightDropout& dropout, unsigned long long corner
) {
#pragma unroll
    for (int m = 0; m < Q_M; ++m)
#pragma unroll
        for (int n = 0; n < Q_KEYS / 8; ++n) {
            const unsigned long long element = corner + (unsigned long long)(m * 16) * dropout.n_key + n * 8;
            const unsigned keep = DROPOUT ? dropout.keep_queries_by_keys(element) : 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float p = power_of_2(fmaf(s[m][n][i], scale, -rows.shift[m][i / 2]));
                const float kept = DROPOUT ? (keep >> i & 1 ? dp[m][n][i] * dropout.scale : 0) : dp[m][n][i];
                s[m][n][i] = p * (kept - rows.delta[m][i / 2]);
            }
        }
}

// dy, q, y, dq (B, H, T, D) and key, v (B, G, S, D), with their strides in numbers, and lse (B, H, T) -> dq, and for
// the other kernel shift and delta, (B, H, T). grid: B * H * blocks of Q_ROWS queries. For the rest
// see attention_forward.
extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_query(
    const T* dy, long long dy_stride_b, long long dy_stride_h, long long dy_stride_t,
    const T* q, long long q_stride_b, long long q_stride_h, long long q_stride_t,
    const T* key, long long key_stride_b, long long key_stride_h, long long key_stride_t,
    const T* v, long long v_stride_b, long long v_stride_h, long long v_stride_t,
    const T* y, long long y_stride_b, long long y_stride_h, long long y_stride_t,
    T* dq, long long dq_stride_b, long long dq_stride_h, long long dq_stride_t,
    const float* lse, float* shift, float* delta, int n_batch, int n_head, int n_group, int n_query, int n_key, int d,
    int causal, float scale, unsigned threshold, float kept_scale, unsigned long long seed, unsigned stream,
    unsigned step, const unsigned* step_offset
) {
    DYNAMIC_SHARED(T, memory);
    constexpr int TILE = Q_KEYS * row_size<HEAD>;
    T* q_tile = memory;
    T* dy_tile = q_tile + Q_ROWS * row_size<HEAD>;
    T* key_tiles = dy_tile + Q_ROWS * row_size<HEAD>;
    T* v_tiles = key_tiles + 2 * TILE;

    const int n_blocks = (n_query + Q_ROWS - 1) / Q_ROWS;
    Assignment work = assignment_of(blockIdx.x, n_batch * n_head, n_blocks);
    work.block = n_blocks - 1 - work.block;  // the last queries see the most keys: they start first
    const int b = work.head / n_head, h = work.head % n_head, g = h / (n_head / n_group);
    dy += b * dy_stride_b + h * dy_stride_h;
    q += b * q_stride_b + h * q_stride_h;
    key += b * key_stride_b + g * key_stride_h;
    v += b * v_stride_b + g * v_stride_h;
    y += b * y_stride_b + h * y_stride_h;
    dq += b * dq_stride_b + h * dq_stride_h;
    lse += (long long)work.head * n_query;
    shift += (long long)work.head * n_query;
    delta += (long long)work.head * n_query;
    const int block_query = work.block * Q_ROWS, last_query = min(block_query + Q_ROWS, n_query) - 1;
    const int n_tiles = (n_seen(last_query, n_query, n_key, causal) + Q_KEYS - 1) / Q_KEYS;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int query = block_query + warp * 16 * Q_M;  // the warp's first
    const int warp_sees = n_seen(query + 16 * Q_M - 1, n_query, n_key, causal);
    T* q_rows = q_tile + warp * 16 * Q_M * row_size<HEAD>;
    T* dy_rows = dy_tile + warp * 16 * Q_M * row_size<HEAD>;
    const WeightDropout dropout{threshold, kept_scale, seed, stream, offset_step(step, step_offset), n_key};

    load_tile<Q_ROWS, HEAD, THREADS>(q_tile, q, q_stride_t, block_query, n_query, d);
    load_tile<Q_ROWS, HEAD, THREADS>(dy_tile, dy, dy_stride_t, block_query, n_query, d);
    cp_async_commit();
    load_tile<Q_KEYS, HEAD, THREADS>(key_tiles, key, key_stride_t, 0, n_key, d);
    load_tile<Q_KEYS, HEAD, THREADS>(v_tiles, v, v_stride_t, 0, n_key, d);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const Rows rows = read_rows(dy_rows, y, y_stride_t, lse, query, n_query, d);
#pragma unroll
    for (int m = 0; m < Q_M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = query + m * 16 + half * 8 + lane / 4;
            if (lane % 4 || row >= n_query) continue;
            shift[row] = rows.shift[m][half];
            delta[row] = rows.delta[m][half];
        }

    float sum[Q_M][HEAD / 8][4] = {};
    for (int tile = 0; tile < n_tiles; ++tile) {
        cp_async_wait<0>();
        __syncthreads();
        const int first = tile * Q_KEYS, now = tile % 2 * TILE, next = TILE - now;
        if (tile + 1 < n_tiles) {
            load_tile<Q_KEYS, HEAD, THREADS>(key_tiles + next, key, key_stride_t, first + Q_KEYS, n_key, d);
            load_tile<Q_KEYS, HEAD, THREADS>(v_tiles + next, v, v_stride_t, first + Q_KEYS, n_key, d);
        }
        cp_async_commit();
        if (first >= warp_sees) continue;

        float s[Q_M][Q_KEYS / 8][4] = {}, dp[Q_M][Q_KEYS / 8][4] = {};
        add_product_nt<Q_M, Q_KEYS, HEAD>(s, q_rows, key_tiles + now);
        if (first + Q_KEYS > n_seen(query, n_query, n_key, causal))
            hide<Q_M, Q_KEYS>(s, query, first, n_query, n_key, causal);
        add_product_nt<Q_M, Q_KEYS, HEAD>(dp, dy_rows, v_tiles + now);
        const unsigned long long corner = ((unsigned long long)work.head * n_query + query) * n_key + first;
        score_gradients(s, dp, rows, scale * LOG2_E, dropout, corner);
        Register ds[Q_M][Q_KEYS / 16][4];
        to_operand<T, Q_M, Q_KEYS>(ds, s);
        add_product_nn<Q_M, Q_KEYS, HEAD>(sum, ds, key_tiles + now);
    }
    cp_async_wait<0>();

    float factor[Q_M][2];
#pragma unroll
    for (int m = 0; m < Q_M; ++m) factor[m][0] = factor[m][1] = scale;
    store_rows<Q_M, HEAD>(dq, dq_stride_t, query, n_query, d, q_rows, sum, factor);
}

// --- dkey and dv -----------------------------------------------------------------------------------------------------

constexpr int K_M = HEAD > 64 || DROPOUT ? 1 : 2, K_ROWS = 16 * K_M * WARPS;  // 16 K_M keys per warp
constexpr int K_BLOCKS = HEAD <= 64 && DROPOUT ? 3 : 2;  // minimum on a multiprocessor: limits the registers
constexpr int QUERIES = 32;

// Of s^T (keys, queries), scores of queries that may not see a key become -inf: only causality hides keys here,
// since the rows of keys that do not exist are not stored.
__device__ __forceinline__ void hide_queries(
    float (&s)[K_M][QUERIES / 8][4], int key, int query, int n_query, int n_key
) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < K_M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = key + m * 16 + half * 8 + lane / 4;
            const int hidden = first_seeing(row, n_query, n_key, 1) - query - lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < QUERIES / 8; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    if (n * 8 + i < hidden) s[m][n][2 * half + i] = -INFINITY;
        }
}

// s^T becomes p^T. shift: of every query.
__device__ __forceinline__ void recompute_weights(float (&s)[K_M][QUERIES / 8][4], const float* shift, float scale) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < QUERIES / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float by = shift[n * 8 + lane % 4 * 2 + i];
#pragma unroll
            for (int m = 0; m < K_M; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    s[m][n][2 * half + i] = power_of_2(fmaf(s[m][n][2 * half + i], scale, -by));
        }
}

// dp^T, v dy^T, becomes ds^T; dropped weights of p^T become 0.
__device__ __forceinline__ void transposed_score_gradients(
    float (&dp)[K_M][QUERIES / 8][4], float (&p)[K_M][QUERIES / 8][4], const float* delta,
    const WeightDropout& dropout, unsigned long long corner
) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < QUERIES / 8; ++n) {
        const float both[2] = {delta[n * 8 + lane % 4 * 2], delta[n * 8 + lane % 4 * 2 + 1]};
#pragma unroll
        for (int m = 0; m < K_M; ++m) {
            const unsigned long long element = corner + m * 16 + (unsigned long long)(n * 8) * dropout.n_key;
            const unsigned keep = DROPOUT ? dropout.keep_keys_by_queries(element) : 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool dropped = DROPOUT && !(keep >> i & 1);
                const float kept = DROPOUT ? (dropped ? 0 : dp[m][n][i] * dropout.scale) : dp[m][n][i];
                dp[m][n][i] = p[m][n][i] * (kept - both[i % 2]);
                if (dropped) p[m][n][i] = 0;
            }
        }
    }
}

// Like the other kernel, which computes shift and delta -> dkey and dv (B, G, S, D). grid: B * G * blocks of K_ROWS
// keys.
extern "C" __global__ void __launch_bounds__(THREADS, K_BLOCKS) attention_backward_key(
    const T* dy, long long dy_stride_b, long long dy_stride_h, long long dy_stride_t,
    const T* q, long long q_stride_b, long long q_stride_h, long long q_stride_t,
    const T* key, long long key_stride_b, long long key_stride_h, long long key_stride_t,
    const T* v, long long v_stride_b, long long v_stride_h, long long v_stride_t,
    T* dkey, long long dkey_stride_b, long long dkey_stride_h, long long dkey_stride_t,
    T* dv, long long dv_stride_b, long long dv_stride_h, long long dv_stride_t,
    const float* shift, const float* delta, int n_batch, int n_head, int n_group, int n_query, int n_key, int d,
    int causal, float scale, unsigned threshold, float kept_scale, unsigned long long seed, unsigned stream,
    unsigned step, const unsigned* step_offset
) {
    DYNAMIC_SHARED(T, memory);
    constexpr int TILE = QUERIES * row_size<HEAD>;
    T* key_tile = memory;
    T* v_tile = key_tile + K_ROWS * row_size<HEAD>;
    T* q_tiles = v_tile + K_ROWS * row_size<HEAD>;
    T* dy_tiles = q_tiles + 2 * TILE;
    float* shifts = reinterpret_cast<float*>(dy_tiles + 2 * TILE);
    float* deltas = shifts + 2 * QUERIES;

    const int n_blocks = (n_key + K_ROWS - 1) / K_ROWS;
    // The first keys are seen by the most queries, and their blocks start first.
    const Assignment work = assignment_of(blockIdx.x, n_batch * n_group, n_blocks);
    const int b = work.head / n_group, g = work.head % n_group, sharing = n_head / n_group;
    dy += b * dy_stride_b + g * sharing * dy_stride_h;
    q += b * q_stride_b + g * sharing * q_stride_h;
    key += b * key_stride_b + g * key_stride_h;
    v += b * v_stride_b + g * v_stride_h;
    const long long first_head = (long long)b * n_head + g * sharing;
    const int block_key = work.block * K_ROWS;
    const int first_query = first_seeing(block_key, n_query, n_key, causal) / QUERIES * QUERIES;
    const int warp = threadIdx.x / WARP, key_row = block_key + warp * 16 * K_M;  // the warp's first
    T* key_rows = key_tile + warp * 16 * K_M * row_size<HEAD>;
    T* v_rows = v_tile + warp * 16 * K_M * row_size<HEAD>;
    const WeightDropout dropout{threshold, kept_scale, seed, stream, offset_step(step, step_offset), n_key};

    auto fetch = [&](int head, int query, int to) {  // load a tile of one of the heads that share these keys
        T* tile = q_tiles + to * TILE;
        load_tile<QUERIES, HEAD, THREADS>(tile, q + head * q_stride_h, q_stride_t, query, n_query, d);
        load_tile<QUERIES, HEAD, THREADS>(tile + 2 * TILE, dy + head * dy_stride_h, dy_stride_t, query, n_query, d);
        if (threadIdx.x >= QUERIES) return;
        const int row = query + threadIdx.x;
        const long long at = (first_head + head) * n_query + min(row, n_query - 1);
        cp_async_4(shifts + to * QUERIES + threadIdx.x, shift + at, row < n_query);
        cp_async_4(deltas + to * QUERIES + threadIdx.x, delta + at, row < n_query);
    };

    load_tile<K_ROWS, HEAD, THREADS>(key_tile, key, key_stride_t, block_key, n_key, d);
    load_tile<K_ROWS, HEAD, THREADS>(v_tile, v, v_stride_t, block_key, n_key, d);
    fetch(0, first_query, 0);
    cp_async_commit();

    float dkey_sum[K_M][HEAD / 8][4] = {}, dv_sum[K_M][HEAD / 8][4] = {};
    int head = 0, query = first_query, now = 0;
    while (head < sharing) {
        cp_async_wait<0>();
        __syncthreads();
        const bool last = query + QUERIES >= n_query;  // of this head
        const int next_head = head + last, next_query = last ? first_query : query + QUERIES;
        if (next_head < sharing) fetch(next_head, next_query, 1 - now);
        cp_async_commit();
        if (query + QUERIES > first_seeing(key_row, n_query, n_key, causal)) {
            const T* q_tile = q_tiles + now * TILE;
            const T* dy_tile = dy_tiles + now * TILE;
            float p[K_M][QUERIES / 8][4] = {}, ds[K_M][QUERIES / 8][4] = {};
            add_product_nt<K_M, QUERIES, HEAD>(p, key_rows, q_tile);
            if (query < first_seeing(key_row + 16 * K_M - 1, n_query, n_key, causal))
                hide_queries(p, key_row, query, n_query, n_key);
            recompute_weights(p, shifts + now * QUERIES, scale * LOG2_E);
            add_product_nt<K_M, QUERIES, HEAD>(ds, v_rows, dy_tile);
            transposed_score_gradients(ds, p, deltas + now * QUERIES, dropout,
                                  ((unsigned long long)(first_head + head) * n_query + query) * n_key + key_row);
            Register left[K_M][QUERIES / 16][4];
            to_operand<T, K_M, QUERIES>(left, p);
            add_product_nn<K_M, QUERIES, HEAD>(dv_sum, left, dy_tile);
            to_operand<T, K_M, QUERIES>(left, ds);
            add_product_nn<K_M, QUERIES, HEAD>(dkey_sum, left, q_tile);
        }
        head = next_head, query = next_query, now = 1 - now;
    }

    float dkey_factor[K_M][2], dv_factor[K_M][2];
#pragma unroll
    for (int m = 0; m < K_M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            dkey_factor[m][half] = scale;
            dv_factor[m][half] = DROPOUT ? kept_scale : 1.0f;
        }
    dkey += b * dkey_stride_b + g * dkey_stride_h;
    dv += b * dv_stride_b + g * dv_stride_h;
    store_rows<K_M, HEAD>(dkey, dkey_stride_t, key_row, n_key, d, key_rows, dkey_sum, dkey_factor);
    store_rows<K_M, HEAD>(dv, dv_stride_t, key_row, n_key, d, v_rows, dv_sum, dv_factor);
}
