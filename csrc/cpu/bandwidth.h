// How fast this machine reads memory: what the speed of decoding is compared with.
#pragma once

#include <cstddef>
#include <vector>

#include "cpu/kernels.h"

namespace rwkv::cpu {

/// Bytes per second of `rounds` sequential reads of a buffer of `bytes` bytes, split over `threads` threads,
/// after one read that is not counted. The buffer is allocated here, and each thread fills its own part.
/// Throws Error(kArgument) for less than a line of 64 bytes per thread, and std::bad_alloc.
std::vector<double> read_bandwidth(const KernelTable& op, int threads, size_t bytes, int rounds);

} // namespace rwkv::cpu
