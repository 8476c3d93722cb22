#include "device/cuda_model.h"

#include <algorithm>
#include <climits>
#include <cstdio>
#include <new>
#include <optional>

#include "core/check.h"
#include "core/mapped_file.h"
#include "cpu/kernels.h"
#include "device/cuda_session.h"
#include "device/cuda_weights.h"

namespace rwkv {
namespace {

Config first_blocks(const Config& config, int count) {
    Config part = config;
    part.n_layer = count;
    return part;
}

std::shared_ptr<CudaSession> open(const CudaPlace& place, const std::string& path, const Config& config,
                                  const TensorSpecs& specs) {
    const CudaLibrary& opened = CudaLibrary::at(place.library);
    validate(config);
    require(place.layers != 0, Fault::kArgument, "no layer is to be on the GPU");
    const int first = place.layers < 0 ? 0 : std::max(0, config.n_layer - place.layers);
    const MappedFile file(path);
    const Weights weights(file, config, specs, cpu::choose(""));
    std::unique_ptr<Model> host;
    if (first > 0)
        host = std::make_unique<Model>(path, first_blocks(config, first), specs, place.threads, place.level);
    return std::make_shared<CudaSession>(opened, config, first, std::move(host),
                                         CudaWeights(weights, first).all, place.device);
}

/// The library has told why in the caller's buffer.
struct Refused {
    rwkv_cuda_status status;
};

} // namespace

CudaState::CudaState(std::shared_ptr<CudaSession> session) : session_(std::move(session)) {
    if (session_->host)
        host_ = std::make_unique<State>(session_->host->config());
    session_->call({}, [&](char* reason, size_t size) {
        return session_->library.new_state(session_->model, &handle_, reason, size);
    });
}

CudaState::~CudaState() {
    if (handle_)
        session_->drop(handle_);
}

std::unique_ptr<CudaState> CudaState::copy() const {
    auto twin = std::make_unique<CudaState>(session_);
    twin->assign(*this);
    return twin;
}

void CudaState::assign(const CudaState& other) {
    require(other.session_ == session_, Fault::kArgument, "the state belongs to another model");
    session_->call({}, [&](char* reason, size_t size) {
        if (host_)
            host_->assign(*other.host_);
        return session_->library.copy_state(handle_, other.handle_, reason, size);
    });
}

std::vector<State::Entry> CudaState::export_entries() const {
    std::vector<float> all(session_->floats);
    std::vector<State::Entry> result;
    session_->call({}, [&](char* reason, size_t size) {
        if (host_)
            result = host_->export_entries();
        return session_->library.read_state(handle_, all.data(), reason, size);
    });
    const float* next = all.data();
    for (const StateEntry& entry : session_->entries) {
        result.push_back({entry.name, entry.shape, std::vector<float>(next, next + entry.floats())});
        next += entry.floats();
    }
    return result;
}

void CudaState::import_entries(const StateArrays& arrays) {
    check_state_arrays(state_entries(session_->config), arrays);
    StateArrays rest = arrays;
    std::vector<float> all;
    all.reserve(session_->floats);
    for (const StateEntry& entry : session_->entries) {
        const auto& [values, count] = arrays.at(entry.name);
        all.insert(all.end(), values, values + count);
        rest.erase(entry.name);
    }
    session_->call({}, [&](char* reason, size_t size) {
        if (host_)
            host_->import_entries(rest);
        return session_->library.write_state(handle_, all.data(), reason, size);
    });
}

size_t CudaState::bytes() const { return session_->floats * sizeof(float) + (host_ ? host_->bytes() : 0); }

CudaModel::CudaModel(const CudaPlace& place, const std::string& path, const Config& config,
                     const TensorSpecs& specs)
    : session_(open(place, path, config, specs)) {}

const Config& CudaModel::config() const { return session_->config; }

int CudaModel::layers() const { return session_->config.n_layer - session_->first; }

std::string CudaModel::level() const { return session_->host ? session_->host->level() : ""; }

size_t CudaModel::device_bytes() const {
    size_t bytes = 0;
    session_->call({}, [&](char*, size_t) {
        bytes = session_->library.model_bytes(session_->model);
        return RWKV_CUDA_OK;
    });
    return bytes;
}

std::unique_ptr<CudaState> CudaModel::new_state() const { return std::make_unique<CudaState>(session_); }

void CudaModel::forward(std::span<const int32_t> tokens, CudaState& state, float* logits, bool all,
                        const Poll& poll) {
    check_tokens(session_->config, tokens);
    require(tokens.size() <= INT_MAX, Fault::kArgument, "too many tokens for one call");
    require(state.session_ == session_, Fault::kArgument, "the state belongs to another model");
    if (session_->host) {
        CudaState* const one = &state;
        return forward_split(tokens, {&one, 1}, logits, all, poll);
    }
    AskedPoll asked{poll};
    try {
        session_->call(poll, [&](char* reason, size_t size) {
            return session_->library.forward(session_->model, tokens.data(), int(tokens.size()),
                                             state.handle_, logits, all, poll ? AskedPoll::ask : nullptr,
                                             &asked, reason, size);
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
    if (session_->host)
        return forward_split(tokens, states, logits, true, poll);
    session_->call(poll, [&](char* reason, size_t size) {
        return session_->library.forward_batch(session_->model, tokens.data(), handles.data(),
                                               int(handles.size()), logits, reason, size);
    });
}

/// The CPU's blocks, then the device's, chunk by chunk. One state: a sequence; else one token for each.
void CudaModel::forward_split(std::span<const int32_t> tokens, std::span<CudaState* const> states,
                              float* logits, bool all, const Poll& poll) {
    CudaSession& session = *session_;
    const CudaLibrary& library = session.library;
    const bool sequence = states.size() == 1;
    std::vector<State*> hosts;
    std::vector<rwkv_cuda_state*> handles;
    for (CudaState* state : states) {
        hosts.push_back(state->host_.get());
        handles.push_back(state->handle_);
    }
    AskedPoll asked{poll};
    const Poll stop = poll ? Poll([&] { return AskedPoll::ask(&asked) != 0; }) : Poll();
    const auto work = [&](char* reason, size_t size) {
        std::optional<State> before;
        if (poll && sequence && tokens.size() > 1) {
            const rwkv_cuda_status status = session.keep(handles[0], reason, size);
            if (status != RWKV_CUDA_OK)
                return status;
            before.emplace(*hosts[0]);
        }
        // without a way back the two parts of a state are of different moments, and the model is of no use
        const auto restored = [&](rwkv_cuda_status status) {
            if (!before)
                return RWKV_CUDA_FAILED;
            hosts[0]->assign(*before);
            return session.restore(handles[0]) == RWKV_CUDA_OK ? status : RWKV_CUDA_FAILED;
        };
        size_t done = 0;
        try {
            session.host->forward_rows(tokens, hosts, stop, [&](const BlockRows& rows) {
                const size_t from = sequence ? 0 : done;
                done += size_t(rows.count);
                const int wanted = all ? rows.count : done == tokens.size() ? 1 : 0;
                const rwkv_cuda_status status = library.forward_rows(
                    session.model, rows.x, rows.v_first, rows.stride, rows.count, handles.data() + from,
                    sequence ? 1 : rows.count, logits, wanted, reason, size);
                if (status != RWKV_CUDA_OK)
                    throw Refused{status};
                logits += size_t(wanted) * size_t(session.config.vocab_size);
            });
        } catch (const Refused& refused) {
            return restored(refused.status);
        } catch (const Cancelled&) {
            return restored(RWKV_CUDA_CANCELLED);
        } catch (const std::bad_alloc&) {
            std::snprintf(reason, size, "%s", "the host has no memory left");
            return restored(RWKV_CUDA_NO_MEMORY);
        }
        return RWKV_CUDA_OK;
    };
    try {
        session.call(stop, work);
    } catch (const Cancelled&) {
        if (asked.error)
            std::rethrow_exception(asked.error);
        throw;
    }
}

CudaRequired cuda_required(const std::string& library, const std::string& path, const Config& config,
                           const TensorSpecs& specs) {
    const CudaLibrary& opened = CudaLibrary::at(library);
    validate(config);
    const MappedFile file(path);
    const Weights weights(file, config, specs, cpu::choose(""));
    CudaRequired required;
    for (int layers = 1; layers <= config.n_layer; ++layers) {
        const CudaWeights part(weights, config.n_layer - layers);
        const rwkv_cuda_config asked = cuda_config(first_blocks(config, layers));
        CudaReason reason;
        size_t bytes = 0;
        CudaLibrary::check(
            opened.required(&asked, &part.all, &bytes, &required.state, reason.text, sizeof reason.text),
            reason.text);
        required.model.push_back(bytes);
    }
    return required;
}

} // namespace rwkv
