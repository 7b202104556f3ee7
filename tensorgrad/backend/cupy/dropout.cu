// Dropout (Srivastava et al. 2014): element e of the array is zeroed where word e of a Philox stream is below
// the threshold p 2^32. Backward is the same kernel applied to dy.
#include "philox.cuh"

using Real = Wide<T>;

constexpr int N = PER_16_BYTES<T> < 4 ? 4 : PER_16_BYTES<T>;  // at least the four words of one counter

extern "C" __global__ void random_bits(
    unsigned* __restrict__ words, long long n, unsigned long long seed, unsigned stream, unsigned step,
    const unsigned* step_offset
) {
    const long long four = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const Words made = philox(four, offset_step(step, step_offset), stream, seed);
    for (int j = 0; j < 4 && 4 * four + j < n; ++j) words[4 * four + j] = made.at[j];
}

extern "C" __global__ void dropout(
    const T* __restrict__ x, T* __restrict__ y, long long n, unsigned threshold, Real scale, unsigned long long seed,
    unsigned stream, unsigned step, const unsigned* step_offset
) {
    const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
    const unsigned number = offset_step(step, step_offset);
    const bool whole = first + N <= n && aligned(0, x, y);
    for (int k = 0; k < N; k += PER_16_BYTES<T>) {
        constexpr int PART = PER_16_BYTES<T>;
        const long long i = first + k;
        Real part[PART];
        if (whole) load<PART>(x + i, part);
        else
            for (int j = 0; j < PART; ++j) part[j] = i + j < n ? widen(x[i + j]) : Real(0);
        for (int j = 0; j < PART; j += PART < 4 ? PART : 4) {
            const Words words = philox((i + j) / 4, number, stream, seed);
            for (int l = 0; l < (PART < 4 ? PART : 4); ++l)
                part[j + l] *= words.at[(i + j) % 4 + l] >= threshold ? scale : Real(0);
        }
        if (whole) store<PART>(y + i, part);
        else
            for (int j = 0; j < PART && i + j < n; ++j) y[i + j] = narrow<T>(part[j]);
    }
}
