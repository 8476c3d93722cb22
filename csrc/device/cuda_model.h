// A model on a CUDA device: rwkv::Model's twin, which hands everything to librwkv_cuda.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/state.h"
#include "model/weights.h"

struct rwkv_cuda_state;

namespace rwkv {

class CudaSession;

/// A state in the device's memory. It keeps the model there as long as it lives. All of it may be called from
/// any thread; a copy waits while the model evaluates.
class CudaState {
  public:
    CudaState(std::shared_ptr<CudaSession> session, rwkv_cuda_state* handle)
        : session_(std::move(session)), handle_(handle) {}
    ~CudaState(); ///< waits for nothing
    CudaState(const CudaState&) = delete;
    CudaState& operator=(const CudaState&) = delete;

    std::unique_ptr<CudaState> copy() const;
    /// As of rwkv::State: the canonical form.
    std::vector<State::Entry> export_entries() const;
    void import_entries(const StateArrays& arrays);
    size_t bytes() const;

  private:
    friend class CudaModel;
    std::shared_ptr<CudaSession> session_;
    rwkv_cuda_state* handle_;
};

class CudaModel {
  public:
    /// `library`: the file of librwkv_cuda. The weights of the model file `path` are copied to device number
    /// `device`; the file is closed then. Throws Error: kFormat of the file, kMemory, kDevice.
    CudaModel(const std::string& library, const std::string& path, const Config& config,
              const TensorSpecs& specs, int device);

    const Config& config() const;
    /// Bytes of the device's memory that the model holds.
    size_t device_bytes() const;
    std::unique_ptr<CudaState> new_state() const;

    /// As of rwkv::Model. When the device fails, Error(kDevice), also from every later call.
    using Poll = std::function<bool()>;
    void forward(std::span<const int32_t> tokens, CudaState& state, float* logits, bool all,
                 const Poll& poll);
    void forward_batch(std::span<const int32_t> tokens, std::span<CudaState* const> states, float* logits,
                       const Poll& poll);

  private:
    std::shared_ptr<CudaSession> session_;
};

} // namespace rwkv
