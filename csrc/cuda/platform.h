// All that differs between a GPU and the emulator. Kernels are written once: nvcc compiles them for GPUs, and
// a C++ compiler against emulator.h, which runs a block's threads in turns on the CPU.
#pragma once

#include <tuple>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "cuda/emulator.h"
#endif

#include "cuda/error.h"

namespace rwkv::cuda {

#if defined(__CUDACC__)
/// Allocations inside a larger one; the emulator keeps them apart, so that it sees every step outside one.
constexpr bool kSeparateAllocations = false;
#else
constexpr bool kSeparateAllocations = true;
#endif

/// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#if defined(__CUDACC__)
    extern __shared__ __align__(16) unsigned char rwkv_shared[];
    return reinterpret_cast<T*>(rwkv_shared);
#else
    return static_cast<T*>(emulator::shared_memory());
#endif
}

// Launches that overlap (compute capability 9.0 and newer, of the device and of the code; elsewhere each
// waits for the one before). A kernel that is started with launch_early() may run while the kernel before
// still does: until wait_for_previous() it may touch what no kernel of the pass writes (weights), and every
// block has to wait, because the next kernel counts on what is two kernels back being done too. What a kernel
// before has written is read by plain loads.

/// Whether kernels overlap: what is done before waiting costs no time.
__device__ __forceinline__ constexpr bool kernels_overlap() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    return false;
#else
    return true;
#endif
}

/// Lets the next kernel's blocks start wherever there is room.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Returns when all kernels before are done; a barrier for the block. One warp asks: asking takes turns from
/// warps that work.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (threadIdx.x < 32)
        asm volatile("griddepcontrol.wait;" ::: "memory");
#elif !defined(__CUDACC__)
    emulator::wait_for_kernels();
#endif
    __syncthreads();
}

/// For each of the four lowest nibbles of `selector`: the byte of x (0 to 3) or y (4 to 7) that its lower
/// three bits name; if its bit 3 is set, that byte's sign eight times.
__device__ __forceinline__ unsigned bytes_or_signs(unsigned x, unsigned y, unsigned selector) {
    unsigned result = 0;
#if defined(__CUDACC__)
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(y), "r"(selector));
#else
    for (int i = 0; i < 4; ++i) {
        const unsigned nibble = selector >> (4 * i), byte = (nibble & 4 ? y : x) >> (8 * (nibble & 3)) & 255;
        result |= (nibble & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
#endif
    return result;
}

/// Sixteen bytes of weights. Stays where it is written: before a wait, that is.
__device__ __forceinline__ uint4 load16_early(const void* p) {
#if defined(__CUDACC__)
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
#else
    return *static_cast<const uint4*>(p);
#endif
}

/// Four bytes likewise.
__device__ __forceinline__ unsigned load4_early(const void* p) {
    unsigned v;
#if defined(__CUDACC__)
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
#else
    std::memcpy(&v, p, sizeof v);
#endif
    return v;
}

/// Four bytes to shared memory; there after wait_for_copies(), for the thread that asked for them.
__device__ __forceinline__ void copy4(float* shared, const float* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
                 "l"(from)
                 : "memory");
#else
    *shared = *from;
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/// Has the compiler compute or load `value` here, not where it is used: before a wait, that is.
template <class T>
__device__ __forceinline__ void pin(T& value) {
#if defined(__CUDACC__)
    if constexpr (std::is_same_v<T, float>)
        asm volatile("" : "+f"(value)::"memory");
    else if constexpr (sizeof(T) == 8)
        asm volatile("" : "+l"(value)::"memory");
    else
        asm volatile("" : "+r"(value)::"memory");
#else
    (void)value;
#endif
}

/// Brings the line of `p` near.
__device__ __forceinline__ void prefetch(const void* p) {
#if defined(__CUDACC__)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
    (void)p;
#endif
}

/// Brings a range near; `p` and `bytes` are multiples of 16. Nothing before compute capability 9.0.
__device__ __forceinline__ void prefetch_range(const void* p, unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#else
    (void)p, (void)bytes;
#endif
}

/// The compute capability, times ten, that the code of `kernel` for this thread's device is written for: what
/// __CUDA_ARCH__ was, which is less than the device's where the driver compiles old PTX for a new GPU. Throws
/// DeviceError(RWKV_CUDA_UNAVAILABLE) when the library has none.
template <class... P>
int code_capability(void (*kernel)(P...)) {
#if defined(__CUDACC__)
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        throw DeviceError(RWKV_CUDA_UNAVAILABLE,
                          std::string("this build has no code for the GPU: ") + cudaGetErrorString(error));
    }
    return attributes.ptxVersion;
#else
    (void)kernel;
    return emulator::code_capability();
#endif
}

struct Grid {
    unsigned x = 1, y = 1;
};

/// Starts `kernel` on a stream. `threads` is a multiple of 32. `early`: without waiting for the kernel
/// before.
template <class... P>
void launch(bool early, void (*kernel)(P...), Grid grid, int threads, size_t shared_bytes,
            cudaStream_t stream, std::type_identity_t<P>... arguments) {
#if defined(__CUDACC__)
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    cudaLaunchAttribute overlap;
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid.x, grid.y);
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = early ? 1 : 0;
    check(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers),
          "a kernel cannot be started");
#else
    check(emulator::launch(early, grid.x, grid.y, unsigned(threads), shared_bytes, stream,
                           [=] { kernel(arguments...); }),
          "a kernel cannot be started");
#endif
}

/// The same for kernels that do not overlap.
template <class... P>
void launch(void (*kernel)(P...), Grid grid, int threads, size_t shared_bytes, cudaStream_t stream,
            std::type_identity_t<P>... arguments) {
    launch(false, kernel, grid, threads, shared_bytes, stream, arguments...);
}

} // namespace rwkv::cuda
