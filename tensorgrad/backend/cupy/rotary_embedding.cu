// Rotary position embedding (Su et al. 2021, arXiv:2104.09864): a pair (x[i], x[i + D / 2]) of a row is rotated by an
// angle.
//
//   y[i] = x[i] cos a - x[i + D / 2] sin a,  y[i + D / 2] = x[i] sin a + x[i + D / 2] cos a,  a = position frequency[i]
//
// Backward rotates back. The angle is computed in float64 and reduced to half a turn before it is rounded: at position
// 10000 the error of float32 would be a thousandth of a radian.
#include "common.cuh"

using Real = Wide<T>;

__device__ __forceinline__ void sine_and_cosine(float turn, float& sine, float& cosine) {
    sincospif(turn, &sine, &cosine);
}
__device__ __forceinline__ void sine_and_cosine(double turn, double& sine, double& cosine) {
    sincospi(turn, &sine, &cosine);
}

// x (rows, 2 half); the position of row r is positions[r % period]. turns (half): frequency / (2 pi).
extern "C" __global__ void rotary_embedding(
    const T* __restrict__ x, const P* __restrict__ positions, const double* __restrict__ turns, T* __restrict__ y,
    long long rows, int half, int period, int inverse
) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, row = i / half;
    if (row >= rows) return;
    const int pair = (int)(i - row * half);
    const double whole = (double)positions[row % period] * turns[pair];
    const Real turn = (Real)(2 * (whole - rint(whole)));
    Real sine, cosine;
    sine_and_cosine(turn, sine, cosine);
    if (inverse) sine = -sine;
    const T *first = x + row * 2 * half + pair, *second = first + half;
    T* to = y + row * 2 * half + pair;
    const Real a = widen(*first), b = widen(*second);
    to[0] = narrow<T>(a * cosine - b * sine);
    to[half] = narrow<T>(a * sine + b * cosine);
}
