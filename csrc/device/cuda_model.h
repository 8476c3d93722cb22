// A model on a CUDA device, all of it or its last blocks: rwkv::Model's twin, which hands to librwkv_cuda
// what is the device's.
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

/// A state in the device's memory, or the last blocks' part of it there and the rest here. It keeps the model
/// there as long as it lives. All of it may be called from any thread; a copy waits while the model
/// evaluates.
class CudaState {
  public:
    /// The state before the first token.
    explicit CudaState(std::shared_ptr<CudaSession> session);
    ~CudaState(); ///< waits for nothing
    CudaState(const CudaState&) = delete;
    CudaState& operator=(const CudaState&) = delete;

    std::unique_ptr<CudaState> copy() const;
    void assign(const CudaState& other); ///< takes over the values of a state of the same model
    /// As of rwkv::State: the canonical form.
    std::vector<State::Entry> export_entries() const;
    void import_entries(const StateArrays& arrays);
    size_t bytes() const;

  private:
    friend class CudaModel;
    std::shared_ptr<CudaSession> session_;
    rwkv_cuda_state* handle_ = nullptr;
    std::unique_ptr<State> host_; ///< of the blocks on the CPU, if there are any
};

/// Where a model is to be.
struct CudaPlace {
    std::string library; ///< the file of librwkv_cuda
    int device = 0;
    int layers = -1;   ///< how many of the last blocks are the device's; -1, or as many as there are: all
    int threads = 1;   ///< of the CPU, for the others
    std::string level; ///< of the CPU; empty: the best
};

class CudaModel {
  public:
    /// The weights of the model file `path` are copied to the device. Throws Error: kFormat of the file,
    /// kMemory, kDevice, kThreads, kArgument.
    CudaModel(const CudaPlace& place, const std::string& path, const Config& config,
              const TensorSpecs& specs);

    const Config& config() const;
    /// Bytes of the device's memory that the model holds.
    size_t device_bytes() const;
    /// Blocks on the device.
    int layers() const;
    /// The CPU's level for the others; empty if there are none.
    std::string level() const;
    std::unique_ptr<CudaState> new_state() const;

    /// As of rwkv::Model. When the device fails, Error(kDevice), also from every later call.
    using Poll = std::function<bool()>;
    void forward(std::span<const int32_t> tokens, CudaState& state, float* logits, bool all,
                 const Poll& poll);
    void forward_batch(std::span<const int32_t> tokens, std::span<CudaState* const> states, float* logits,
                       const Poll& poll);

  private:
    void forward_split(std::span<const int32_t> tokens, std::span<CudaState* const> states, float* logits,
                       bool all, const Poll& poll);

    std::shared_ptr<CudaSession> session_;
};

/// What a device has to hold.
struct CudaRequired {
    std::vector<size_t>
        model;        ///< [n_layer] bytes of the last 1, 2, ... blocks; those of all have the embedding
    size_t state = 0; ///< bytes of a state of all blocks
};
/// By the arithmetic of the library in the file `library`. Asks no device. Throws Error.
CudaRequired cuda_required(const std::string& library, const std::string& path, const Config& config,
                           const TensorSpecs& specs);

} // namespace rwkv
