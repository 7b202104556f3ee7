// Rows of a table by index, and the gradient of the table: every row's dy added to the row it was read from.
//
// The gradient is reproducible bit by bit. A stable counting sort of the positions by the row they read takes four
// launches, without atomics: `rank` counts, within chunks of positions, how often a position's row was read before it;
// `count` sums over the chunks for each row; `scan` sums over the rows; `place` writes every position to its place in
// the order. Then `add_segments` sums equal segments of the sorted positions, so that many blocks share a row that was
// read very often, and `join_segments` adds the parts of rows in several segments. All sums run over ascending
// positions.
//
// T is the dtype of the table, I that of the indices; negative ones count from the end.
#include "common.cuh"

using Real = Wide<T>;

constexpr int SEGMENT = 64;  // sorted positions

__device__ __forceinline__ int row_of(I index, int n_rows) {
    const int row = (int)(index % n_rows);
    return row < 0 ? row + n_rows : row;
}

// --- forward: y[position] = weight[indices[position]], one warp per row -------------------------------------

extern "C" __global__ void embedding(
    const T* __restrict__ weight, const I* __restrict__ indices, T* __restrict__ y, long long n_positions,
    int n_rows, int n
) {
    const long long position = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (position >= n_positions) return;
    constexpr int N = PER_16_BYTES<T>;
    const T* from = weight + (long long)row_of(indices[position], n_rows) * n;
    T* to = y + position * n;
    const int lane = threadIdx.x % WARP;
    if (aligned(n * sizeof(T), weight, y))
        for (int i = lane; i < n / N; i += WARP)
            reinterpret_cast<Vector<T, N>*>(to)[i] = reinterpret_cast<const Vector<T, N>*>(from)[i];
    else
        for (int i = lane; i < n; i += WARP) to[i] = from[i];
}

// --- the sort -------------------------------------------------------------------------------------

// counts (chunks, rows), zeros before: how often each chunk reads each row; rank (positions): how often before, in it.
extern "C" __global__ void rank(
    const I* __restrict__ indices, int* counts, int* __restrict__ rank_of, int n_positions, int n_rows, int chunk
) {
    __shared__ int rows[1024];
    const int first = blockIdx.x * chunk, last = min(first + chunk, n_positions);
    int* count = counts + (long long)blockIdx.x * n_rows;
    for (int start = first; start < last; start += blockDim.x) {
        const int position = start + threadIdx.x, here = min((int)blockDim.x, last - start);
        const int row = position < last ? row_of(indices[position], n_rows) : -1;
        rows[threadIdx.x] = row;
        __syncthreads();
        int before = 0;
        bool final = true;
        for (int i = 0; i < here; ++i) {
            before += i < (int)threadIdx.x && rows[i] == row;
            final = final && !(i > (int)threadIdx.x && rows[i] == row);
        }
        if (position < last) before += count[row], rank_of[position] = before;
        __syncthreads();  // all threads have read the counts of the earlier positions
        if (position < last && final) count[row] = before + 1;  // read after the next barrier
    }
}

// counts become how often each row is read in earlier chunks; totals (rows): how often in all.
extern "C" __global__ void count(int* counts, int* __restrict__ totals, int chunks, int n_rows) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n_rows) return;
    int total = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
        int* at = counts + (long long)chunk * n_rows + row;
        const int here = *at;
        *at = total;
        total += here;
    }
    totals[row] = total;
}

// starts (rows + 1): the sums of the totals before each row. One block of 1024 threads, each with adjacent rows.
extern "C" __global__ void __launch_bounds__(1024, 1) scan(
    const int* __restrict__ totals, int* __restrict__ starts, int n_rows
) {
    __shared__ int sums[1024];
    const int each = (n_rows + blockDim.x - 1) / blockDim.x;
    const int first = min((int)threadIdx.x * each, n_rows), last = min(first + each, n_rows);
    int own = 0;
    for (int row = first; row < last; ++row) own += totals[row];
    sums[threadIdx.x] = own;
    __syncthreads();
    for (int distance = 1; distance < (int)blockDim.x; distance *= 2) {
        const int other = (int)threadIdx.x >= distance ? sums[threadIdx.x - distance] : 0;
        __syncthreads();
        sums[threadIdx.x] += other;
        __syncthreads();
    }
    int before = sums[threadIdx.x] - own;
    for (int row = first; row < last; ++row) {
        starts[row] = before;
        before += totals[row];
    }
    if ((int)threadIdx.x == (int)blockDim.x - 1) starts[n_rows] = sums[threadIdx.x];
}

// order (positions): the positions that read row 0, ascending, then those that read row 1 ...
extern "C" __global__ void place(
    const I* __restrict__ indices, const int* __restrict__ counts, const int* __restrict__ rank_of,
    const int* __restrict__ starts, int* __restrict__ order, int n_positions, int n_rows, int chunk
) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_positions) return;
    const int row = row_of(indices[i], n_rows);
    order[starts[row] + counts[(long long)(i / chunk) * n_rows + row] + rank_of[i]] = i;
}

// --- the sums: a thread sums one column ------------------------------------------------

// The sum of a row whose positions are all in this segment is complete. The sum of a row that begins before it goes to
// head (segments, n), that of a row that continues after it to tail. dweight is zero before.
extern "C" __global__ void add_segments(
    const T* __restrict__ dy, const I* __restrict__ indices, const int* __restrict__ order,
    const int* __restrict__ starts, Real* __restrict__ dweight, Real* __restrict__ head, Real* __restrict__ tail,
    int n_positions, int n_rows, int n
) {
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= n) return;
    const long long segment = blockIdx.x;
    const int first = blockIdx.x * SEGMENT, last = min(first + SEGMENT, n_positions);
    for (int i = first; i < last;) {
        const int row = row_of(indices[order[i]], n_rows), start = starts[row], end = starts[row + 1];
        Real sum = 0;
#pragma unroll 4
        for (const int stop = min(end, last); i < stop; ++i) sum += widen(dy[(long long)order[i] * n + column]);
        if (start >= first && end <= last) dweight[(long long)row * n + column] = sum;
        else if (start >= first) tail[segment * n + column] = sum;
        else head[segment * n + column] = sum;
    }
}

// A row that begins in this segment and ends in a later one: its tail here, and the heads of all that follow.
extern "C" __global__ void join_segments(
    const I* __restrict__ indices, const int* __restrict__ order, const int* __restrict__ starts,
    Real* __restrict__ dweight, const Real* __restrict__ head, const Real* __restrict__ tail, int n_positions,
    int n_rows, int n
) {
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    const int first = blockIdx.x * SEGMENT, last = min(first + SEGMENT, n_positions);
    const int row = row_of(indices[order[last - 1]], n_rows);
    if (column >= n || starts[row] < first || starts[row + 1] <= last) return;
    Real sum = tail[(long long)blockIdx.x * n + column];
    for (long long segment = blockIdx.x + 1; segment * SEGMENT < starts[row + 1]; ++segment)
        sum += head[segment * n + column];
    dweight[(long long)row * n + column] = sum;
}
