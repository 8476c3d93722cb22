// What goes wrong on a device, as an exception until abi.cu makes a status of it.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/abi.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "cuda/emulator.h"
#endif

namespace rwkv::cuda {

class DeviceError : public std::runtime_error {
  public:
    DeviceError(rwkv_cuda_status status, const std::string& what)
        : std::runtime_error(what), status_(status) {}
    rwkv_cuda_status status() const { return status_; }

  private:
    rwkv_cuda_status status_;
};

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess)
        throw DeviceError(error == cudaErrorMemoryAllocation ? RWKV_CUDA_NO_MEMORY : RWKV_CUDA_FAILED,
                          std::string(what) + ": " + cudaGetErrorString(error));
}

} // namespace rwkv::cuda
