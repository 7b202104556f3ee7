// Dropout of attention's weights: which of them are dropped is drawn anew wherever it is needed, and never stored.
//
// Weight (i, j) of head h, of n heads in the batch, is element e = (h T + i) S + j of a Philox stream, as math.py
// numbers them: word e % 4 of block e / 4. A block costs some sixty instructions and gives four neighbouring weights,
// so the lanes that hold those four share it: each draws one block, and each block's four bits go around by shuffles.
#pragma once

#include "philox.cuh"

struct WeightDropout {
    unsigned threshold;  // a word below it drops its weight
    float scale;         // of what is kept
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
        // An even lane draws for the upper row, its odd neighbour for the lower one; a block is two lanes wide.
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
        // The lane with word i draws the block of everybody's c[i].
        const unsigned own = keep_four(first - word + word / 2 * 8 + (unsigned long long)n_key * (word % 2));
#pragma unroll
        for (int i = 0; i < 4; ++i) bits |= (__shfl_sync(ALL_LANES, own, (lane & ~12) | i * 4) >> word & 1) << i;
        return bits;
    }
};
