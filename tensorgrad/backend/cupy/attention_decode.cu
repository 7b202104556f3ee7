// Attention of a few queries over many keys, for generation with a cache of keys and values: attention_decode where the
// host knows how many keys there are, attention_step where only the GPU does.
//
// Reading the keys and values takes longer than all arithmetic, so they are read once and fast. A single query would
// occupy only one multiprocessor, so the keys are split into parts, one per thread block (Dao et al. 2023,
// "Flash-Decoding"). A key is read by a few adjacent lanes, 16 bytes each, which sum its score together. Every such
// group of lanes keeps its own top, sum and y, as in attention_forward.cu; they are merged over the warp, over the
// warps and over the parts. The last block to finish merges the parts in a fixed order, so results are reproducible bit
// by bit.
//
// A mask says which keys may be seen, where the rows of a batch are texts of different lengths.
#include "common.cuh"

constexpr int WARPS = 4, THREADS = WARP * WARPS;
constexpr int PIECE = PER_16_BYTES<T>;  // numbers that a lane reads at a time
__host__ __device__ constexpr int lanes_for(int pieces) { return pieces <= 1 ? 1 : 2 * lanes_for((pieces + 1) / 2); }
constexpr int LANES = lanes_for(HEAD / PIECE), GROUPS = WARP / LANES;  // lanes of a key, keys of a warp
constexpr int PREFETCH = 4;  // keys that a lane loads before it uses the first of them
constexpr float LOG2_E = 1.4426950408889634f;

// The result over some of the keys, with powers of 2: y and sum have to be multiplied by 2^top.
struct State {
    float top, sum, y[PIECE];
};

__device__ __forceinline__ float weight(float top, float whole) { return top == -INFINITY ? 0 : exp2f(top - whole); }

__device__ __forceinline__ void merge(State& a, const State& b) {
    const float top = fmaxf(a.top, b.top), of_a = weight(a.top, top), of_b = weight(b.top, top);
    a.top = top;
    a.sum = a.sum * of_a + b.sum * of_b;
#pragma unroll
    for (int i = 0; i < PIECE; ++i) a.y[i] = a.y[i] * of_a + b.y[i] * of_b;
}

// Add PREFETCH keys, `step` apart, starting at `first`; all are loaded before the first is used. Keys from `end` on,
// and keys that the mask hides, are not loaded.
__device__ __forceinline__ void add_keys(
    State& state, const float (&q)[PIECE], const T* key, long long key_stride_t, const T* v, long long v_stride_t,
    const bool* mask, long long mask_stride_s, int first, int step, int end, bool inside
) {
    float keys[PREFETCH][PIECE] = {}, values[PREFETCH][PIECE] = {}, s[PREFETCH], top = state.top;
    bool seen[PREFETCH];
#pragma unroll
    for (int i = 0; i < PREFETCH; ++i) {
        const long long at = first + i * step;
        seen[i] = at < end && (mask == nullptr || mask[at * mask_stride_s]);
        if (!seen[i] || !inside) continue;
        load<PIECE>(key + at * key_stride_t, keys[i]);
        load<PIECE>(v + at * v_stride_t, values[i]);
    }
#pragma unroll
    for (int i = 0; i < PREFETCH; ++i) {
        s[i] = 0;
#pragma unroll
        for (int j = 0; j < PIECE; ++j) s[i] = fmaf(q[j], keys[i][j], s[i]);
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2)
            s[i] += __shfl_xor_sync(ALL_LANES, s[i], distance);
        if (!seen[i]) s[i] = -INFINITY;
        top = fmaxf(top, s[i]);
    }
    const float shrink = weight(state.top, top);
    state.top = top;
    state.sum *= shrink;
#pragma unroll
    for (int j = 0; j < PIECE; ++j) state.y[j] *= shrink;
#pragma unroll
    for (int i = 0; i < PREFETCH; ++i) {
        const float p = weight(s[i], top);
        state.sum += p;
#pragma unroll
        for (int j = 0; j < PIECE; ++j) state.y[j] = fmaf(p, values[i][j], state.y[j]);
    }
}

