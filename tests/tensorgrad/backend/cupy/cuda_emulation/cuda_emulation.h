// CUDA's language on a CPU, as far as the kernels of tensorgrad/backend/cupy speak it, so that the very same .cu files
// run in the tests: every thread of a block is a fiber, and blocks run one after the other.
//
// It finds wrong arithmetic, wrong indices, values read from shared memory that nobody wrote (it is NaN before every
// block), barriers that not every thread reaches, and copies of cp.async that are used before they were waited for.
//
// Missing barriers show in what differs between orders of the threads: from the first to the last, from the last to the
// first, or in a random order, in which warps take turns at shuffles and the like. What it cannot find are races
// between threads that really run at the same time, such as those of one warp, or of two blocks.
#ifndef CUDA_EMULATION_H  // rather than #pragma once: the header is precompiled
#define CUDA_EMULATION_H

#include <setjmp.h>
#include <ucontext.h>

#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const
#define __grid_constant__
// All of a kernel's static shared memory lies in one section: see `poison`. Not in templates: their static variables
// go elsewhere. Declare it in the kernel and hand it on.
#define __shared__ static __attribute__((section("emulated_shared")))
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulation::dynamic_shared)

extern "C" __attribute__((weak)) unsigned char __start_emulated_shared[];
extern "C" __attribute__((weak)) unsigned char __stop_emulated_shared[];

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct uint3 { unsigned x, y, z; };

namespace emulation {

enum State { READY, AT_WARP, AT_BLOCK, DONE };

struct Copy { void* to; const void* from; std::size_t n; };

struct Fiber {
    static constexpr std::size_t STACK = 256 * 1024;
    std::unique_ptr<char[]> stack{new char[STACK]};
    ucontext_t start;
    jmp_buf place;
    bool started = false;
    State state = DONE;
    uint3 index{};
    unsigned number = 0, mask = 0;
    const void* offered = nullptr;  // what the other lanes of its warp may read
    std::vector<std::vector<Copy>> groups{1};  // of cp.async; the last one is open
};

inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Fiber* current = nullptr;
inline unsigned n_threads = 0;
inline const std::function<void()>* body = nullptr;
inline jmp_buf scheduler;
inline unsigned char* dynamic_shared = nullptr;
inline uint3 block_index{};
inline dim3 block_size, grid_size;
inline char error[256] = "";
inline const char* skipped_file = "";  // a barrier that is left out, to show that this is found
inline int skipped_line = 0;
inline unsigned random_state = 0;

__attribute__((noinline)) inline void pause() {
    if (!_setjmp(current->place)) _longjmp(scheduler, 1);
}

// The thread goes no further, and the launch fails.
inline void fail(const char* message) {
    if (!*error)
        std::snprintf(error, sizeof error, "block (%u, %u, %u), thread %u: %s", block_index.x, block_index.y,
                      block_index.z, current->number, message);
    current->state = DONE;
    for (;;) pause();
}

inline void live() {
    for (;;) {
        (*body)();
        current->state = DONE;
        pause();
    }
}

__attribute__((noinline)) inline void resume(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = Fiber::STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, live, 0);
    setcontext(&fiber.start);
}

inline unsigned lane() { return current->number % 32; }
inline Fiber& neighbour(unsigned lane) { return *fibers[current->number / 32 * 32 + lane]; }

inline unsigned lanes_of(unsigned warp) {
    const unsigned n = n_threads - warp * 32;
    return n >= 32 ? ~0u : (1u << n) - 1;
}

inline void wait_for_warp(unsigned mask) {
    current->mask = mask & lanes_of(current->number / 32);
    if (!(current->mask >> lane() & 1)) fail("a warp operation of which the thread itself is not part");
    current->state = AT_WARP;
    pause();
}

// What every lane of the mask offers, to be read by all of them while this lives.
template <typename Value> struct Exchange {
    Value mine;
    unsigned mask;
    Exchange(unsigned lanes, const Value& value) : mine(value), mask(lanes) {
        current->offered = &mine;
        wait_for_warp(mask);
    }
    ~Exchange() { wait_for_warp(mask); }
    const Value& operator[](unsigned lane) const {
        if (!(current->mask >> (lane % 32) & 1)) fail("reads from a lane that is not part of the operation");
        return *static_cast<const Value*>(neighbour(lane % 32).offered);
    }
};

inline void copy_later(void* to, const void* from, std::size_t n) { current->groups.back().push_back({to, from, n}); }
inline void close_group() { current->groups.emplace_back(); }
inline void finish_groups(unsigned pending) {
    auto& groups = current->groups;
    while (groups.size() - 1 > pending) {
        for (const Copy& copy : groups.front()) {
            if (copy.from) std::memcpy(copy.to, copy.from, copy.n);
            else std::memset(copy.to, 0, copy.n);
        }
        groups.erase(groups.begin());
    }
}

