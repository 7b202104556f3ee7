// Cross-entropy of logits (rows, n), one block per row. A row is read once for both its maximum and its sum. Rows may be
// further apart than n elements, which lets all of them be aligned.
//
//   lse  = log sum exp(logits), kept as its two terms: the maximum m and log sum exp(logits - m)
//   loss = (1 - s) (lse - logit of the target) + s (lse - mean logit),  0 where the target is ignored
//   dlogits = dloss (exp(logits - lse) - s / n - (1 - s) [target])
//
// Maximum and sum in one pass: Milakov, Gimelshein 2018, arXiv:1805.02867. The gradient may overwrite the logits.
#include "common.cuh"

using Real = Wide<T>;

constexpr int N = PER_16_BYTES<T>;
constexpr int BLOCKS = sizeof(T) == 8 ? 2 : 4;  // of a multiprocessor at once: float64 needs more registers

// A sum of exponentials, stored as exp(top) total.
struct Exponentials {
    Real top = -INFINITY, total = 0;

    // Add several numbers with one correction of the total.
    template <int COUNT> __device__ void add(const Real (&x)[COUNT]) {
        Real highest = top;
        for (int j = 0; j < COUNT; ++j) highest = larger(highest, x[j]);
        if (highest == Real(-INFINITY)) return;  // inf - inf would be NaN
        Real sum = total * exponential<T>(top - highest);
        for (int j = 0; j < COUNT; ++j) sum += exponential<T>(x[j] - highest);
        top = highest, total = sum;
    }
};

// The class of a target; a negative one counts from the end.
__device__ int class_of(I target, int n) {
    const int at = (int)(target % n);
    return at < 0 ? at + n : at;
}

extern "C" __global__ void __launch_bounds__(512, BLOCKS) cross_entropy(
    const T* __restrict__ logits, long long logits_stride_row, const I* __restrict__ targets, Real* __restrict__ losses,
    Real* __restrict__ lse, int n, long long ignore_index, Real smoothing
) {
    __shared__ Real partial[WARP];
    __shared__ double sums[WARP];
    const long long row = blockIdx.x;
    const T* x = logits + row * logits_stride_row;
    Exponentials own;
    Real part[N], one[1];
    double sum = 0;
    over_row(
        x, n,
        [&](int i) {
            one[0] = widen(x[i]);
            own.add(one);
            if (smoothing > 0) sum += one[0];
        },
        [&](int i) {
            load<N>(x + i, part);
            own.add(part);
            for (int j = 0; j < N && smoothing > 0; ++j) sum += part[j];
        }
    );
    const Real top = block_max(own.top, partial);
    const Real total = block_sum(own.total == 0 ? Real(0) : own.total * exponential<T>(own.top - top), partial);
    const double mean = smoothing > 0 ? block_sum(sum, sums) / n : 0;
    if (threadIdx.x > 0) return;
    const Real log_sum = log(total);
    lse[2 * row] = top, lse[2 * row + 1] = log_sum;
    Real loss = log_sum - (widen(x[class_of(targets[row], n)]) - top);
    if (smoothing > 0) loss = (1 - smoothing) * loss + smoothing * (log_sum - Real(mean - top));
    losses[row] = targets[row] == ignore_index ? Real(0) : loss;
}

extern "C" __global__ void __launch_bounds__(512, BLOCKS) cross_entropy_backward(
    const Real* __restrict__ dlosses, const T* logits, long long logits_stride_row, const I* __restrict__ targets,
    const Real* __restrict__ lse, T* dlogits, long long dlogits_stride_row, int n, long long ignore_index, Real smoothing
) {
    const long long row = blockIdx.x;
    const T* x = logits + row * logits_stride_row;
    T* dx = dlogits + row * dlogits_stride_row;
    const bool kept = targets[row] != ignore_index;
    const int target = kept ? class_of(targets[row], n) : -1;
    const Real dloss = kept ? dlosses[row] : Real(0), share = smoothing / n, top = lse[2 * row], log_sum = lse[2 * row + 1];
    const auto gradient = [&](Real logit, int i) {
        return (exponential<T>(logit - top - log_sum) - share - (i == target ? 1 - smoothing : Real(0))) * dloss;
    };
    Real part[N];
    over_row(
        x, n,
        [&](int i) { dx[i] = narrow<T>(gradient(widen(x[i]), i)); },
        [&](int i) {
            load<N>(x + i, part);
            for (int j = 0; j < N; ++j) part[j] = gradient(part[j], i + j);
            store<N>(dx + i, part);
        }
    );
}
