// How fast a GPU copies its memory: what the speed of decoding is compared with there.
#pragma once

#include <chrono>

#include "cuda/memory.h"

namespace rwkv::cuda {

/// Bytes that copies on `device` read and write a second: the median of a few, of buffers that no cache
/// holds, which are at most half of the free memory. Throws DeviceError.
inline double copy_rate(int device) {
    constexpr size_t kLargest = size_t(256) << 20, kSmallest = size_t(1) << 20;
    constexpr int kRounds = 9, kCopies = 16;
    use_device(device);
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "the device's memory cannot be read");
    const size_t bytes = std::clamp(free / 4 / 256 * 256, kSmallest, kLargest);
    Arena arena;
    arena.cut<uint8_t>(2 * bytes);
    arena.allocate();
    uint8_t* const both = arena.cut<uint8_t>(2 * bytes);
    const Stream stream;
    std::vector<double> seconds;
    for (int round = 0; round <= kRounds; ++round) { // the first is not counted
        stream.wait();
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < kCopies; ++i)
            check(cudaMemcpyAsync(both + bytes, both, bytes, cudaMemcpyDeviceToDevice, stream),
                  "copying on the device");
        stream.wait();
        if (round > 0)
            seconds.push_back(
                std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    std::sort(seconds.begin(), seconds.end());
    return 2.0 * kCopies * double(bytes) / seconds[kRounds / 2];
}

} // namespace rwkv::cuda
