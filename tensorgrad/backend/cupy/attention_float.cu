// Attention, forward and backward, without tensor cores: for float32, and for rows that are not aligned to 16 bytes.
//
// The algorithms are those of attention_forward.cu and attention_backward.cu, with tiles of TILE x TILE scores, in
// float32. 256 threads form a square of 16 x 16; thread (i, j) has rows i, i + 16, ... and columns j, j + 16, ... of
// the scores, and columns j, j + 16, ... of the sums of its rows. So a row belongs to 16 adjacent lanes.
#include "attention_dropout.cuh"

constexpr int SIDE = 16, THREADS = SIDE * SIDE;
constexpr int TILE = HEAD <= 64 ? 64 : 32, R = TILE / SIDE, C = HEAD / SIDE;  // rows, and columns of sums, of a thread
constexpr int ROW = HEAD + 4;  // a tile's rows are padded by 16 bytes, so that 8 rows are in different banks
constexpr int P_ROW = TILE + 1;

__device__ __forceinline__ int thread_row() { return threadIdx.x / SIDE; }
__device__ __forceinline__ int thread_column() { return threadIdx.x % SIDE; }

// The number of keys that a query may see: with causal attention, the last query sees all.
__device__ __forceinline__ int n_seen(int query, int n_query, int n_key, int causal) {
    return causal ? min(n_key, max(0, query + 1 + n_key - n_query)) : n_key;
}

// Rows first ... first + TILE - 1 of x (n, d) as float32; zeros beyond n and d.
__device__ __forceinline__ void load_tile(float* tile, const T* x, long long stride, int first, int n, int d) {
    for (int i = threadIdx.x; i < TILE * HEAD; i += THREADS) {
        const int row = i / HEAD, column = i % HEAD;
        const bool inside = first + row < n && column < d;
        tile[row * ROW + column] = inside ? widen(x[(first + row) * stride + column]) : 0.0f;
    }
}

// s = a b^T: this thread's part of the products of all rows of two tiles.
__device__ __forceinline__ void products(float (&s)[R][R], const float* a, const float* b) {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
        for (int j = 0; j < R; ++j) s[i][j] = 0;
    for (int k = 0; k < HEAD; k += 4) {
        float left[R][4], right[R][4];
#pragma unroll
        for (int i = 0; i < R; ++i) {
            load<4>(a + (thread_row() + SIDE * i) * ROW + k, left[i]);
            load<4>(b + (thread_column() + SIDE * i) * ROW + k, right[i]);
        }
#pragma unroll
        for (int i = 0; i < R; ++i)
#pragma unroll
            for (int j = 0; j < R; ++j)
#pragma unroll
                for (int l = 0; l < 4; ++l) s[i][j] = fmaf(left[i][l], right[j][l], s[i][j]);
    }
}

// sum += p b, with p (TILE, TILE) spread over the threads as scores are; it goes through shared memory.
__device__ __forceinline__ void add_products(
    float (&sum)[R][C], const float (&p)[R][R], const float* b, float* p_tile
) {
    __syncthreads();  // the previous p has been read
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
        for (int j = 0; j < R; ++j)
            p_tile[(thread_row() + SIDE * i) * P_ROW + thread_column() + SIDE * j] = p[i][j];
    __syncthreads();
    for (int k = 0; k < TILE; ++k) {
        float right[C];
#pragma unroll
        for (int j = 0; j < C; ++j) right[j] = b[k * ROW + thread_column() + SIDE * j];
#pragma unroll
        for (int i = 0; i < R; ++i) {
            const float left = p_tile[(thread_row() + SIDE * i) * P_ROW + k];
#pragma unroll
            for (int j = 0; j < C; ++j) sum[i][j] = fmaf(left, right[j], sum[i][j]);
        }
    }
}

__device__ __forceinline__ void store_rows(
    T* y, long long stride, int first, int n, int d, const float (&sum)[R][C], const float (&factor)[R]
) {
#pragma unroll
    for (int i = 0; i < R; ++i) {
        const int row = first + thread_row() + SIDE * i;
#pragma unroll
        for (int j = 0; j < C; ++j) {
            const int column = thread_column() + SIDE * j;
            if (row < n && column < d) y[row * stride + column] = narrow<T>(sum[i][j] * factor[i]);
        }
    }
}

