// Models with random weights on the CPU and, through the C interface, on a GPU or its emulator, for tests.
#pragma once

#include <cstdlib>
#include <memory>
#include <span>

#include "core/check.h"
#include "device/cuda_weights.h"
#include "model/model.h"
#include "tests/model_writer.h"
#include "tests/test.h"

namespace rwkv::test {

inline Config config_of(Version version, int layers, int c, int n, int f, int vocab) {
    Config config;
    config.version = version;
    config.n_layer = layers;
    config.n_embd = c;
    config.n_head = version == Version::k4 ? 0 : c / n;
    config.head_size = version == Version::k4 ? 0 : n;
    config.n_ffn = f;
    config.vocab_size = vocab;
    return config;
}

/// A model's file, opened by the CPU engine.
struct Reference {
    Reference(const Config& config_, const char* encoding, bool kn) : config(config_) {
        ModelWriter writer(config, encoding, kn);
        writer.write(temporary());
        specs = writer.specs;
        cpu = std::make_unique<Model>(temporary(), config, specs, 1, "");
    }
    Config config;
    TensorSpecs specs;
    std::unique_ptr<Model> cpu;
};

/// The same on the GPU.
struct Gpu {
    /// `expected`: the status of opening it.
    explicit Gpu(const Reference& reference, rwkv_cuda_status expected = RWKV_CUDA_OK, int device = 0) {
        const MappedFile file(temporary());
        const Weights weights(file, reference.config, reference.specs, cpu::choose(""));
        const CudaWeights described(weights);
        const rwkv_cuda_config config = cuda_config(reference.config);
        const rwkv_cuda_status status =
            rwkv_cuda_open(&config, &described.all, device, &model, reason, sizeof reason);
        CHECK(status == expected, "%d: %s", int(status), reason);
    }
    ~Gpu() { rwkv_cuda_close(model); }
    Gpu(const Gpu&) = delete;
    Gpu& operator=(const Gpu&) = delete;

    rwkv_cuda_model* model = nullptr;
    char reason[256] = "";
};

struct GpuState {
    explicit GpuState(const Gpu& gpu) : gpu_(gpu) {
        char reason[256] = "";
        CHECK(rwkv_cuda_new_state(gpu.model, &state, reason, sizeof reason) == RWKV_CUDA_OK, "%s", reason);
    }
    ~GpuState() { rwkv_cuda_free_state(state); }
    GpuState(const GpuState&) = delete;
    GpuState& operator=(const GpuState&) = delete;

    std::vector<float> values() const {
        char reason[256] = "";
        std::vector<float> result(rwkv_cuda_state_floats(gpu_.model));
        CHECK(rwkv_cuda_read_state(state, result.data(), reason, sizeof reason) == RWKV_CUDA_OK, "%s",
              reason);
        return result;
    }
    rwkv_cuda_state* state = nullptr;

  private:
    const Gpu& gpu_;
};

inline void feed(const Gpu& gpu, std::span<const int32_t> tokens, GpuState& state, float* logits, bool all) {
    char reason[256] = "";
    const rwkv_cuda_status status =
        rwkv_cuda_forward(gpu.model, tokens.data(), int(tokens.size()), state.state, logits, all, nullptr,
                          nullptr, reason, sizeof reason);
    CHECK(status == RWKV_CUDA_OK, "%d: %s", int(status), reason);
}

inline bool emulated() {
    rwkv_cuda_device device{};
    char reason[256] = "";
    return rwkv_cuda_devices(&device, 1, reason, sizeof reason) >= 1 && !std::strcmp(device.name, "emulated");
}

/// An environment variable for one scope.
class Setting {
  public:
    Setting(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
    ~Setting() { unsetenv(name_); }
    Setting(const Setting&) = delete;
    Setting& operator=(const Setting&) = delete;

  private:
    const char* name_;
};

inline const std::vector<int32_t> kTokens = {5, 0, 49, 7, 7, 31, 2, 18, 40, 3, 11, 29, 1};

constexpr Version kVersions[] = {Version::k4,   Version::k5_0, Version::k5_1,
                                 Version::k5_2, Version::k6,   Version::k7};

} // namespace rwkv::test
