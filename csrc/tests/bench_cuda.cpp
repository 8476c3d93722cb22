// How fast a GPU decodes and reads prompts, on random weights of a real model's shape, beside what it copies.
// usage: rwkv_cuda_bench [channels] [layers] [encoding ...], an encoding as "q4g32", "q4g32/kn" or
// "q4g32/sparse": kn, and an eighth of ffn.value's channels active, as in trained models, instead of half
#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "core/check.h"
#include "device/cuda_weights.h"
#include "tests/model_writer.h"

using namespace rwkv;
using namespace rwkv::test;

namespace {

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class F>
double median_seconds(int repeats, F work) {
    std::vector<double> times;
    for (int i = 0; i < repeats; ++i) {
        const double begin = seconds();
        work();
        times.push_back(seconds() - begin);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

void stop_on(bool failed, const char* what) {
    if (failed) {
        std::fprintf(stderr, "%s\n", what);
        std::exit(1);
    }
}

void measure(const Config& full, const std::string& encoding, const std::string& layout, double copies) {
    Config two = full; // blocks from the second on are that block again
    two.n_layer = 2;
    ModelWriter writer(two, encoding, layout != "tile", layout == "sparse" ? 4 : 1);
    writer.write(temporary());
    const MappedFile file(temporary());
    const Weights weights(file, two, writer.specs, cpu::choose(""));
    CudaWeights described(weights);
    described.blocks.resize(size_t(full.n_layer), described.blocks.back());
    described.all.blocks = described.blocks.data();
    size_t bytes = weights.head.bytes();
    for (int layer = 0; layer < full.n_layer; ++layer)
        Weights::each_matrix(weights.blocks[size_t(std::min(layer, 1))],
                             [&](const Matrix& m) { bytes += m.bytes(); });
    const rwkv_cuda_config config = cuda_config(full);
    rwkv_cuda_model* model = nullptr;
    rwkv_cuda_state* state = nullptr;
    char reason[256] = "";
    stop_on(rwkv_cuda_open(&config, &described.all, 0, &model, reason, sizeof reason) != RWKV_CUDA_OK ||
                rwkv_cuda_new_state(model, &state, reason, sizeof reason) != RWKV_CUDA_OK,
            reason);
    std::vector<float> logits(size_t(full.vocab_size));
    std::vector<int32_t> tokens(1024);
    for (size_t i = 0; i < tokens.size(); ++i)
        tokens[i] = int32_t(i * 7919 % size_t(full.vocab_size));
    const auto feed = [&](int count) {
        stop_on(rwkv_cuda_forward(model, tokens.data(), count, state, logits.data(), 0, nullptr, nullptr,
                                  reason, sizeof reason) != RWKV_CUDA_OK,
                reason);
    };
    for (int i = 0; i < 10; ++i)
        feed(1);
    const double token = median_seconds(200, [&] { feed(1); });
    feed(1024);
    const double prompt = median_seconds(5, [&] { feed(1024); });
    std::vector<rwkv_cuda_state*> states(64);
    for (rwkv_cuda_state*& each : states)
        stop_on(rwkv_cuda_new_state(model, &each, reason, sizeof reason) != RWKV_CUDA_OK, reason);
    logits.resize(states.size() * size_t(full.vocab_size));
    const auto batch_rate = [&](int count) {
        const auto step = [&] {
            stop_on(rwkv_cuda_forward_batch(model, tokens.data(), states.data(), count, logits.data(), reason,
                                            sizeof reason) != RWKV_CUDA_OK,
                    reason);
        };
        step();
        return count / median_seconds(20, step);
    };
    const double batch8 = batch_rate(8), batch64 = batch_rate(64);
    std::printf(
        "%-6s %-6s  %7.1f tokens/s decoding, %6.3f ms, all weights at %6.0f GB/s (%3.0f %% of copies); "
        "%8.0f tokens/s of a prompt; batches of 8: %6.0f tokens/s, of 64: %6.0f\n",
        encoding.c_str(), layout.c_str(), 1 / token, token * 1e3, double(bytes) / token / 1e9,
        100 * double(bytes) / token / 1e9 / copies, 1024 / prompt, batch8, batch64);
    for (rwkv_cuda_state* each : states)
        rwkv_cuda_free_state(each);
    rwkv_cuda_free_state(state);
    rwkv_cuda_close(model);
}

} // namespace

int main(int argc, char** argv) {
    Config config;
    config.version = Version::k7;
    config.n_embd = argc > 1 ? std::atoi(argv[1]) : 2048;
    config.n_layer = argc > 2 ? std::atoi(argv[2]) : 24;
    config.head_size = 64;
    config.n_head = config.n_embd / 64;
    config.n_ffn = 4 * config.n_embd;
    config.vocab_size = 65536;
    validate(config);
    rwkv_cuda_device device{};
    char reason[256] = "";
    stop_on(rwkv_cuda_devices(&device, 1, reason, sizeof reason) < 1, reason);
    double copies = 0.0;
    stop_on(rwkv_cuda_copy_rate(0, &copies, reason, sizeof reason) != RWKV_CUDA_OK, reason);
    copies /= 1e9;
    std::printf("%s, compute capability %d.%d, %d multiprocessors, copies %.0f GB/s; RWKV-7, %d channels, %d "
                "layers\n",
                device.name, device.major, device.minor, device.multiprocessors, copies, config.n_embd,
                config.n_layer);
    std::vector<std::string> encodings(argv + std::min(argc, 3), argv + argc);
    if (encodings.empty())
        encodings = {"q8g32", "q8g32/kn", "q8g32/sparse", "q6g32",
                     "q5g32", "q4g32",    "q4g32/kn",     "q4g32/sparse"};
    for (const std::string& encoding : encodings) {
        const size_t name = encoding.find('/');
        measure(config, encoding.substr(0, name),
                name == std::string::npos ? "tile" : encoding.substr(name + 1), copies);
    }
}
