// librwkv_cuda, opened at run time: the engine links to nothing of CUDA.
#pragma once

#include <string>
#include <vector>

#include "cuda/abi.h"

namespace rwkv {

class CudaLibrary {
  public:
    /// The library in the file `path`, loaded once and kept. Throws Error(kDevice) when it cannot be loaded,
    /// belongs to another build or lacks a function.
    static const CudaLibrary& at(const std::string& path);

    /// What the driver reports; there may be none. Throws Error(kDevice) with the library's reason.
    std::vector<rwkv_cuda_device> devices() const;

    /// Bytes that copies on a device read and write a second, measured. Throws Error(kDevice),
    /// Error(kMemory).
    double copy_rate(int device) const;

    /// Throws for every status but RWKV_CUDA_OK: Cancelled, Error(kMemory) or Error(kDevice) with `reason`.
    static void check(rwkv_cuda_status status, const char* reason);

    decltype(&rwkv_cuda_required) required;
    decltype(&rwkv_cuda_open) open;
    decltype(&rwkv_cuda_close) close;
    decltype(&rwkv_cuda_model_bytes) model_bytes;
    decltype(&rwkv_cuda_new_state) new_state;
    decltype(&rwkv_cuda_free_state) free_state;
    decltype(&rwkv_cuda_copy_state) copy_state;
    decltype(&rwkv_cuda_state_floats) state_floats;
    decltype(&rwkv_cuda_read_state) read_state;
    decltype(&rwkv_cuda_write_state) write_state;
    decltype(&rwkv_cuda_forward) forward;
    decltype(&rwkv_cuda_forward_batch) forward_batch;
    decltype(&rwkv_cuda_forward_rows) forward_rows;

  private:
    explicit CudaLibrary(const std::string& path);

    decltype(&rwkv_cuda_devices) devices_;
    decltype(&rwkv_cuda_copy_rate) copy_rate_;
};

/// Where the library writes its reason.
struct CudaReason {
    char text[256] = "";
};

} // namespace rwkv
