// Reading memory and nothing else, to measure how fast it can be read.
#pragma once

#include "cpu/kernels.h"

namespace rwkv::cpu {
namespace {

/// Reads `lines` lines of 64 bytes in ascending order; the result keeps the compiler from leaving any out.
float read_lines(const uint8_t* p, size_t lines) {
    constexpr size_t kAtOnce = 4;
    vi left[kAtOnce];
    for (vi& each : left)
        each = iset(0);
    size_t line = 0;
    for (; line + kAtOnce <= lines; line += kAtOnce) {
        meet_page(p + line * 64, kAtOnce * 64);
        for (size_t i = 0; i < kAtOnce; ++i) {
            prefetch(p + (line + i) * 64 + kPrefetchBytes);
            left[i] = isub(left[i], load_words(p + (line + i) * 64));
        }
    }
    for (; line < lines; ++line)
        left[0] = isub(left[0], load_words(p + line * 64));
    return reduce_add(to_float(isub(isub(left[0], left[1]), isub(left[2], left[3]))));
}

} // namespace
} // namespace rwkv::cpu