// The sum, and the maximum, over the threads of a row.
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int distance = SIDE / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int distance = SIDE / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// q, y (B, H, T, D), key, v (B, G, S, D) with strides in numbers -> y and lse (B, H, T). grid: B * H * blocks of TILE
// queries. threshold ... step_offset: dropout.
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_forward_float(
    const T* q, long long q_stride_b, long long q_stride_h, long long q_stride_t,
    const T* key, long long key_stride_b, long long key_stride_h, long long key_stride_t,
    const T* v, long long v_stride_b, long long v_stride_h, long long v_stride_t,
    T* y, long long y_stride_b, long long y_stride_h, long long y_stride_t,
    float* lse, int n_batch, int n_head, int n_group, int n_query, int n_key, int d, int causal, float scale,
    unsigned threshold, float kept_scale, unsigned long long seed, unsigned stream, unsigned step,
    const unsigned* step_offset
) {
    DYNAMIC_SHARED(float, memory);
    float* q_tile = memory;
    float* key_tile = q_tile + TILE * ROW;
    float* v_tile = key_tile + TILE * ROW;
    float* p_tile = v_tile + TILE * ROW;

    const int n_blocks = (n_query + TILE - 1) / TILE, block = n_blocks - 1 - blockIdx.x % n_blocks;
    const int head = blockIdx.x / n_blocks, b = head / n_head, h = head % n_head, g = h / (n_head / n_group);
    q += b * q_stride_b + h * q_stride_h;
    key += b * key_stride_b + g * key_stride_h;
    v += b * v_stride_b + g * v_stride_h;
    y += b * y_stride_b + h * y_stride_h;
    const int query = block * TILE, row = query + thread_row();
    const int n_visible = n_seen(min(query + TILE, n_query) - 1, n_query, n_key, causal);
    const WeightDropout dropout{threshold, kept_scale, seed, stream, offset_step(step, step_offset), n_key};

    load_tile(q_tile, q, q_stride_t, query, n_query, d);
    float sum[R][C] = {}, top[R], total[R] = {};
#pragma unroll
    for (int i = 0; i < R; ++i) top[i] = -INFINITY;
    for (int first = 0; first < n_visible; first += TILE) {
        __syncthreads();
        load_tile(key_tile, key, key_stride_t, first, n_key, d);
        load_tile(v_tile, v, v_stride_t, first, n_key, d);
        __syncthreads();
        float s[R][R];
        products(s, q_tile, key_tile);
#pragma unroll
        for (int i = 0; i < R; ++i) {
            const int seen = n_seen(row + SIDE * i, n_query, n_key, causal) - first - thread_column();
            float highest = -INFINITY;
#pragma unroll
            for (int j = 0; j < R; ++j) {
                s[i][j] = SIDE * j < seen ? s[i][j] * scale : -INFINITY;
                highest = fmaxf(highest, s[i][j]);
            }
            highest = fmaxf(top[i], row_max(highest));
            const float shift = highest == -INFINITY ? 0 : highest, shrink = expf(top[i] - shift);
            top[i] = highest;
            total[i] *= shrink;
#pragma unroll
            for (int j = 0; j < C; ++j) sum[i][j] *= shrink;
#pragma unroll
            for (int j = 0; j < R; ++j) {
                s[i][j] = expf(s[i][j] - shift);
                total[i] += s[i][j];
                const unsigned long long element = ((unsigned long long)head * n_query + row + SIDE * i) * n_key;
                if (DROPOUT && !dropout.keep(element + first + thread_column() + SIDE * j)) s[i][j] = 0;
            }
        }
        add_products(sum, s, v_tile, p_tile);
    }

    float factor[R];
#pragma unroll
    for (int i = 0; i < R; ++i) {
        const float all = row_sum(total[i]);
        factor[i] = all > 0 ? (DROPOUT ? kept_scale : 1.0f) / all : 0;  // a query that sees no key gives zeros
        if (thread_column() == 0 && row + SIDE * i < n_query)
            lse[(long long)head * n_query + row + SIDE * i] = all > 0 ? top[i] + logf(all) : -INFINITY;
    }
    store_rows(y, y_stride_t, query, n_query, d, sum, factor);
}

