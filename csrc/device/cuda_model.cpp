#include "device/cuda_model.h"

#include <algorithm>
#include <climits>
#include <exception>
#include <mutex>

#include "core/check.h"
#include "core/mapped_file.h"
#include "core/os.h"
#include "core/turnstile.h"
#include "cpu/kernels.h"
#include "device/cuda_library.h"
#include "device/cuda_weights.h"

namespace rwkv {

/// The model that the library opened, shared by it and its states: closed when the last of them goes.
class CudaSession {
  public:
    CudaSession(const CudaLibrary& library, const Config& config, const rwkv_cuda_weights& weights,
                int device)
        : library(library), config(config), entries(state_entries(config)) {
        for (const StateEntry& entry : entries)
            floats += entry.floats();
        const rwkv_cuda_config asked = cuda_config(config);
        CudaReason reason;
        const rwkv_cuda_status status =
            library.open(&asked, &weights, device, &model, reason.text, sizeof reason.text);
        CudaLibrary::check(status, reason.text);
        if (library.state_floats(model) != floats) {
            library.close(model);
            throw Error(Fault::kDevice, "CUDA: the library's states are not this model's");
        }
    }
    ~CudaSession() {
        if (!is_foreign()) {
            free_dropped();
            library.close(model);
        }
    }
    CudaSession(const CudaSession&) = delete;
    CudaSession& operator=(const CudaSession&) = delete;

    /// One call into the library at a time: f(reason, its size) returns a status. Waits for its turn, which
    /// `poll` can end.
    template <class F>
    void call(const std::function<bool()>& poll, F f) {
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

    /// Frees a state with the next call. Whoever drops one (Python, at any moment) must not wait for an
    /// evaluation: that may be waiting for the dropper to let it ask for Ctrl-C.
    void drop(rwkv_cuda_state* state) noexcept {
        const std::lock_guard<std::mutex> held(dropped_mutex_);
        try {
            dropped_.push_back(state);
        } catch (const std::bad_alloc&) { // it stays until the model goes
        }
    }

    const CudaLibrary& library;
    const Config config;
    const std::vector<StateEntry> entries;
    size_t floats = 0;
    rwkv_cuda_model* model = nullptr;

  private:
    /// In the child of a fork nothing of the parent's device can be touched, not even freed.
    bool is_foreign() const { return process_ != os::process_id(); }
    void free_dropped() noexcept {
        std::vector<rwkv_cuda_state*> all;
        {
            const std::lock_guard<std::mutex> held(dropped_mutex_);
            all.swap(dropped_);
        }
        for (rwkv_cuda_state* state : all)
            library.free_state(state);
    }

    const int process_ = os::process_id();
    Turnstile turnstile_;
    std::string failure_; ///< why the device cannot be used any more
    std::mutex dropped_mutex_;
    std::vector<rwkv_cuda_state*> dropped_;
};

namespace {

/// A poll as the library asks it, which no exception may leave.
struct Asked {
    const std::function<bool()>& poll;
    std::exception_ptr error;

    static int ask(void* context) {
        Asked& self = *static_cast<Asked*>(context);
        try {
            return self.poll();
        } catch (...) {
            self.error = std::current_exception();
            return 1;
        }
    }
};

std::unique_ptr<CudaState> make_state(const std::shared_ptr<CudaSession>& session) {
    rwkv_cuda_state* handle = nullptr;
    session->call({}, [&](char* reason, size_t size) {
        return session->library.new_state(session->model, &handle, reason, size);
    });
    return std::make_unique<CudaState>(session, handle);
}

std::shared_ptr<CudaSession> open(const std::string& library, const std::string& path, const Config& config,
                                  const TensorSpecs& specs, int device) {
    const CudaLibrary& opened = CudaLibrary::at(library);
    validate(config);
    const MappedFile file(path);
    const Weights weights(file, config, specs, cpu::choose(""));
    return std::make_shared<CudaSession>(opened, config, CudaWeights(weights).all, device);
}

} // namespace

CudaState::~CudaState() { session_->drop(handle_); }

std::unique_ptr<CudaState> CudaState::copy() const {
    auto twin = make_state(session_);
    session_->call({}, [&](char* reason, size_t size) {
        return session_->library.copy_state(twin->handle_, handle_, reason, size);
    });
    return twin;
}

std::vector<State::Entry> CudaState::export_entries() const {
    std::vector<float> all(session_->floats);
    session_->call({}, [&](char* reason, size_t size) {
        return session_->library.read_state(handle_, all.data(), reason, size);
    });
    std::vector<State::Entry> result;
    const float* next = all.data();
    for (const StateEntry& entry : session_->entries) {
        result.push_back({entry.name, entry.shape, std::vector<float>(next, next + entry.floats())});
        next += entry.floats();
    }
    return result;
}

void CudaState::import_entries(const StateArrays& arrays) {
    check_state_arrays(session_->entries, arrays);
    std::vector<float> all;
    all.reserve(session_->floats);
    for (const StateEntry& entry : session_->entries) {
        const auto& [values, count] = arrays.at(entry.name);
        all.insert(all.end(), values, values + count);
    }
    session_->call({}, [&](char* reason, size_t size) {
        return session_->library.write_state(handle_, all.data(), reason, size);
    });
}

size_t CudaState::bytes() const { return session_->floats * sizeof(float); }

CudaModel::CudaModel(const std::string& library, const std::string& path, const Config& config,
                     const TensorSpecs& specs, int device)
    : session_(open(library, path, config, specs, device)) {}

const Config& CudaModel::config() const { return session_->config; }

size_t CudaModel::device_bytes() const {
    size_t bytes = 0;
    session_->call({}, [&](char*, size_t) {
        bytes = session_->library.model_bytes(session_->model);
        return RWKV_CUDA_OK;
    });
    return bytes;
}

std::unique_ptr<CudaState> CudaModel::new_state() const { return make_state(session_); }

void CudaModel::forward(std::span<const int32_t> tokens, CudaState& state, float* logits, bool all,
                        const Poll& poll) {
    check_tokens(session_->config, tokens);
    require(tokens.size() <= INT_MAX, Fault::kArgument, "too many tokens for one call");
    require(state.session_ == session_, Fault::kArgument, "the state belongs to another model");
    Asked asked{poll, nullptr};
    try {
        session_->call(poll, [&](char* reason, size_t size) {
            return session_->library.forward(session_->model, tokens.data(), int(tokens.size()),
                                             state.handle_, logits, all, poll ? Asked::ask : nullptr, &asked,
                                             reason, size);
        });
    } catch (const Cancelled&) {
        if (asked.error)
            std::rethrow_exception(asked.error);
        throw;
    }
}

void CudaModel::forward_batch(std::span<const int32_t> tokens, std::span<CudaState* const> states,
                              float* logits, const Poll& poll) {
    require(tokens.size() == states.size(), Fault::kArgument, "as many tokens as states are needed");
    check_tokens(session_->config, tokens);
    require(tokens.size() <= INT_MAX, Fault::kArgument, "too many tokens for one call");
    std::vector<rwkv_cuda_state*> handles;
    for (const CudaState* state : states) {
        require(state->session_ == session_, Fault::kArgument, "the state belongs to another model");
        require(std::find(handles.begin(), handles.end(), state->handle_) == handles.end(), Fault::kArgument,
                "the same state stands twice in the batch");
        handles.push_back(state->handle_);
    }
    session_->call(poll, [&](char* reason, size_t size) {
        return session_->library.forward_batch(session_->model, tokens.data(), handles.data(),
                                               int(handles.size()), logits, reason, size);
    });
}

} // namespace rwkv
