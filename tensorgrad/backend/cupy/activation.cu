// Activation functions and their derivatives, elementwise, 16 bytes per thread.
//
//   sigmoid    s(x) = 1 / (1 + e^-x)
//   silu       x s(x)                            derivative s + x s (1 - s)
//   gelu       x Phi(x) = x (1 + erf(x / sqrt 2)) / 2         Phi(x) + x phi(x)
//   gelu_tanh  x (1 + tanh u) / 2 = x s(2u)                   s + x s (1 - s) d(2u)/dx
//              with u = sqrt(2 / pi) (x + 0.044715 x^3)       (Hendrycks, Gimpel 2016, arXiv:1606.08415)
//
// s(2u) equals (1 + tanh u) / 2, without cancellation.
#include "common.cuh"

using Real = Wide<T>;

// Computed from exp(-|x|), so that nothing overflows and small results keep their digits.
__device__ __forceinline__ Real logistic(Real x) {
    const Real e = exponential<T>(x < 0 ? x : -x);
    return divide<T>(x < 0 ? e : Real(1), 1 + e);
}

struct Sigmoid {
    __device__ Real operator()(Real x) const { return logistic(x); }
};

struct Erf {
    __device__ Real operator()(Real x) const { return erf(x); }
};

struct Silu {
    __device__ Real operator()(Real x) const { return x * logistic(x); }
    __device__ Real derivative(Real x) const {
        const Real s = logistic(x);
        return s * (1 + x * (1 - s));
    }
};

struct Gelu {
    __device__ Real operator()(Real x) const { return Real(0.5) * x * (1 + erf(x * Real(0.70710678118654752))); }
    __device__ Real derivative(Real x) const {
        const Real density = exponential<T>(Real(-0.5) * x * x) * Real(0.39894228040143268);  // 1 / sqrt(2 pi)
        return Real(0.5) * (1 + erf(x * Real(0.70710678118654752))) + x * density;
    }
};

struct GeluTanh {
    static constexpr Real SCALE = Real(1.5957691216057308), CUBIC = Real(0.044715);  // 2 sqrt(2 / pi)
    __device__ Real operator()(Real x) const { return x * logistic(SCALE * x * (1 + CUBIC * x * x)); }
    __device__ Real derivative(Real x) const {
        const Real square = CUBIC * x * x, s = logistic(SCALE * x * (1 + square));
        return s + x * s * (1 - s) * SCALE * (1 + 3 * square);
    }
};

template <int N, typename Function> __device__ void forward(const T* x, T* y, long long i, Function f) {
    Real part[N];
    load<N>(x + i, part);
    for (int j = 0; j < N; ++j) part[j] = f(part[j]);
    store<N>(y + i, part);
}

template <int N, typename Function> __device__ void backward(const T* dy, const T* x, T* dx, long long i, Function f) {
    Real part[N], gradient[N];
    load<N>(x + i, part);
    load<N>(dy + i, gradient);
    for (int j = 0; j < N; ++j) gradient[j] *= f.derivative(part[j]);
    store<N>(dx + i, gradient);
}

template <int N, typename Function> __device__ void backward_recompute(T* dy, T* x, long long i, Function f) {
    Real part[N], gradient[N];
    load<N>(x + i, part);
    load<N>(dy + i, gradient);
    for (int j = 0; j < N; ++j) {
        gradient[j] *= f.derivative(part[j]);
        part[j] = f(part[j]);
    }
    store<N>(dy + i, gradient);
    store<N>(x + i, part);
}

template <typename Function> __device__ void map(const T* x, T* y, long long n, Function f) {
    constexpr int N = PER_16_BYTES<T>;
    const long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i + N <= n && aligned(0, x, y)) forward<N>(x, y, i, f);
    else
        for (long long j = i; j < n && j < i + N; ++j) forward<1>(x, y, j, f);
}

template <typename Function> __device__ void map_backward(const T* dy, const T* x, T* dx, long long n, Function f) {
    constexpr int N = PER_16_BYTES<T>;
    const long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i + N <= n && aligned(0, dy, x, dx)) backward<N>(dy, x, dx, i, f);
    else
        for (long long j = i; j < n && j < i + N; ++j) backward<1>(dy, x, dx, j, f);
}

extern "C" __global__ void sigmoid(const T* __restrict__ x, T* __restrict__ y, long long n) { map(x, y, n, Sigmoid()); }

extern "C" __global__ void erf_of(const T* __restrict__ x, T* __restrict__ y, long long n) { map(x, y, n, Erf()); }

extern "C" __global__ void silu(const T* __restrict__ x, T* __restrict__ y, long long n) { map(x, y, n, Silu()); }

extern "C" __global__ void silu_backward(
    const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, long long n
) {
    map_backward(dy, x, dx, n, Silu());
}

extern "C" __global__ void gelu(const T* __restrict__ x, T* __restrict__ y, long long n) { map(x, y, n, Gelu()); }

extern "C" __global__ void gelu_backward(
    const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, long long n
) {
    map_backward(dy, x, dx, n, Gelu());
}

extern "C" __global__ void gelu_tanh(const T* __restrict__ x, T* __restrict__ y, long long n) {
    map(x, y, n, GeluTanh());
}

extern "C" __global__ void gelu_tanh_backward(
    const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, long long n
) {
    map_backward(dy, x, dx, n, GeluTanh());
}

// dy becomes dx, and x becomes gelu_tanh(x), recomputed while x is in registers.
extern "C" __global__ void gelu_tanh_recompute(T* __restrict__ dy, T* __restrict__ x, long long n) {
    constexpr int N = PER_16_BYTES<T>;
    const long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i + N <= n && aligned(0, dy, x)) backward_recompute<N>(dy, x, i, GeluTanh());
    else
        for (long long j = i; j < n && j < i + N; ++j) backward_recompute<1>(dy, x, j, GeluTanh());
}