// p and ds of one tile of scores s, of rows `row` and columns `column` that see each other: see attention_backward.cu.
struct Gradient {
    float p, ds;
};
__device__ __forceinline__ Gradient gradient(
    float s, float dp, float lse, float delta, bool visible, const WeightDropout& dropout, unsigned long long element
) {
    const float p = visible ? expf(s - lse) : 0;
    if (!DROPOUT) return {p, p * (dp - delta)};
    const bool keep = dropout.keep(element);
    return {keep ? p : 0, p * ((keep ? dp * dropout.scale : 0) - delta)};
}

// dy, q, y, dq (B, H, T, D), key, v (B, G, S, D) and lse (B, H, T) -> dq, and delta (B, H, T) for the other kernel.
// grid: B * H * blocks of TILE queries.
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_backward_query_float(
    const T* dy, long long dy_stride_b, long long dy_stride_h, long long dy_stride_t,
    const T* q, long long q_stride_b, long long q_stride_h, long long q_stride_t,
    const T* key, long long key_stride_b, long long key_stride_h, long long key_stride_t,
    const T* v, long long v_stride_b, long long v_stride_h, long long v_stride_t,
    const T* y, long long y_stride_b, long long y_stride_h, long long y_stride_t,
    T* dq, long long dq_stride_b, long long dq_stride_h, long long dq_stride_t,
    const float* lse, float* delta, int n_batch, int n_head, int n_group, int n_query, int n_key, int d, int causal,
    float scale, unsigned threshold, float kept_scale, unsigned long long seed, unsigned stream, unsigned step,
    const unsigned* step_offset
) {
    DYNAMIC_SHARED(float, memory);
    float* q_tile = memory;
    float* dy_tile = q_tile + TILE * ROW;
    float* key_tile = dy_tile + TILE * ROW;
    float* v_tile = key_tile + TILE * ROW;
    float* p_tile = v_tile + TILE * ROW;

    const int n_blocks = (n_query + TILE - 1) / TILE, block = n_blocks - 1 - blockIdx.x % n_blocks;
    const int head = blockIdx.x / n_blocks, b = head / n_head, h = head % n_head, g = h / (n_head / n_group);
    dy += b * dy_stride_b + h * dy_stride_h;
    q += b * q_stride_b + h * q_stride_h;
    key += b * key_stride_b + g * key_stride_h;
    v += b * v_stride_b + g * v_stride_h;
    y += b * y_stride_b + h * y_stride_h;
    dq += b * dq_stride_b + h * dq_stride_h;
    const int query = block * TILE, row = query + thread_row();
    const int n_visible = n_seen(min(query + TILE, n_query) - 1, n_query, n_key, causal);
    const WeightDropout dropout{threshold, kept_scale, seed, stream, offset_step(step, step_offset), n_key};

    load_tile(q_tile, q, q_stride_t, query, n_query, d);
    load_tile(dy_tile, dy, dy_stride_t, query, n_query, d);
    __syncthreads();
    float row_delta[R], row_lse[R], factor[R], sum[R][C] = {};
#pragma unroll
    for (int i = 0; i < R; ++i) {
        const int at = row + SIDE * i;
        float part = 0;
        for (int column = thread_column(); at < n_query && column < d; column += SIDE)
            part += dy_tile[(thread_row() + SIDE * i) * ROW + column] * widen(y[at * y_stride_t + column]);
        row_delta[i] = row_sum(part);
        row_lse[i] = at < n_query ? lse[(long long)head * n_query + at] : 0;
        factor[i] = scale;
        if (thread_column() == 0 && at < n_query) delta[(long long)head * n_query + at] = row_delta[i];
    }
    for (int first = 0; first < n_visible; first += TILE) {
        __syncthreads();
        load_tile(key_tile, key, key_stride_t, first, n_key, d);
        load_tile(v_tile, v, v_stride_t, first, n_key, d);
        __syncthreads();
        float s[R][R], dp[R][R];
        products(s, q_tile, key_tile);
        products(dp, dy_tile, v_tile);
#pragma unroll
        for (int i = 0; i < R; ++i)
#pragma unroll
            for (int j = 0; j < R; ++j) {
                const int at = row + SIDE * i, column = first + thread_column() + SIDE * j;
                const bool visible = column < n_seen(at, n_query, n_key, causal);
                const unsigned long long element = ((unsigned long long)head * n_query + at) * n_key + column;
                s[i][j] = gradient(s[i][j] * scale, dp[i][j], row_lse[i], row_delta[i], visible, dropout, element).ds;
            }
        add_products(sum, s, key_tile, p_tile);
    }
    store_rows(dq, dq_stride_t, query, n_query, d, sum, factor);
}

