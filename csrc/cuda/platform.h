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

/// Throws DeviceError(RWKV_CUDA_UNAVAILABLE) when the library has no code of `kernel` for this thread's
/// device.
template <class... P>
void require_kernel(void (*kernel)(P...)) {
#if defined(__CUDACC__)
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        throw DeviceError(RWKV_CUDA_UNAVAILABLE,
                          std::string("this build has no code for the GPU: ") + cudaGetErrorString(error));
    }
#else
    (void)kernel;
#endif
}

struct Grid {
    unsigned x = 1, y = 1;
};

/// Starts `kernel` on a stream. `threads` is a multiple of 32.
template <class... P>
void launch(void (*kernel)(P...), Grid grid, int threads, size_t shared_bytes, cudaStream_t stream,
            std::type_identity_t<P>... arguments) {
#if defined(__CUDACC__)
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(grid.x, grid.y),
                           dim3(unsigned(threads)), pointers, shared_bytes, stream),
          "a kernel cannot be started");
#else
    check(emulator::launch(grid.x, grid.y, unsigned(threads), shared_bytes, stream,
                           [=] { kernel(arguments...); }),
          "a kernel cannot be started");
#endif
}

} // namespace rwkv::cuda
