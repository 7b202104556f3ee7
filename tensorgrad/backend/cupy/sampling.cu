// The next token of every row from its logits, as gpt/generate/sampling.py chooses it, written where the next step of
// generation reads it: nothing is copied to the host in between.
//
// A token's weight is exp((logit - largest logit) / temperature) as a whole number of 2^-45. Sums of whole numbers are
// exact in any order, so that threads add them in parallel and every run draws the same token. Logits are penalised and
// weighed in float64, as on the CPU.
//
// The choice is by inversion: of the tokens in order, the first up to which the weights exceed u times their sum; u is
// the draw of tensorgrad/random.py under the row's seed and step, with 24 bits.
#include "philox.cuh"

constexpr int THREADS = 1024, WARPS = THREADS / WARP;
constexpr double ONE = 35184372088832.0;  // 2^45, the largest weight: 2^18 of them add up to 2^63
constexpr int DIGIT_BITS = 12, BINS = 1 << DIGIT_BITS, DIGITS = 4;  // of 48 bits, which hold every weight
constexpr unsigned SAMPLING = 3;  // the stream: Stream.SAMPLING of tensorgrad/random.py
using Weight = unsigned long long;

__device__ __forceinline__ double penalised(T logit, bool seen, double penalty) {
    const double x = widen(logit);
    return !seen ? x : x < 0 ? x * penalty : x / penalty;
}

// Write the choice of a row, -1 for logits that are not finite, and go on to the next position, as long as there is one.
__device__ __forceinline__ void finish(
    int row, int choice, long long* token, long long* position, unsigned* step, bool* seen, int n_classes, int n_slots
) {
    token[row] = choice;
    if (seen != nullptr && choice >= 0) seen[(long long)row * n_classes + choice] = true;
    if (position[row] + 1 < n_slots) ++position[row];
    ++step[row];
}

// The largest logit of every row, after the penalty: (B); nan if a logit is not finite. A block a row. With greedy, the
// first token that has it is the row's choice.
extern "C" __global__ void __launch_bounds__(THREADS, 1) largest(
    const T* logits, long long logits_stride_b, double* top, long long* token, long long* position, unsigned* step,
    bool* seen, int n_classes, int n_slots, double penalty, int greedy
) {
    __shared__ double best[WARPS];
    __shared__ int first[WARPS];
    const int row = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const T* own = logits + row * logits_stride_b;
    const bool* before = seen == nullptr ? nullptr : seen + (long long)row * n_classes;
    double x = -INFINITY;
    int at = n_classes;
    bool finite = true;
    const auto add = [&](int i, T logit) {
        const double value = penalised(logit, before != nullptr && before[i], penalty);
        finite = finite && isfinite(double(widen(logit)));
        if (value > x) x = value, at = i;
    };
    over_row(
        own, n_classes, [&](int i) { add(i, own[i]); },
        [&](int i) {
            const auto whole = *reinterpret_cast<const Vector<T, PER_16_BYTES<T>>*>(own + i);
#pragma unroll
            for (int j = 0; j < PER_16_BYTES<T>; ++j) add(i + j, whole.at[j]);
        }
    );
    if (!finite) x = __int_as_float(0x7fc00000);  // nan
    const auto take = [&](double other, int other_at) {  // the larger, the first of equal ones, nan before all
        if (other > x || (other == x && other_at < at) || isnan(other)) x = other, at = other_at;
    };
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const double other = __shfl_xor_sync(ALL_LANES, x, distance);
        const int other_at = __shfl_xor_sync(ALL_LANES, at, distance);
        if (!isnan(x)) take(other, other_at);
    }
    if (lane == 0) best[warp] = x, first[warp] = at;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int other = 1; other < WARPS; ++other)
        if (!isnan(x)) take(best[other], first[other]);
    top[row] = x;
    if (greedy) finish(row, isnan(x) ? -1 : at, token, position, step, seen, n_classes, n_slots);
}

// The weights of all tokens: (B, V). grid: (blocks of tokens, rows).
extern "C" __global__ void weigh(
    const T* logits, long long logits_stride_b, const double* top, const bool* seen, Weight* weights, int n_classes,
    double penalty, double temperature
) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (i >= n_classes) return;
    const long long at = (long long)row * n_classes + i;
    const double x = penalised(logits[row * logits_stride_b + i], seen != nullptr && seen[at], penalty);
    weights[at] = isnan(top[row]) ? 0 : Weight(exp((x - top[row]) / temperature) * ONE + 0.5);
}

// The sum of x over the threads before this one; `total` is that over all. partial: a number a warp.
__device__ __forceinline__ Weight sum_before(Weight x, Weight* partial, Weight& total) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    Weight sum = x;  // up to this lane
    for (int distance = 1; distance < WARP; distance *= 2) {
        const Weight other = __shfl_up_sync(ALL_LANES, sum, distance);
        if (lane >= distance) sum += other;
    }
    __syncthreads();  // earlier results have been read
    if (lane == WARP - 1) partial[warp] = sum;
    __syncthreads();
    Weight before = sum - x;
    total = 0;
    for (int other = 0; other < WARPS; ++other) {
        if (other < warp) before += partial[other];
        total += partial[other];
    }
    return before;
}