// Merge the groups of a warp, then the warps of the block: the first LANES threads get the result.
__device__ __forceinline__ State merge_block(State state, State* states) {
#pragma unroll
    for (int distance = LANES; distance < WARP; distance *= 2) {
        State other;
        other.top = __shfl_xor_sync(ALL_LANES, state.top, distance);
        other.sum = __shfl_xor_sync(ALL_LANES, state.sum, distance);
#pragma unroll
        for (int i = 0; i < PIECE; ++i) other.y[i] = __shfl_xor_sync(ALL_LANES, state.y[i], distance);
        merge(state, other);
    }
    const int lane = threadIdx.x % WARP;
    if (lane < LANES) states[threadIdx.x / WARP * LANES + lane] = state;
    __syncthreads();
    if (threadIdx.x >= LANES) return state;
    state = states[lane];
    for (int warp = 1; warp < WARPS; ++warp) merge(state, states[warp * LANES + lane]);
    return state;
}

// Merge the parts of a row: whether this block is the last of the row, whose first LANES threads get the result.
// parts: scratch, (rows, parts, 2 + HEAD); n_done: a counter for each row, at 0 before and after.
__device__ __forceinline__ bool merge_parts(
    State& state, float* parts, unsigned* n_done, int row, int column, bool inside, bool& last
) {
    const unsigned n_parts = gridDim.y;
    if (n_parts == 1) return true;
    float* mine = parts + ((long long)row * n_parts + blockIdx.y) * (2 + HEAD);
    if (threadIdx.x < LANES && inside) {
        if (threadIdx.x == 0) mine[0] = state.top, mine[1] = state.sum;
#pragma unroll
        for (int i = 0; i < PIECE; ++i) mine[2 + column + i] = state.y[i];
    }
    __threadfence();  // the writes are visible to a block that sees the counter increased
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(n_done + row, n_parts - 1) == n_parts - 1;
    __syncthreads();
    if (!last || threadIdx.x >= LANES) return last;
    __threadfence();
    state = {-INFINITY, 0, {}};
    for (unsigned part = 0; part < n_parts; ++part) {
        const float* from = parts + ((long long)row * n_parts + part) * (2 + HEAD);
        State other = {__ldcg(from), __ldcg(from + 1), {}};
#pragma unroll
        for (int i = 0; i < PIECE; ++i) other.y[i] = inside ? __ldcg(from + 2 + column + i) : 0;
        merge(state, other);
    }
    return true;
}

__device__ __forceinline__ void store_result(State& state, T* y) {
    const float factor = state.sum > 0 ? 1 / state.sum : 0;  // a query that sees no key gives zeros
#pragma unroll
    for (int i = 0; i < PIECE; ++i) state.y[i] *= factor;
    store<PIECE>(y, state.y);
}

// q, y (B, H, T, D) and key, v (B, G, S, D), with strides in numbers, D and all rows in pieces of 16 bytes, and mask
// (B, H, T, S), which may be null -> y, and lse (B, H, T). grid: (B * H * T, parts of part_size keys).
extern "C" __global__ void __launch_bounds__(THREADS) attention_decode(
    const T* q, long long q_stride_b, long long q_stride_h, long long q_stride_t,
    const T* key, long long key_stride_b, long long key_stride_h, long long key_stride_t,
    const T* v, long long v_stride_b, long long v_stride_h, long long v_stride_t,
    T* y, long long y_stride_b, long long y_stride_h, long long y_stride_t,
    const bool* mask, long long mask_stride_b, long long mask_stride_h, long long mask_stride_t,
    long long mask_stride_s,
    float* lse, float* parts, unsigned* n_done, int n_head, int n_group, int n_query, int n_key, int d, int causal,
    float scale, int part_size
) {
    __shared__ State states[WARPS * LANES];
    __shared__ bool last;
    const int row = blockIdx.x, b = row / n_query / n_head, h = row / n_query % n_head, t = row % n_query;
    const int g = h / (n_head / n_group), lane = threadIdx.x % WARP, column = lane % LANES * PIECE;
    const bool inside = column < d;
    key += b * key_stride_b + g * key_stride_h + column;
    v += b * v_stride_b + g * v_stride_h + column;
    if (mask != nullptr) mask += b * mask_stride_b + h * mask_stride_h + t * mask_stride_t;
    const int n_seen = causal ? min(n_key, max(0, t + 1 + n_key - n_query)) : n_key;
    const int end = min(n_seen, (int)(blockIdx.y + 1) * part_size);

    float own[PIECE] = {};
    if (inside) load<PIECE>(q + b * q_stride_b + h * q_stride_h + t * q_stride_t + column, own);
#pragma unroll
    for (int i = 0; i < PIECE; ++i) own[i] *= scale * LOG2_E;
    State state = {-INFINITY, 0, {}};
    constexpr int STEP = WARPS * GROUPS;  // keys that the block loads at a time
    const int offset = threadIdx.x / WARP * GROUPS + lane / LANES;
    for (int first = blockIdx.y * part_size; first < end; first += PREFETCH * STEP)
        add_keys(state, own, key, key_stride_t, v, v_stride_t, mask, mask_stride_s, first + offset, STEP, end, inside);
    state = merge_block(state, states);
    if (!merge_parts(state, parts, n_done, row, column, inside, last) || threadIdx.x >= LANES) return;
    if (threadIdx.x == 0) lse[row] = state.sum > 0 ? state.top / LOG2_E + logf(state.sum) : -INFINITY;
    if (inside) store_result(state, y + b * y_stride_b + h * y_stride_h + t * y_stride_t + column);
}

