// The instructions of tensor cores, one function each, and their emulation in C++ for the tests on a CPU.
//
// Layouts of fragments: PTX ISA, "Warp-level matrix instructions", mma.m16n8k16 and ldmatrix. With g = lane / 4 and
// t = lane % 4, and two 16-bit numbers in each 32-bit register, the lower one first:
//   A (16, 16): a[0] row g, columns 2t, 2t + 1; a[1] row g + 8; a[2] row g, columns 2t + 8, 2t + 9; a[3] row g + 8
//   B (16, 8):  b[0] rows 2t, 2t + 1 of column g; b[1] rows 2t + 8, 2t + 9
//   C (16, 8):  c[0], c[1] row g, columns 2t, 2t + 1; c[2], c[3] row g + 8
#pragma once

#include "common.cuh"

using Register = unsigned int;

#ifdef CUDA_EMU

inline float lower_half(Register two, __half) { return __half2float(__half{(unsigned short)two}); }
inline float lower_half(Register two, __nv_bfloat16) { return __bfloat162float(__nv_bfloat16{(unsigned short)two}); }

// d = a b + c over a warp; Number is the type of a and b.
template <typename Number>
inline void mma_m16n8k16(float (&d)[4], const Register (&a)[4], const Register (&b)[2], const float (&c)[4]) {
    struct Fragments { Register a[4], b[2]; } mine;
    std::memcpy(mine.a, a, sizeof a);
    std::memcpy(mine.b, b, sizeof b);
    emulation::Exchange<Fragments> all(ALL_LANES, mine);
    const int g = emulation::lane() / 4, t = emulation::lane() % 4;
    for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        float sum = c[i];
        for (int k = 0; k < 16; ++k) {
            const Register from_a = all[(row % 8) * 4 + k % 8 / 2].a[row / 8 + 2 * (k / 8)];
            const Register from_b = all[column * 4 + k % 8 / 2].b[k / 8];
            sum += lower_half(from_a >> 16 * (k % 2), Number{}) * lower_half(from_b >> 16 * (k % 2), Number{});
        }
        d[i] = sum;
    }
}

// COUNT 8x8 matrices of 16-bit numbers from shared memory; lane 8i + r gives the address of row r of matrix i.
template <int COUNT, bool TRANSPOSED> inline void ldmatrix(Register (&to)[COUNT], const void* row) {
    emulation::Exchange<const unsigned short*> rows(ALL_LANES, static_cast<const unsigned short*>(row));
    const int g = emulation::lane() / 4, t = emulation::lane() % 4;
    for (int i = 0; i < COUNT; ++i) {
        if (reinterpret_cast<std::uintptr_t>(rows[8 * i + g]) % 16) emulation::fail("ldmatrix: a row is not aligned to 16 bytes");
        const Register first = TRANSPOSED ? rows[8 * i + 2 * t][g] : rows[8 * i + g][2 * t];
        const Register second = TRANSPOSED ? rows[8 * i + 2 * t + 1][g] : rows[8 * i + g][2 * t + 1];
        to[i] = first | second << 16;
    }
}

// Copy 16 or 4 bytes from global to shared memory, or zeros unless `inside`; complete after cp_async_wait and a
// barrier.
inline void cp_async_16(void* shared, const void* global, bool inside = true) {
    emulation::copy_later(shared, inside ? global : nullptr, 16);
}
inline void cp_async_4(void* shared, const void* global, bool inside = true) {
    emulation::copy_later(shared, inside ? global : nullptr, 4);
}
inline void cp_async_commit() { emulation::close_group(); }
template <int PENDING> inline void cp_async_wait() { emulation::finish_groups(PENDING); }

#else

template <typename Number>
__device__ __forceinline__ void mma_m16n8k16(
    float (&d)[4], const Register (&a)[4], const Register (&b)[2], const float (&c)[4]
);

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(
    float (&d)[4], const Register (&a)[4], const Register (&b)[2], const float (&c)[4]
) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3])
    );
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(
    float (&d)[4], const Register (&a)[4], const Register (&b)[2], const float (&c)[4]
) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3])
    );
}

__device__ __forceinline__ unsigned shared_address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

template <int COUNT, bool TRANSPOSED>
__device__ __forceinline__ void ldmatrix(Register (&to)[COUNT], const void* row) {
    static_assert(COUNT == 2 || COUNT == 4, "two or four matrices");
    const unsigned address = shared_address(row);
    if constexpr (COUNT == 4 && TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address) : "memory");
    else if constexpr (COUNT == 4)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address) : "memory");
    else if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1]) : "r"(address) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1]) : "r"(address) : "memory");
}

__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool inside = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(inside ? 16 : 0) : "memory");
}
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, bool inside = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(inside ? 4 : 0) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

#endif

// Two numbers as the halves of a register, `low` in the lower one.
template <typename Number> __device__ __forceinline__ Register pack(float low, float high) {
    const Vector<Number, 2> two = {{narrow<Number>(low), narrow<Number>(high)}};
    return *reinterpret_cast<const Register*>(&two);
}
