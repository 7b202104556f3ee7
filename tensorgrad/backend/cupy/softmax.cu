// Softmax over the rows of x (rows, n), one block per row.
//
//   softmax:      y = exp(x - top) / sum exp(x - top)      dx = y (dy - sum(y dy))
//   log_softmax:  y = x - top - log sum exp(x - top)       dx = dy - exp(y) sum(dy)
#include "common.cuh"

using Real = Wide<T>;

constexpr int N = PER_16_BYTES<T>;

// Call f(numbers, other numbers, index, count) for all parts of a row of two arrays with the same alignment.
template <typename Function> __device__ void visit(const T* a, const T* b, int n, Function f) {
    Real x[N], y[N], one_x[1], one_y[1];
    over_row(
        a, n,
        [&](int i) {
            one_x[0] = widen(a[i]), one_y[0] = widen(b[i]);
            f(one_x, one_y, i, 1);
        },
        [&](int i) {
            load<N>(a + i, x), load<N>(b + i, y);
            f(x, y, i, N);
        }
    );
}

// Write N numbers at once, or a single one.
__device__ __forceinline__ void write(T* y, const Real (&x)[N], int count) {
    if (count == N) store<N>(y, x);
    else *y = narrow<T>(x[0]);
}

// The maximum of a row, and the sum of exp(x - maximum).
__device__ void top_and_sum(const T* x, int n, Real* partial, Real& top, Real& total) {
    top = -INFINITY;
    visit(x, x, n, [&](const Real* part, const Real*, int, int count) {
        for (int j = 0; j < count; ++j) top = larger(top, part[j]);
    });
    top = block_max(top, partial);
    total = 0;
    visit(x, x, n, [&](const Real* part, const Real*, int, int count) {
        for (int j = 0; j < count; ++j) total += exponential<T>(part[j] - top);
    });
    total = block_sum(total, partial);
}

extern "C" __global__ void __launch_bounds__(1024, 1) softmax(const T* __restrict__ x, T* __restrict__ y, int n) {
    __shared__ Real partial[WARP];
    x += (long long)blockIdx.x * n, y += (long long)blockIdx.x * n;
    Real top, total;
    top_and_sum(x, n, partial, top, total);
    const Real scale = 1 / total;
    Real out[N];
    visit(x, x, n, [&](const Real* part, const Real*, int i, int count) {
        for (int j = 0; j < count; ++j) out[j] = exponential<T>(part[j] - top) * scale;
        write(y + i, out, count);
    });
}

extern "C" __global__ void __launch_bounds__(1024, 1) softmax_backward(
    const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx, int n
) {
    __shared__ Real partial[WARP];
    const long long at = (long long)blockIdx.x * n;
    dy += at, y += at, dx += at;
    Real along = 0;
    visit(dy, y, n, [&](const Real* gradient, const Real* p, int, int count) {
        for (int j = 0; j < count; ++j) along += gradient[j] * p[j];
    });
    along = block_sum(along, partial);
    Real out[N];
    visit(dy, y, n, [&](const Real* gradient, const Real* p, int i, int count) {
        for (int j = 0; j < count; ++j) out[j] = p[j] * (gradient[j] - along);
        write(dx + i, out, count);
    });
}

extern "C" __global__ void __launch_bounds__(1024, 1) log_softmax(const T* __restrict__ x, T* __restrict__ y, int n) {
    __shared__ Real partial[WARP];
    x += (long long)blockIdx.x * n, y += (long long)blockIdx.x * n;
    Real top, total;
    top_and_sum(x, n, partial, top, total);
    const Real shift = log(total);
    Real out[N];
    visit(x, x, n, [&](const Real* part, const Real*, int i, int count) {
        for (int j = 0; j < count; ++j) out[j] = part[j] - top - shift;
        write(y + i, out, count);
    });
}

extern "C" __global__ void __launch_bounds__(1024, 1) log_softmax_backward(
    const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx, int n
) {
    __shared__ Real partial[WARP];
    const long long at = (long long)blockIdx.x * n;
    dy += at, y += at, dx += at;
    Real total = 0;
    visit(dy, y, n, [&](const Real* gradient, const Real*, int, int count) {
        for (int j = 0; j < count; ++j) total += gradient[j];
    });
    total = block_sum(total, partial);
    Real out[N];
    visit(dy, y, n, [&](const Real* gradient, const Real* log_p, int i, int count) {
        for (int j = 0; j < count; ++j) out[j] = gradient[j] - exponential<T>(log_p[j]) * total;
        write(dx + i, out, count);
    });
}
