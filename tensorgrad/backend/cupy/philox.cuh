// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), as in backend/philox.py: random bits as a function of a key and
// a counter, so that a mask is recomputed where it is needed and never stored.
#pragma once

#include "common.cuh"

struct Words {
    unsigned at[4];
};

// Words 4 four to 4 four + 3 of a stream.
__device__ __forceinline__ Words philox(
    unsigned long long four, unsigned step, unsigned stream, unsigned long long seed
) {
    unsigned x0 = (unsigned)four, x1 = (unsigned)(four >> 32), x2 = step, x3 = stream;
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned high0 = __umulhi(x0, 0xD2511F53u), low0 = x0 * 0xD2511F53u;
        const unsigned high1 = __umulhi(x2, 0xCD9E8D57u), low1 = x2 * 0xCD9E8D57u;
        x0 = high1 ^ x1 ^ k0, x1 = low1, x2 = high0 ^ x3 ^ k1, x3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;  // golden ratio, sqrt(3) - 1
    }
    return {{x0, x1, x2, x3}};
}

// The step of the counter: a launch that a CUDA graph replays adds an offset from memory.
__device__ __forceinline__ unsigned offset_step(unsigned step, const unsigned* step_offset) {
    return step_offset == nullptr ? step : step + *step_offset;
}