// Let the lanes go on whose partners have all arrived.
inline bool release_warp(unsigned warp) {
    bool any = false;
    for (unsigned l = 0; l < 32 && warp * 32 + l < n_threads; ++l) {
        Fiber& fiber = *fibers[warp * 32 + l];
        if (fiber.state != AT_WARP) continue;
        bool all = true;
        for (unsigned other = 0; other < 32; ++other)
            if (fiber.mask >> other & 1) {
                const Fiber& partner = *fibers[warp * 32 + other];
                all = all && partner.state == AT_WARP && partner.mask == fiber.mask;
            }
        if (!all) continue;
        const unsigned mask = fiber.mask;
        for (unsigned other = 0; other < 32; ++other)
            if (mask >> other & 1) fibers[warp * 32 + other]->state = READY;
        any = true;
    }
    return any;
}

// Until every lane waits; whether some of them can go on.
inline bool step_warp(unsigned warp, bool backwards) {
    for (unsigned i = 0; i < 32; ++i) {
        const unsigned number = warp * 32 + (backwards ? 31 - i : i);
        if (number < n_threads && fibers[number]->state == READY) resume(*fibers[number]);
    }
    return !*error && release_warp(warp);
}

inline unsigned random_below(unsigned n) {
    random_state = random_state * 1664525u + 1013904223u;
    return unsigned((unsigned long long)(random_state >> 8) * n >> 24);
}

// Until every warp waits for the block, or is done. order: 0 forwards, 1 backwards, any other is the seed of a random one.
inline void run_warps(unsigned order) {
    const unsigned warps = (n_threads + 31) / 32;
    if (order < 2) {
        for (unsigned i = 0; i < warps && !*error; ++i)
            while (step_warp(order == 1 ? warps - 1 - i : i, order == 1)) {}
        return;
    }
    std::vector<unsigned> going(warps);
    for (unsigned i = 0; i < warps; ++i) going[i] = i;
    while (!going.empty() && !*error) {
        const unsigned i = random_below(unsigned(going.size()));
        bool on = true;
        for (unsigned steps = random_below(16) + 1; steps > 0 && on; --steps) on = step_warp(going[i], random_below(2));
        if (!on) going.erase(going.begin() + i);
    }
}

inline void run_block(unsigned order) {
    for (;;) {
        run_warps(order);
        if (*error) return;
        unsigned done = 0, waiting = 0;
        for (unsigned i = 0; i < n_threads; ++i) {
            done += fibers[i]->state == DONE;
            waiting += fibers[i]->state == AT_BLOCK;
        }
        if (done == n_threads) return;
        if (waiting < n_threads) {
            std::snprintf(error, sizeof error,
                          "block (%u, %u, %u): stuck: of %u threads %u are done, %u wait for the block, %u for their warp",
                          block_index.x, block_index.y, block_index.z, n_threads, done, waiting,
                          n_threads - done - waiting);
            return;
        }
        for (unsigned i = 0; i < n_threads; ++i) fibers[i]->state = READY;
    }
}

// One launch: `call` runs the kernel for one thread. Returns what went wrong, or nullptr.
inline const char* launch(const unsigned* sizes, std::size_t shared, unsigned order, const std::function<void()>& call) {
    static constexpr std::size_t GUARD = 256;
    grid_size = {sizes[0], sizes[1], sizes[2]};
    block_size = {sizes[3], sizes[4], sizes[5]};
    n_threads = block_size.x * block_size.y * block_size.z;
    while (fibers.size() < (n_threads + 31) / 32 * 32) fibers.push_back(std::make_unique<Fiber>());
    std::vector<unsigned char> memory(shared + GUARD + 128);
    dynamic_shared = memory.data() + (128 - reinterpret_cast<std::uintptr_t>(memory.data()) % 128) % 128;
    body = &call;
    *error = 0;
    random_state = order;
    const std::size_t blocks = std::size_t(grid_size.x) * grid_size.y * grid_size.z;
    for (std::size_t i = 0; i < blocks; ++i) {
        const std::size_t b = order == 1 ? blocks - 1 - i : i;
        block_index = {unsigned(b % grid_size.x), unsigned(b / grid_size.x % grid_size.y),
                       unsigned(b / grid_size.x / grid_size.y)};
        const int left = order > 2 ? order % 2 - 1 : 0xff;  // in memory that nobody wrote: NaN, or in some orders zeros
        std::memset(memory.data(), 0xff, memory.size());
        std::memset(dynamic_shared, left, shared);
        if (__start_emulated_shared != nullptr)
            std::memset(__start_emulated_shared, left, __stop_emulated_shared - __start_emulated_shared);
        for (unsigned t = 0; t < n_threads; ++t) {
            Fiber& fiber = *fibers[t];
            fiber.state = READY;
            fiber.number = t;
            fiber.index = {t % block_size.x, t / block_size.x % block_size.y, t / block_size.x / block_size.y};
            fiber.groups.assign(1, {});
        }
        run_block(order);
        for (std::size_t j = 0; j < GUARD / 2 && !*error; ++j)
            if (dynamic_shared[shared + j] != 0xff)
                std::snprintf(error, sizeof error, "block (%u, %u, %u): wrote beyond its %zu bytes of shared memory",
                              block_index.x, block_index.y, block_index.z, shared);
        if (*error) {
            fibers.clear();  // some stand in the middle of a kernel
            return error;
        }
    }
    return nullptr;
}

}  // namespace emulation

