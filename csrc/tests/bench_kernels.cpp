// Speed of single kernels, one thread: products of one token out of memory that no cache holds (GB/s of
// weights), and products of many tokens (Gop/s, a multiply and an addition being two).
// usage: rwkv_bench [level] [tokens]
#include <algorithm>
#include <cstdlib>
#include <ctime>

#include "tests/test.h"

namespace rwkv::test {
namespace {

/// Processor time, so that other programs count less; the best of at least 7 rounds and half a second.
double seconds_of(const std::function<void()>& work) {
    double best = 1e9, all = 0;
    for (int round = 0; round < 7 || all < 0.5; ++round) {
        const std::clock_t begin = std::clock();
        work();
        const double seconds = double(std::clock() - begin) / CLOCKS_PER_SEC;
        best = std::min(best, seconds);
        all += seconds;
    }
    return best;
}

struct Case {
    const char* encoding;
    const char* layout;
};

void bench(const cpu::KernelTable& op, int n, int k, int tokens) {
    for (const Case& c :
         {Case{"q4g32", "t16x4"}, Case{"q4g16", "t16x4"}, Case{"q6g32", "t16x4"}, Case{"q6g16", "t16x4"},
          Case{"q5g32", "t16x4"}, Case{"q5g16", "t16x4"}, Case{"q8g32", "t16x4"}, Case{"bf16", "row"},
          Case{"f32", "row"}, Case{"q4g32", "kn"}, Case{"q6g32", "kn"}, Case{"q5g32", "kn"},
          Case{"q8g32", "kn"}}) {
        const bool decode = tokens == 1, kn = std::string(c.layout) == "kn";
        RandomMatrix first(c.encoding, c.layout, n, k, 1);
        const size_t bytes = first.matrix.bytes();
        const size_t copies = decode ? (size_t(256) << 20) / bytes + 1 : size_t(std::max(1, 64 / tokens));
        std::vector<RandomMatrix> matrices;
        matrices.reserve(copies);
        for (size_t i = 0; i < copies; ++i)
            matrices.emplace_back(c.encoding, c.layout, n, k, decode ? unsigned(i + 1) : 1u);
        std::vector<float> x = gaussian(size_t(tokens) * size_t(k), 7);
        for (float& v : x)
            v = kn && v < 0 ? 0 : v; // half of the channels, as relu^2 leaves them in a random model
        const ActsBuffer acts(op, x, tokens, k);
        std::vector<float> y(size_t(tokens) * size_t(n));
        AlignedBuffer<uint8_t> scratch(cpu::product_scratch_bytes(first.matrix, tokens) + 64);
        const double seconds = seconds_of([&] {
            for (const RandomMatrix& m : matrices) {
                const cpu::Product p{
                    &m.matrix, &acts.acts, cpu::Epilogue::kStore, y.data(), size_t(n), nullptr, 0, nullptr};
                op.product(p, 0, m.matrix.units(), tokens, scratch.data());
            }
        });
        const double used = kn ? 0.5 : 1.0;
        if (decode)
            std::printf("%-8s %-6s %5d x %5d  1 token   %7.1f GB/s\n", c.encoding, c.layout, n, k,
                        used * double(bytes * copies) / seconds / 1e9);
        else
            std::printf("%-8s %-6s %5d x %5d %4d tokens %7.0f Gop/s\n", c.encoding, c.layout, n, k, tokens,
                        used * 2.0 * n * k * tokens * double(copies) / seconds / 1e9);
        std::fflush(stdout);
    }
}

} // namespace
} // namespace rwkv::test

int main(int argc, char** argv) {
    const rwkv::cpu::KernelTable& op = rwkv::cpu::choose(argc > 1 ? argv[1] : "");
    std::printf("level %s\n", op.name);
    for (const int tokens : {1, 8, 64, 256})
        if (argc < 3 || std::atoi(argv[2]) == tokens)
            rwkv::test::bench(op, 1024, 2048, tokens);
}