// Of the weights in descending order, the one at which what they add up to reaches `needed`, at least 1; only those of
// at least `least` count. What is added up are weights or, for by_count, tokens. `above` is the sum of all that are
// larger. Digit by digit: a histogram of what each value of the digit adds up to, among the weights whose higher digits
// are known.
__device__ Weight reached(
    const Weight* weights, int n, Weight least, Weight needed, bool by_count, Weight* bins, Weight* partial,
    Weight* found, Weight& above
) {
    Weight prefix = 0;
    above = 0;
    for (int shift = (DIGITS - 1) * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        for (int i = threadIdx.x; i < BINS; i += THREADS) bins[i] = 0;
        __syncthreads();
        for (int start = 0; start < n; start += THREADS) {
            const int i = start + threadIdx.x;
            const Weight w = i < n ? weights[i] : 0;
            const bool inside = i < n && w >= least && w >> shift >> DIGIT_BITS == prefix >> shift >> DIGIT_BITS;
            const unsigned among = __ballot_sync(ALL_LANES, inside);
            if (among == 0) continue;
            // Most tokens have one digit in common: a warp adds those of its first lane together.
            const int digit = int(w >> shift & (BINS - 1));
            const int common = __shfl_sync(ALL_LANES, digit, __ffs(among) - 1);
            const bool same = inside && digit == common;
            const Weight amount = by_count ? 1 : w, together = warp_sum(same ? amount : 0);
            if (threadIdx.x % WARP == 0) atomicAdd(bins + common, together);
            if (inside && !same) atomicAdd(bins + digit, amount);
        }
        __syncthreads();
        constexpr int OWN = BINS / THREADS;
        const int highest = BINS - 1 - int(threadIdx.x) * OWN;
        Weight own = 0, total;
        for (int i = 0; i < OWN; ++i) own += bins[highest - i];
        Weight sum = above + sum_before(own, partial, total);
        if (sum < needed && needed <= sum + own) {
            int digit = highest;
            while (sum + bins[digit] < needed) sum += bins[digit--];
            found[0] = digit, found[1] = sum;
        }
        __syncthreads();
        prefix |= found[0] << shift;
        above = found[1];
    }
    return prefix;
}

// Choose a token of every row by its weights (B, V), after top-k and top-p. A block a row. top_k: n_classes for all.
extern "C" __global__ void __launch_bounds__(THREADS, 1) draw(
    const Weight* weights, const double* top, const Weight* seeds, long long* token, long long* position,
    unsigned* step, bool* seen, int n_classes, int n_slots, int top_k, double top_p
) {
    __shared__ Weight bins[BINS], partial[WARPS], found[2];
    const int row = blockIdx.x;
    if (isnan(top[row])) {
        if (threadIdx.x == 0) finish(row, -1, token, position, step, seen, n_classes, n_slots);
        return;
    }
    weights += (long long)row * n_classes;
    const int per_thread = (n_classes + THREADS - 1) / THREADS;
    const int start = min(n_classes, int(threadIdx.x) * per_thread), end = min(n_classes, start + per_thread);
    Weight least = 0, above, total, n_ties = n_classes;  // kept: larger weights, and n_ties of those that are equal
    if (top_k < n_classes) least = reached(weights, n_classes, 0, top_k, true, bins, partial, found, above);
    if (top_p < 1) {
        Weight own = 0;
        for (int i = start; i < end; ++i) own += weights[i] >= least ? weights[i] : 0;
        sum_before(own, partial, total);
        const Weight needed = Weight(ceil(top_p * double(total)));
        least = reached(weights, n_classes, least, needed, false, bins, partial, found, above);
        n_ties = (needed - above + least - 1) / least;
    }
    Weight ties = 0;
    for (int i = start; i < end; ++i) ties += weights[i] == least;
    Weight rank = sum_before(ties, partial, total), next = rank, own = 0;
    const auto kept = [&](Weight w, Weight& rank) { return w > least || (w == least && rank++ < n_ties) ? w : 0; };
    for (int i = start; i < end; ++i) own += kept(weights[i], next);
    const Weight u = philox(0, step[row], SAMPLING, seeds[row]).at[0] >> 8;  // before a thread goes on to the next step
    Weight sum = sum_before(own, partial, total);
    constexpr Weight LOW = (1 << 24) - 1;
    const Weight target = (total >> 24) * u + ((total & LOW) * u >> 24);  // floor(u 2^-24 total)
    if (!(sum <= target && target < sum + own)) return;
    int i = start - 1;
    while (sum <= target) sum += kept(weights[++i], rank);
    finish(row, i, token, position, step, seen, n_classes, n_slots);
}
