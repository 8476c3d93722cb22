#include "device/cuda_library.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

#include "core/check.h"
#include "core/os.h"

namespace rwkv {

const CudaLibrary& CudaLibrary::at(const std::string& path) {
    static std::mutex mutex;
    // never destroyed: models may outlive static objects, and the driver dislikes calls at the end of a
    // process
    static auto& libraries = *new std::map<std::string, std::unique_ptr<CudaLibrary>>();
    const std::lock_guard<std::mutex> held(mutex);
    std::unique_ptr<CudaLibrary>& library = libraries[path];
    if (!library)
        library.reset(new CudaLibrary(path));
    return *library;
}

CudaLibrary::CudaLibrary(const std::string& path) {
    void* const library = os::load_library(path);
    const auto find = [&](const char* name, auto& function) {
        void* const symbol = os::library_symbol(library, name);
        require(symbol != nullptr, Fault::kDevice, path + ": is not librwkv_cuda: it has no " + name);
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
    };
    decltype(&rwkv_cuda_abi) abi = nullptr;
    find("rwkv_cuda_abi", abi);
    const int number = abi();
    require(number == RWKV_CUDA_ABI, Fault::kDevice,
            path + ": belongs to another version of rwkv: interface " + std::to_string(number) + ", not " +
                std::to_string(RWKV_CUDA_ABI));
    find("rwkv_cuda_devices", devices_);
    find("rwkv_cuda_copy_rate", copy_rate_);
    find("rwkv_cuda_required", required);
    find("rwkv_cuda_open", open);
    find("rwkv_cuda_close", close);
    find("rwkv_cuda_model_bytes", model_bytes);
    find("rwkv_cuda_new_state", new_state);
    find("rwkv_cuda_free_state", free_state);
    find("rwkv_cuda_copy_state", copy_state);
    find("rwkv_cuda_state_floats", state_floats);
    find("rwkv_cuda_read_state", read_state);
    find("rwkv_cuda_write_state", write_state);
    find("rwkv_cuda_forward", forward);
    find("rwkv_cuda_forward_batch", forward_batch);
    find("rwkv_cuda_forward_rows", forward_rows);
}

std::vector<rwkv_cuda_device> CudaLibrary::devices() const {
    std::vector<rwkv_cuda_device> found(64);
    CudaReason reason;
    const int count = devices_(found.data(), int(found.size()), reason.text, sizeof reason.text);
    if (count < 0)
        check(RWKV_CUDA_UNAVAILABLE, reason.text);
    found.resize(size_t(std::clamp(count, 0, int(found.size()))));
    return found;
}

double CudaLibrary::copy_rate(int device) const {
    double rate = 0.0;
    CudaReason reason;
    check(copy_rate_(device, &rate, reason.text, sizeof reason.text), reason.text);
    return rate;
}

void CudaLibrary::check(rwkv_cuda_status status, const char* reason) {
    if (status == RWKV_CUDA_OK)
        return;
    if (status == RWKV_CUDA_CANCELLED)
        throw Cancelled();
    const bool memory = status == RWKV_CUDA_NO_MEMORY;
    const std::string why = *reason ? reason : memory ? "not enough memory" : "it gives no reason";
    throw Error(memory ? Fault::kMemory : Fault::kDevice, "CUDA: " + why);
}

} // namespace rwkv
