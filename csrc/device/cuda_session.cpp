#include "device/cuda_session.h"

#include <new>

#include "core/check.h"
#include "core/os.h"
#include "device/cuda_weights.h"

namespace rwkv {

CudaSession::CudaSession(const CudaLibrary& opened, const Config& whole, int first_block,
                         std::unique_ptr<Model> blocks_before, const rwkv_cuda_weights& weights, int device)
    : library(opened), config(whole), first(first_block), host(std::move(blocks_before)),
      entries(state_entries(whole, first_block)), process_(os::process_id()) {
    for (const StateEntry& entry : entries)
        floats += entry.floats();
    Config part = config;
    part.n_layer -= first;
    const rwkv_cuda_config asked = cuda_config(part);
    CudaReason reason;
    const rwkv_cuda_status status =
        library.open(&asked, &weights, device, &model, reason.text, sizeof reason.text);
    CudaLibrary::check(status, reason.text);
    if (library.state_floats(model) != floats) {
        library.close(model);
        throw Error(Fault::kDevice, "CUDA: the library's states are not this model's");
    }
}

CudaSession::~CudaSession() {
    if (is_foreign())
        return;
    free_dropped();
    if (kept_)
        library.free_state(kept_);
    library.close(model);
}

bool CudaSession::is_foreign() const { return process_ != os::process_id(); }

void CudaSession::call(const std::function<bool()>& poll, const Work& f) {
    require(!is_foreign(), Fault::kDevice,
            "CUDA: a model on a GPU cannot be used by a fork of the process that loaded it");
    const Turnstile::Turn turn(turnstile_, poll);
    require(failure_.empty(), Fault::kDevice, failure_);
    free_dropped();
    CudaReason reason;
    const rwkv_cuda_status status = f(reason.text, sizeof reason.text);
    try {
        CudaLibrary::check(status, reason.text);
    } catch (const Error& e) {
        if (status == RWKV_CUDA_FAILED)
            failure_ = std::string(e.what()) + ": the model has to be loaded again";
        throw;
    }
}

void CudaSession::drop(rwkv_cuda_state* state) noexcept {
    if (is_foreign()) // and the mutex may be that of a thread which the child does not have
        return;
    const std::lock_guard<std::mutex> held(dropped_mutex_);
    try {
        dropped_.push_back(state);
    } catch (const std::bad_alloc&) { // it stays until the model goes
    }
}

void CudaSession::free_dropped() noexcept {
    std::vector<rwkv_cuda_state*> all;
    {
        const std::lock_guard<std::mutex> held(dropped_mutex_);
        all.swap(dropped_);
    }
    for (rwkv_cuda_state* state : all)
        library.free_state(state);
}

rwkv_cuda_status CudaSession::keep(const rwkv_cuda_state* state, char* reason, size_t size) {
    if (!kept_)
        if (const auto status = library.new_state(model, &kept_, reason, size); status != RWKV_CUDA_OK)
            return status;
    return library.copy_state(kept_, state, reason, size);
}

rwkv_cuda_status CudaSession::restore(rwkv_cuda_state* state) const {
    CudaReason reason;
    return library.copy_state(state, kept_, reason.text, sizeof reason.text);
}

} // namespace rwkv
