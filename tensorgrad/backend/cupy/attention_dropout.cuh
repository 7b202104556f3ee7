// Dropout of attention's weights: the mask is recomputed wherever it is needed, and never stored.
//
// Weight (i, j) of head h, of all heads in the batch, is element e = (h T + i) S + j of a Philox stream, as in math.py:
// word e % 4 of block e / 4. A block costs some sixty instructions and serves four adjacent weights, so the lanes that
// hold these four share it: each lane computes one block, and the four bits of each block are exchanged by shuffles.
#pragma once

#include "philox.cuh"

struct WeightDropout {
    unsigned threshold;  // a weight is dropped where its word is below
    float scale;         // of the weights that are kept
    unsigned long long seed;
    unsigned stream, step;
    int n_key;

    // Bit i: whether word i of the block that holds element e keeps its weight.
    __device__ unsigned keep_four(unsigned long long e) const {
        const Words words = philox(e / 4, step, stream, seed);
        unsigned bits = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) bits |= (words.at[i] >= threshold) << i;
        return bits;
    }

    __device__ unsigned keep(unsigned long long e) const { return keep_four(e) >> e % 4 & 1; }

    // For a 16 x 8 result whose rows are queries: bit i says whether to keep c[i]. corner: the element of its first row
    // and column; the column is a multiple of 8.
    __device__ unsigned keep_queries_by_keys(unsigned long long corner) const {
        const int lane = threadIdx.x % WARP;
        const unsigned long long first = corner + (unsigned long long)n_key * (lane / 4) + lane % 4 * 2;
        const unsigned long long second = first + 8ull * n_key;
        if (n_key % 4) return keep(first) | keep(first + 1) << 1 | keep(second) << 2 | keep(second + 1) << 3;
        // An even lane computes the block of the upper row, its odd neighbour that of the lower row.
        const unsigned own = keep_four(lane % 2 ? second : first), other = __shfl_xor_sync(ALL_LANES, own, 1);
        const unsigned upper = lane % 2 ? other : own, lower = lane % 2 ? own : other;
        const int word = lane % 2 * 2;
        return (upper >> word & 3) | (lower >> word & 3) << 2;
    }

    // The same where rows are keys: a block is four rows high, so four lanes, four apart, share it.
    __device__ unsigned keep_keys_by_queries(unsigned long long corner) const {
        const int lane = threadIdx.x % WARP, word = lane / 4 % 4;
        const unsigned long long first = corner + lane / 4 + (unsigned long long)n_key * (lane % 4 * 2);
        unsigned bits = 0;
        if (n_key % 4) {
#pragma unroll
            for (int i = 0; i < 4; ++i) bits |= keep(first + i / 2 * 8 + (unsigned long long)n_key * (i % 2)) << i;
            return bits;
        }
        // The lane with word i computes the block of c[i] for all four lanes.
        const unsigned own = keep_four(first - word + word / 2 * 8 + (unsigned long long)n_key * (word % 2));
#pragma unroll
        for (int i = 0; i < 4; ++i) bits |= (__shfl_sync(ALL_LANES, own, (lane & ~12) | i * 4) >> word & 1) << i;
        return bits;
    }
};