#define threadIdx (emulation::current->index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)
constexpr int warpSize = 32;

// --- barriers, and operations of a warp -----------------------------------------------------------

namespace emulation {
inline void barrier(const char* file, int line) {
    if (line == skipped_line && std::strstr(file, skipped_file) != nullptr) return;
    current->state = AT_BLOCK;
    pause();
}
}  // namespace emulation
#define __syncthreads() emulation::barrier(__FILE__, __LINE__)
inline void __syncwarp(unsigned mask = ~0u) { emulation::wait_for_warp(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename Value> inline Value emulated_shuffle(unsigned mask, const Value& value, int source) {
    emulation::Exchange<Value> all(mask, value);
    return all[source];
}
template <typename Value> inline Value __shfl_sync(unsigned mask, Value value, int source, int width = 32) {
    return emulated_shuffle(mask, value, int(emulation::lane()) / width * width + (source & (width - 1)));
}
template <typename Value> inline Value __shfl_xor_sync(unsigned mask, Value value, int flip, int width = 32) {
    const int lane = emulation::lane(), source = lane ^ flip;
    return emulated_shuffle(mask, value, source / width > lane / width ? lane : source);
}
template <typename Value> inline Value __shfl_up_sync(unsigned mask, Value value, unsigned by, int width = 32) {
    const int lane = emulation::lane(), source = lane - int(by);
    return emulated_shuffle(mask, value, source < lane / width * width ? lane : source);
}
template <typename Value> inline Value __shfl_down_sync(unsigned mask, Value value, unsigned by, int width = 32) {
    const int lane = emulation::lane(), source = lane + int(by);
    return emulated_shuffle(mask, value, source >= (lane / width + 1) * width ? lane : source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    emulation::Exchange<int> all(mask, predicate);
    unsigned votes = 0;
    for (unsigned l = 0; l < 32; ++l)
        if (emulation::current->mask >> l & 1 && all[l]) votes |= 1u << l;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// --- atomics: one thread runs at a time ------------------------------------------------------------

template <typename Number, typename Part> inline Number atomicAdd(Number* at, Part x) {
    const Number before = *at;
    *at = Number(before + x);
    return before;
}
template <typename Number, typename Part> inline Number atomicMax(Number* at, Part x) {
    const Number before = *at;
    if (Number(x) > before) *at = Number(x);
    return before;
}
template <typename Number, typename Part> inline Number atomicExch(Number* at, Part x) {
    const Number before = *at;
    *at = Number(x);
    return before;
}
template <typename Number, typename A, typename B> inline Number atomicCAS(Number* at, A compare, B value) {
    const Number before = *at;
    if (before == Number(compare)) *at = Number(value);
    return before;
}
inline unsigned atomicInc(unsigned* at, unsigned last) {
    const unsigned before = *at;
    *at = before >= last ? 0 : before + 1;
    return before;
}

// --- numbers ----------------------------------------------------------------------------------------

struct __half { unsigned short bits; };
struct __nv_bfloat16 { unsigned short bits; };

inline float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
inline float __int_as_float(int bits) { return __uint_as_float(unsigned(bits)); }
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }

inline float __half2float(__half x) { _Float16 y; std::memcpy(&y, &x.bits, 2); return float(y); }
inline __half __float2half_rn(float x) { const _Float16 y = _Float16(x); __half h; std::memcpy(&h.bits, &y, 2); return h; }
inline __half __float2half(float x) { return __float2half_rn(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const unsigned bits = __float_as_uint(x);
    if (std::isnan(x)) return {0x7fff};
    return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <typename Value> inline Value __ldg(const Value* from) { return *from; }
template <typename Value> inline Value __ldcs(const Value* from) { return *from; }
template <typename Value> inline Value __ldcg(const Value* from) { return *from; }
template <typename Value> inline void __stcs(Value* to, Value x) { *to = x; }
template <typename Value> inline void __stcg(Value* to, Value x) { *to = x; }

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }

inline void sincospi(double x, double* sine, double* cosine) {
    *sine = std::sin(x * 3.14159265358979323846);
    *cosine = std::cos(x * 3.14159265358979323846);
}
inline void sincospif(float x, float* sine, float* cosine) {
    *sine = float(std::sin(x * 3.14159265358979323846));
    *cosine = float(std::cos(x * 3.14159265358979323846));
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

#endif