// The same with delta -> dkey and dv (B, G, S, D). grid: B * G * blocks of TILE keys.
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_backward_key_float(
    const T* dy, long long dy_stride_b, long long dy_stride_h, long long dy_stride_t,
    const T* q, long long q_stride_b, long long q_stride_h, long long q_stride_t,
    const T* key, long long key_stride_b, long long key_stride_h, long long key_stride_t,
    const T* v, long long v_stride_b, long long v_stride_h, long long v_stride_t,
    T* dkey, long long dkey_stride_b, long long dkey_stride_h, long long dkey_stride_t,
    T* dv, long long dv_stride_b, long long dv_stride_h, long long dv_stride_t,
    const float* lse, const float* delta, int n_batch, int n_head, int n_group, int n_query, int n_key, int d,
    int causal, float scale, unsigned threshold, float kept_scale, unsigned long long seed, unsigned stream,
    unsigned step, const unsigned* step_offset
) {
    DYNAMIC_SHARED(float, memory);
    float* key_tile = memory;
    float* v_tile = key_tile + TILE * ROW;
    float* q_tile = v_tile + TILE * ROW;
    float* dy_tile = q_tile + TILE * ROW;
    float* p_tile = dy_tile + TILE * ROW;

    const int n_blocks = (n_key + TILE - 1) / TILE, place = blockIdx.x / n_blocks;
    const int b = place / n_group, g = place % n_group, sharing = n_head / n_group;
    key += b * key_stride_b + g * key_stride_h;
    v += b * v_stride_b + g * v_stride_h;
    dkey += b * dkey_stride_b + g * dkey_stride_h;
    dv += b * dv_stride_b + g * dv_stride_h;
    const int first_key = blockIdx.x % n_blocks * TILE, row = first_key + thread_row();
    const int seen_from = causal ? max(0, first_key - (n_key - n_query)) / TILE * TILE : 0;
    const WeightDropout dropout{threshold, kept_scale, seed, stream, offset_step(step, step_offset), n_key};

    load_tile(key_tile, key, key_stride_t, first_key, n_key, d);
    load_tile(v_tile, v, v_stride_t, first_key, n_key, d);
    float dkey_sum[R][C] = {}, dv_sum[R][C] = {};
    for (int h = g * sharing; h < (g + 1) * sharing; ++h) {
        const long long head = (long long)b * n_head + h;
        for (int query = seen_from; query < n_query; query += TILE) {
            __syncthreads();
            load_tile(q_tile, q + b * q_stride_b + h * q_stride_h, q_stride_t, query, n_query, d);
            load_tile(dy_tile, dy + b * dy_stride_b + h * dy_stride_h, dy_stride_t, query, n_query, d);
            __syncthreads();
            float s[R][R], dp[R][R];  // rows are keys, columns are queries
            products(s, key_tile, q_tile);
            products(dp, v_tile, dy_tile);
#pragma unroll
            for (int j = 0; j < R; ++j) {
                const int column = query + thread_column() + SIDE * j;
                const bool there = column < n_query;
                const float column_lse = there ? lse[head * n_query + column] : 0;
                const float column_delta = there ? delta[head * n_query + column] : 0;
                const int seen = there ? n_seen(column, n_query, n_key, causal) : 0;
#pragma unroll
                for (int i = 0; i < R; ++i) {
                    const int at = row + SIDE * i;
                    const unsigned long long element = ((unsigned long long)head * n_query + column) * n_key + at;
                    const Gradient both = gradient(
                        s[i][j] * scale, dp[i][j], column_lse, column_delta, at < seen, dropout, element
                    );
                    s[i][j] = both.p;
                    dp[i][j] = both.ds;
                }
            }
            add_products(dv_sum, s, dy_tile, p_tile);
            add_products(dkey_sum, dp, q_tile, p_tile);
        }
    }
    float dkey_factor[R], dv_factor[R];
#pragma unroll
    for (int i = 0; i < R; ++i) {
        dkey_factor[i] = scale;
        dv_factor[i] = DROPOUT ? kept_scale : 1.0f;
    }
    store_rows(dkey, dkey_stride_t, first_key, n_key, d, dkey_sum, dkey_factor);
    store_rows(dv, dv_stride_t, first_key, n_key, d, dv_sum, dv_factor);
}
