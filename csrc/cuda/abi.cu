// The C interface: statuses and reasons out of exceptions.
#include "cuda/abi.h"

#include <new>

#include "core/check.h"
#include "cuda/copy_rate.h"
#include "cuda/model.h"

struct rwkv_cuda_model {
    rwkv::cuda::Model model;
};
struct rwkv_cuda_state {
    rwkv::cuda::Model& model;
    std::unique_ptr<rwkv::cuda::DeviceState> state;
};

namespace {

using namespace rwkv;

void tell(const char* what, char* reason, size_t size) {
    if (reason && size > 0)
        std::snprintf(reason, size, "%s", what);
}

template <class F>
rwkv_cuda_status guarded(char* reason, size_t size, F work) noexcept {
    try {
        work();
        return RWKV_CUDA_OK;
    } catch (const cuda::DeviceError& error) {
        tell(error.what(), reason, size);
        return error.status();
    } catch (const Cancelled&) {
        tell("cancelled", reason, size);
        return RWKV_CUDA_CANCELLED;
    } catch (const std::bad_alloc&) {
        tell("the host has no memory left", reason, size);
        return RWKV_CUDA_NO_MEMORY;
    } catch (const std::exception& error) {
        tell(error.what(), reason, size);
        return RWKV_CUDA_FAILED;
    } catch (...) {
        tell("unknown failure", reason, size);
        return RWKV_CUDA_FAILED;
    }
}

/// The oldest GPUs that have all instructions of the kernels, and that they are compiled for.
constexpr int kOldest = 75;

/// What cannot be used for the machine's sake is not a failure of the device.
void available(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        throw cuda::DeviceError(RWKV_CUDA_UNAVAILABLE, std::string(what) + ": " + cudaGetErrorString(error));
    }
}

int device_count() {
    int count = 0;
    available(cudaGetDeviceCount(&count), "no usable NVIDIA GPU");
    return count;
}

void require_device(int device) {
    const int count = device_count();
    if (device < 0 || device >= count)
        throw cuda::DeviceError(RWKV_CUDA_UNAVAILABLE, "there is no GPU number " + std::to_string(device) +
                                                           "; this machine has " + std::to_string(count));
}

} // namespace

int rwkv_cuda_abi(void) { return RWKV_CUDA_ABI; }

int rwkv_cuda_devices(rwkv_cuda_device* devices, int room, char* reason, size_t reason_size) {
    int count = -1;
    const rwkv_cuda_status status = guarded(reason, reason_size, [&] {
        const int found = device_count();
        cudaError_t trouble = cudaSuccess;
        bool any = found == 0;
        for (int i = 0; i < found && i < room; ++i) {
            cudaDeviceProp properties;
            available(cudaGetDeviceProperties(&properties, i), "a GPU cannot be asked");
            rwkv_cuda_device& device = devices[i];
            std::snprintf(device.name, sizeof device.name, "%.127s", properties.name);
            device.major = properties.major;
            device.minor = properties.minor;
            device.multiprocessors = properties.multiProcessorCount;
            device.memory = properties.totalGlobalMem;
            device.free_memory = 0;
            size_t total = 0;
            cudaError_t error = cudaSetDevice(i);
            if (error == cudaSuccess)
                error = cudaMemGetInfo(&device.free_memory, &total);
            any = any || error == cudaSuccess;
            if (error != cudaSuccess) { // full, or another process's alone: that is no matter of the others
                device.free_memory = 0;
                (void)cudaGetLastError();
                trouble = error;
            }
        }
        if (!any)
            available(trouble, "no GPU can be used");
        count = found;
    });
    return status == RWKV_CUDA_OK ? count : -1;
}

rwkv_cuda_status rwkv_cuda_copy_rate(int device, double* rate, char* reason, size_t reason_size) {
    return guarded(reason, reason_size, [&] {
        require_device(device);
        *rate = cuda::copy_rate(device);
    });
}

rwkv_cuda_status rwkv_cuda_required(const rwkv_cuda_config* config, const rwkv_cuda_weights* weights,
                                    size_t* bytes, size_t* state_bytes, char* reason, size_t reason_size) {
    return guarded(reason, reason_size, [&] {
        const cuda::Model::Required required = cuda::Model::required(*config, *weights);
        *bytes = required.bytes;
        *state_bytes = required.state_bytes;
    });
}

