// A model that librwkv_cuda has opened, shared by what uses it.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/turnstile.h"
#include "device/cuda_library.h"
#include "model/model.h"

namespace rwkv {

/// The blocks from `first` on and the head of a model on a device, and the blocks before on the CPU, in
/// `host`. Closed when the last that shares it goes.
class CudaSession {
  public:
    /// `weights` are those of the blocks from `first` on. `host` is null when first is 0.
    CudaSession(const CudaLibrary& library, const Config& config, int first, std::unique_ptr<Model> host,
                const rwkv_cuda_weights& weights, int device);
    ~CudaSession();
    CudaSession(const CudaSession&) = delete;
    CudaSession& operator=(const CudaSession&) = delete;

    /// One call at a time: f(reason, its size) returns a status. Waits for its turn, which `poll` can end.
    using Work = std::function<rwkv_cuda_status(char*, size_t)>;
    void call(const std::function<bool()>& poll, const Work& f);

    /// Frees a state with the next call. Whoever drops one (Python, at any moment) must not wait for an
    /// evaluation: that may be waiting for the dropper to let it ask for Ctrl-C.
    void drop(rwkv_cuda_state* state) noexcept;

    /// Inside a call: takes the values of a state to come back to, and gives them back.
    rwkv_cuda_status keep(const rwkv_cuda_state* state, char* reason, size_t size);
    rwkv_cuda_status restore(rwkv_cuda_state* state) const;

    const CudaLibrary& library;
    const Config config; ///< of the whole model
    const int first;
    const std::unique_ptr<Model> host;
    const std::vector<StateEntry> entries; ///< of the device's part of a state
    size_t floats = 0;                     ///< of that part
    rwkv_cuda_model* model = nullptr;

  private:
    /// In the child of a fork nothing of the parent's device can be touched, not even freed.
    bool is_foreign() const;
    void free_dropped() noexcept;

    const int process_;
    Turnstile turnstile_;
    std::string failure_; ///< why the device cannot be used any more
    rwkv_cuda_state* kept_ = nullptr;
    std::mutex dropped_mutex_;
    std::vector<rwkv_cuda_state*> dropped_;
};

/// A poll as C asks it, which no exception may leave: it is kept.
struct AskedPoll {
    const std::function<bool()>& poll;
    std::exception_ptr error = nullptr;

    static int ask(void* context) {
        AskedPoll& self = *static_cast<AskedPoll*>(context);
        try {
            return self.poll();
        } catch (...) {
            self.error = std::current_exception();
            return 1;
        }
    }
};

} // namespace rwkv
