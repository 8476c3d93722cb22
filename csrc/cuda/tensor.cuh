// What newer GPUs have instructions for, behind one face for all of them and for the emulator: products of
// small integer matrices by a warp, and copies to shared memory that nobody holds registers for.
#pragma once

#include "cuda/platform.h"

namespace rwkv::cuda {

#if defined(__CUDACC__)
/// c = first + a b on Turing's unit: 8 rows, 8 columns, 16 inputs.
__device__ __forceinline__ void multiply_8(int& c0, int& c1, uint32_t a, uint32_t b, int first0, int first1) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %5};"
        : "=r"(c0), "=r"(c1)
        : "r"(a), "r"(b), "r"(first0), "r"(first1));
}
#endif

/// What sums of a lane begin with, in four registers that the compiler takes for four values: knowing better,
/// it would fill four others before every multiplication.
struct SumsBegin {
    int value[4];
    __device__ __forceinline__ explicit SumsBegin(int all) : value{all, all, all, all} {
#pragma unroll
        for (int& each : value)
            pin(each);
    }
};

/// c = first + a b: 16 rows, 8 columns, 16 inputs, exact. Lane 4 i + j has inputs 4 j .. 4 j + 3 of rows i
/// and i + 8 in a0 and a1, of column i in b; and columns 2 j, 2 j + 1 of row i, then of row i + 8, in c.
__device__ __forceinline__ void multiply_16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b,
                                            const int (&first)[4]) {
#if !defined(__CUDACC__)
    const uint32_t a[2] = {a0, a1};
    emulator::mma<16>(c, a, &b, 0);
    for (int i = 0; i < 4; ++i)
        c[i] += first[i];
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, "
        "%10};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a0), "r"(a1), "r"(b), "r"(first[0]), "r"(first[1]), "r"(first[2]), "r"(first[3]));
#else
    multiply_8(c[0], c[1], a0, b, first[0], first[1]);
    multiply_8(c[2], c[3], a1, b, first[2], first[3]);
#endif
}

/// The same for 32 inputs: a[2], a[3] and b.y hold those 16 after a[0], a[1] and b.x.
__device__ __forceinline__ void multiply_32(int (&c)[4], const uint32_t (&a)[4], uint2 b,
                                            const int (&first)[4]) {
#if !defined(__CUDACC__)
    const uint32_t words[2] = {b.x, b.y};
    emulator::mma<32>(c, a, words, 0);
    for (int i = 0; i < 4; ++i)
        c[i] += first[i];
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(first[0]), "r"(first[1]),
          "r"(first[2]), "r"(first[3]));
#else
    int half[4];
    multiply_16(half, a[0], a[1], b.x, first);
    multiply_8(c[0], c[1], a[2], b.y, half[0], half[1]);
    multiply_8(c[2], c[3], a[3], b.y, half[2], half[3]);
#endif
}

/// Whether copies to shared memory are under way while a thread goes on; elsewhere it waits for each.
__device__ __forceinline__ constexpr bool copies_are_asynchronous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    return false;
#else
    return true;
#endif
}

/// Starts to copy 16 or 4 bytes to shared memory. The thread sees them once it has waited, others after a
/// barrier too.
template <int kBytes = 16>
__device__ __forceinline__ void copy_later(void* shared, const void* global) {
    static_assert(kBytes == 16 || kBytes == 4);
#if !defined(__CUDACC__)
    emulator::copy_later(shared, global, kBytes);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const unsigned to = unsigned(__cvta_generic_to_shared(shared));
    if constexpr (kBytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(global) : "memory");
#else
    if constexpr (kBytes == 16)
        *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
    else
        *static_cast<unsigned*>(shared) = *static_cast<const unsigned*>(global);
#endif
}

/// The copies that this thread has started since it last said so are a group.
__device__ __forceinline__ void end_copy_group() {
#if !defined(__CUDACC__)
    emulator::end_copy_group();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits for all groups but the last kLeft.
template <int kLeft>
__device__ __forceinline__ void finish_copy_groups() {
#if !defined(__CUDACC__)
    emulator::finish_copies(kLeft);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

/// Waits for all copies that this thread has started.
__device__ __forceinline__ void finish_copies() {
#if !defined(__CUDACC__)
    emulator::finish_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

} // namespace rwkv::cuda