rwkv_cuda_status rwkv_cuda_open(const rwkv_cuda_config* config, const rwkv_cuda_weights* weights, int device,
                                rwkv_cuda_model** model, char* reason, size_t reason_size) {
    *model = nullptr;
    return guarded(reason, reason_size, [&] {
        require_device(device);
        cudaDeviceProp properties;
        available(cudaGetDeviceProperties(&properties, device), "the GPU cannot be asked");
        if (properties.major * 10 + properties.minor < kOldest)
            throw cuda::DeviceError(RWKV_CUDA_UNAVAILABLE,
                                    std::string(properties.name) + " has compute capability " +
                                        std::to_string(properties.major) + "." +
                                        std::to_string(properties.minor) + "; 7.5 or newer is needed");
        available(cudaSetDevice(device), "the GPU cannot be used");
        *model = new rwkv_cuda_model{{*config, *weights, device}};
    });
}

void rwkv_cuda_close(rwkv_cuda_model* model) { delete model; }

size_t rwkv_cuda_model_bytes(const rwkv_cuda_model* model) { return model->model.bytes(); }

rwkv_cuda_status rwkv_cuda_new_state(rwkv_cuda_model* model, rwkv_cuda_state** state, char* reason,
                                     size_t reason_size) {
    *state = nullptr;
    return guarded(reason, reason_size,
                   [&] { *state = new rwkv_cuda_state{model->model, model->model.new_state()}; });
}

void rwkv_cuda_free_state(rwkv_cuda_state* state) {
    if (!state)
        return;
    (void)guarded(nullptr, 0, [&] { state->model.enter(); });
    delete state;
}

rwkv_cuda_status rwkv_cuda_copy_state(rwkv_cuda_state* to, const rwkv_cuda_state* from, char* reason,
                                      size_t reason_size) {
    return guarded(reason, reason_size, [&] {
        require(&to->model == &from->model, Fault::kArgument, "the states belong to different models");
        to->model.copy_state(*to->state, *from->state);
    });
}

size_t rwkv_cuda_state_floats(const rwkv_cuda_model* model) { return model->model.state_floats(); }

rwkv_cuda_status rwkv_cuda_read_state(const rwkv_cuda_state* state, float* values, char* reason,
                                      size_t reason_size) {
    return guarded(reason, reason_size, [&] { state->model.read_state(*state->state, values); });
}

rwkv_cuda_status rwkv_cuda_write_state(rwkv_cuda_state* state, const float* values, char* reason,
                                       size_t reason_size) {
    return guarded(reason, reason_size, [&] { state->model.write_state(*state->state, values); });
}

rwkv_cuda_status rwkv_cuda_forward(rwkv_cuda_model* model, const int32_t* tokens, int count,
                                   rwkv_cuda_state* state, float* logits, int all, rwkv_cuda_poll poll,
                                   void* context, char* reason, size_t reason_size) {
    return guarded(reason, reason_size, [&] {
        require(count >= 1, Fault::kArgument, "no tokens");
        require(&state->model == &model->model, Fault::kArgument, "the state belongs to another model");
        model->model.forward({tokens, size_t(count)}, *state->state, logits, all != 0,
                             poll ? cuda::Model::Poll([=] { return poll(context) != 0; })
                                  : cuda::Model::Poll());
    });
}

rwkv_cuda_status rwkv_cuda_forward_batch(rwkv_cuda_model* model, const int32_t* tokens,
                                         rwkv_cuda_state* const* states, int count, float* logits,
                                         char* reason, size_t reason_size) {
    return guarded(reason, reason_size, [&] {
        require(count >= 1, Fault::kArgument, "no tokens");
        std::vector<cuda::DeviceState*> inner;
        for (int i = 0; i < count; ++i) {
            require(&states[i]->model == &model->model, Fault::kArgument, "a state belongs to another model");
            inner.push_back(states[i]->state.get());
        }
        model->model.forward_batch({tokens, size_t(count)}, inner, logits);
    });
}

rwkv_cuda_status rwkv_cuda_forward_rows(rwkv_cuda_model* model, const float* x, const float* v_first,
                                        size_t stride, int count, rwkv_cuda_state* const* states,
                                        int state_count, float* logits, int wanted, char* reason,
                                        size_t reason_size) {
    return guarded(reason, reason_size, [&] {
        require(count >= 1 && wanted >= 0 && wanted <= count, Fault::kArgument, "impossible numbers of rows");
        require(state_count == 1 || state_count == count, Fault::kArgument,
                "as many rows as states are needed");
        std::vector<cuda::DeviceState*> inner;
        for (int i = 0; i < state_count; ++i) {
            require(&states[i]->model == &model->model, Fault::kArgument, "a state belongs to another model");
            inner.push_back(states[i]->state.get());
        }
        model->model.forward_rows({x, v_first, stride, count}, inner, logits, wanted);
    });
}