// One token of every row of a batch, in a step of generation whose position only the GPU knows. qkv (B, (H + 2 G) D) are
// its queries, keys and values side by side. Its key and value are written to the slot position[b] of keys and values
// (B, G, S, D), and it attends to the slots up to that: y (B, H D). turns (D / 2): frequency / (2 pi) of rotary
// positions, as in rotary_embedding.cu; null: none. grid: (B * H, parts of part_size slots); parts and n_done as above.
extern "C" __global__ void __launch_bounds__(THREADS) attention_step(
    const T* qkv, T* keys, T* values, const long long* position, const double* turns, T* y, float* parts,
    unsigned* n_done, int n_head, int n_group, int n_slots, int d, float scale, int part_size
) {
    __shared__ State states[WARPS * LANES];
    __shared__ bool last;
    __shared__ __align__(16) T own[3][HEAD];  // query, key and value of this token
    const int row = blockIdx.x, b = row / n_head, h = row % n_head, g = h / (n_head / n_group);
    const int lane = threadIdx.x % WARP, column = lane % LANES * PIECE, now = int(position[b]);
    const bool inside = column < d;
    const T* token = qkv + (long long)b * (n_head + 2 * n_group) * d;
    for (int i = threadIdx.x; i < d; i += THREADS) {
        own[2][i] = token[(n_head + n_group + g) * d + i];
        const int which = i < d / 2 ? 0 : 1, pair = i - which * (d / 2);  // half of the threads rotate q, half k
        const T* from = token + (which == 0 ? h : n_head + g) * d + pair;
        T first = from[0], second = from[d / 2];
        if (turns != nullptr) {
            const double whole = now * turns[pair];
            float sine, cosine;
            sincospif(float(2 * (whole - rint(whole))), &sine, &cosine);
            const float x = widen(first), z = widen(second);
            first = narrow<T>(x * cosine - z * sine), second = narrow<T>(x * sine + z * cosine);
        }
        own[which][pair] = first, own[which][pair + d / 2] = second;
    }
    __syncthreads();
    const long long cache = ((long long)b * n_group + g) * n_slots * d;
    if (blockIdx.y == 0 && h % (n_head / n_group) == 0)  // other blocks do not read this slot
        for (int i = threadIdx.x; i < d; i += THREADS) {
            keys[cache + (long long)now * d + i] = own[1][i];
            values[cache + (long long)now * d + i] = own[2][i];
        }

    float q[PIECE] = {};
    if (inside) load<PIECE>(own[0] + column, q);
#pragma unroll
    for (int i = 0; i < PIECE; ++i) q[i] *= scale * LOG2_E;
    State state = {-INFINITY, 0, {}};
    constexpr int STEP = WARPS * GROUPS;
    const int offset = threadIdx.x / WARP * GROUPS + lane / LANES, start = blockIdx.y * part_size;
    const int end = min(now, start + part_size);
    const T *key = keys + cache + column, *v = values + cache + column;
    for (int first = start; first < end; first += PREFETCH * STEP)
        add_keys(state, q, key, d, v, d, nullptr, 0, first + offset, STEP, end, inside);
    if (threadIdx.x < WARP && now / part_size == int(blockIdx.y))  // the token's own key, from shared memory
        add_keys(state, q, own[1] + column, 0, own[2] + column, 0, nullptr, 0, lane / LANES, STEP, 1, inside);
    state = merge_block(state, states);
    if (!merge_parts(state, parts, n_done, row, column, inside, last) || threadIdx.x >= LANES) return;
    if (inside) store_result(state, y + (long long)row * d + column);
}
