#include "cpu/bandwidth.h"

#include <chrono>
#include <cstring>

#include "core/aligned_buffer.h"
#include "core/check.h"
#include "core/thread_pool.h"

namespace rwkv::cpu {

std::vector<double> read_bandwidth(const KernelTable& op, int threads, size_t bytes, int rounds) {
    require(threads >= 1 && threads <= 1024, Fault::kArgument, "threads must be 1 to 1024");
    require(rounds >= 1, Fault::kArgument, "rounds must be at least 1");
    const size_t lines = bytes / 64 / size_t(threads); // of each thread
    require(lines >= 1, Fault::kArgument, "too few bytes to read");
    const size_t total = lines * size_t(threads) * 64;
    AlignedBuffer<uint8_t> buffer(total);
    ThreadPool pool(threads);
    std::vector<float> sums(size_t(threads) * 16); // a cache line each
    const auto part = [&](int thread) { return buffer.data() + size_t(thread) * lines * 64; };
    pool.run([&](int thread) { std::memset(part(thread), thread + 1, lines * 64); });
    std::vector<double> rates;
    for (int round = -1; round < rounds; ++round) {
        const auto begin = std::chrono::steady_clock::now();
        pool.run([&](int thread) { sums[size_t(thread) * 16] = op.read_lines(part(thread), lines); });
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        if (round >= 0)
            rates.push_back(double(total) / seconds.count());
    }
    return rates;
}

} // namespace rwkv::cpu
