// How fast a GPU reads matrices in products with one column, one after the other, beside what it copies: no
// norm, no recurrence, no token. More matrices of a shape than a cache holds take turns.
// usage: rwkv_cuda_products [device]
#include <chrono>
#include <cstdlib>

#include "cuda/copy_rate.h"
#include "cuda/pass.h"

using namespace rwkv;
using namespace rwkv::cuda;

namespace {

constexpr size_t kTogether = size_t(512) << 20; ///< bytes that matrices of a shape have, at least
constexpr int kProducts = 200, kRepeats = 7;

struct Format {
    const char* name;
    Encoding encoding;
    int group; ///< 0: float rows
    int bits;  ///< of a code
};
constexpr Format kFormats[] = {
    {"q8g32", Encoding::kQ8, 32, 8}, {"q6g32", Encoding::kQ6, 32, 6}, {"q5g32", Encoding::kQ5, 32, 5},
    {"q4g32", Encoding::kQ4, 32, 4}, {"q4g16", Encoding::kQ4, 16, 4}, {"bf16", Encoding::kBf16, 0, 16},
    {"f32", Encoding::kF32, 0, 32},
};
constexpr struct {
    int n, k;
} kShapes[] = {{16384, 4096}, {4096, 16384}, {65536, 2048}};

template <class F>
double median_seconds(const Stream& stream, F work) {
    std::vector<double> times;
    for (int i = 0; i < kRepeats; ++i) {
        stream.wait();
        const auto begin = std::chrono::steady_clock::now();
        work();
        stream.wait();
        times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

/// Bytes of weights that products with matrices [n, k] read, a second.
double product_rate(const Format& format, int n, int k, Pass& pass, const Stream& stream) {
    DeviceMatrix w;
    w.encoding = format.encoding;
    w.layout = format.group ? Layout::kTile : Layout::kRow;
    w.n = w.n_pad = n, w.k = w.k_pad = k, w.group = format.group;
    for (uint32_t& four : w.codebook)
        four = 0x1f0fff80u;
    const size_t weights = size_t(n) * size_t(k), codes = weights / 8 * size_t(format.bits),
                 scales = format.group ? weights / size_t(format.group) : 0,
                 rows = format.group ? size_t(n) : 0, bytes = codes + scales + rows * sizeof(float);
    const size_t count = (kTogether + bytes - 1) / bytes;
    Arena arena;
    std::vector<Product> products(count);
    const auto cut = [&] {
        for (Product& p : products) {
            p.w = w;
            p.w.q = arena.cut<uint8_t>(codes);
            p.w.s = arena.cut<int8_t>(scales);
            p.w.d = arena.cut<float>(rows);
            p.x.k = p.x.k_pad = k;
            p.x.f = arena.cut<float>(size_t(k));
            p.x.q = arena.cut<int8_t>(size_t(k));
            p.x.scale = arena.cut<float>(size_t(k / kActGroup));
            p.out = {arena.cut<float>(size_t(n)), n};
        }
    };
    cut();
    require_memory(arena.bytes(), "the matrices", "the GPU");
    arena.allocate();
    cut();
    for (const Product& p : products) // whatever numbers: none of them takes longer
        check(cudaMemsetAsync(const_cast<uint8_t*>(p.w.q), 0x35, codes, stream), "a matrix");
    const auto run = [&] {
        for (int i = 0; i < kProducts; ++i)
            pass.products({products[size_t(i) % count]});
    };
    run();
    return double(kProducts) * double(bytes) / median_seconds(stream, run);
}

} // namespace

int main(int argc, char** argv) {
    try {
        const int device = argc > 1 ? std::atoi(argv[1]) : 0;
        use_device(device);
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, device), "the device cannot be asked");
        // A pass needs them, products alone do not.
        Config config;
        config.n_embd = config.head_size = config.vocab_size = 64;
        config.n_head = config.n_layer = 1;
        config.n_ffn = 256;
        const rwkv_cuda_block block{};
        rwkv_cuda_weights none{};
        none.blocks = &block;
        none.head.encoding = int(Encoding::kF32);
        none.head.layout = int(Layout::kRow);
        none.head.n = none.head.k = none.head.n_pad = none.head.k_pad = config.n_embd;
        none.head.q_bytes = size_t(config.n_embd) * size_t(config.n_embd) * sizeof(float);
        const DeviceWeights weights(config, none);
        Scratch scratch(config, weights, 8);
        const Stream stream;
        Pass pass{config,
                  scratch,
                  StateLayout(config),
                  stream,
                  {},
                  1,
                  1,
                  properties.multiProcessorCount,
                  properties.major >= 9};
        const double copies = copy_rate(device);
        std::printf("%s: copies %.0f GB/s\n", properties.name, copies / 1e9);
        for (const Format& format : kFormats)
            for (const auto& [n, k] : kShapes) {
                const double rate = product_rate(format, n, k, pass, stream);
                std::printf("%-6s %6d x %5d: %5.0f GB/s, %3.0f %% of copies\n", format.name, n, k, rate / 1e9,
                            100 * rate / copies);
            }
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
