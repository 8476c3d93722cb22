// What products share: weights that are fetched ahead, and codes as the dot products take them.
#pragma once

#include "cpu/kernels.h"

namespace rwkv::cpu {
namespace {

constexpr int kPrefetchBytes = 4096;           // how far ahead of the tile stream of one token
constexpr int kFewPrefetchBytes = 8192;        // of up to four
constexpr int kBatchPrefetchBytes = 16384;     // and of more
constexpr size_t kPageBytes = 4096;            // at the least, and on Linux always where a file is mapped
constexpr size_t kPageAhead = 16 * kPageBytes; // of a stream

inline void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

/// Into the second-level cache only.
inline void prefetch_far(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

/// To be called in loops that only fetch: GCC takes them for loops without effect and leaves them out.
inline void keep_loop() { asm volatile(""); }

/// To be called at every `step` bytes of a stream: once per page asks for one line `ahead` bytes further on.
/// Finding a page takes about as long as a read from memory, and the lines fetched just ahead would all wait
/// for it.
inline void meet_page(const void* at, size_t step, size_t ahead = kPageAhead) {
    if (reinterpret_cast<uintptr_t>(at) % kPageBytes < step)
        prefetch(static_cast<const uint8_t*>(at) + ahead);
}

/// Keeps the inner loops of products to themselves: where GCC puts several into one function, it runs out of
/// registers for their sums.
#define RWKV_BY_ITSELF __attribute__((noinline))

/// Before a loop over arrays that stay in registers; its limit is known.
#ifdef __clang__
#define RWKV_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RWKV_UNROLL _Pragma("GCC unroll 8")
#endif

/// f<encoding, group>() for the form of a quantized matrix.
template <class F>
void with_codes(const Matrix& w, F&& f) {
    if (w.encoding == Encoding::kQ8)
        f.template operator()<Encoding::kQ8, 32>();
    else if (w.encoding == Encoding::kQ6 && w.group == 32)
        f.template operator()<Encoding::kQ6, 32>();
    else if (w.encoding == Encoding::kQ6)
        f.template operator()<Encoding::kQ6, 16>();
    else if (w.encoding == Encoding::kQ5 && w.group == 32)
        f.template operator()<Encoding::kQ5, 32>();
    else if (w.encoding == Encoding::kQ5)
        f.template operator()<Encoding::kQ5, 16>();
    else if (w.group == 32)
        f.template operator()<Encoding::kQ4, 32>();
    else
        f.template operator()<Encoding::kQ4, 16>();
}

/// A codebook with `lift` added to every entry.
inline vc load_lifted_codebook(const uint8_t* cb, int lift) {
    uint8_t lifted[16];
    for (int i = 0; i < 16; ++i)
        lifted[i] = uint8_t(cb[i] + lift);
    return load_codebook(lifted);
}

/// Where sums of six-bit codes start: what a start of q4 takes off, for half its zero point.
inline vi dot_start_q6(int32_t bias_q4) { return dot_start(bias_q4 / (kQ4Zero / kQ6Zero)); }

/// A tile as the dot products take it: 64 bytes hold 4 inputs of 16 rows. Its group scales become floats.
/// kLift is added to codes of q4, and so to their zero point.
template <Encoding E, int kGroup, int kLift = 0>
const uint8_t* decode_tile(const Matrix& w, int tile, uint8_t* decoded, float* scales) {
    const int groups = w.k_pad / kGroup;
    const int8_t* s = w.s + size_t(tile) * size_t(groups) * kTileRows;
    for (int g = 0; g < groups; ++g)
        store(scales + g * kTileRows, square_law(load_i8(s + g * kTileRows)));
    const size_t bytes = size_t(w.k_pad) * kTileRows;
    if constexpr (E == Encoding::kQ8)
        return w.q + size_t(tile) * bytes;
    const uint8_t* codes = w.q + size_t(tile) * w.code_bytes(bytes);
    if constexpr (E == Encoding::kQ6) {
        for (size_t i = 0; i < bytes; i += 8 * 64, codes += 6 * 64)
            for (int half = 0; half < 2; ++half) {
                for (int line = 0; line < 3; ++line)
                    prefetch(codes + (3 * half + line) * 64 + kPrefetchBytes);
                const vc a = load_codes(codes + 2 * half * 64), b = load_codes(codes + (2 * half + 1) * 64),
                         high = load_codes(codes + (4 + half) * 64);
                uint8_t* to = decoded + i + size_t(half) * 4 * 64;
                store_codes(to, six_bits<0>(a, high));
                store_codes(to + 64, six_bits<1>(a, high));
                store_codes(to + 2 * 64, six_bits<2>(b, high));
                store_codes(to + 3 * 64, six_bits<3>(b, high));
            }
        return decoded;
    }
    if constexpr (E == Encoding::kQ5) {
        const vc codebook = load_codebook(w.cb);
        for (size_t i = 0; i < bytes; i += 8 * 64, codes += 5 * 64) {
            vc high = load_codes(codes + 4 * 64);
            for (int line = 0; line < 5; ++line)
                prefetch(codes + line * 64 + kPrefetchBytes);
            for (int half = 0; half < 2; ++half) {
                const vc a = load_codes(codes + 2 * half * 64), b = load_codes(codes + (2 * half + 1) * 64);
                uint8_t* to = decoded + i + size_t(half) * 4 * 64;
                store_codes(to, five_bits<0>(codebook, a, high));
                store_codes(to + 64, five_bits<1>(codebook, a, high));
                store_codes(to + 2 * 64, five_bits<2>(codebook, b, high));
                store_codes(to + 3 * 64, five_bits<3>(codebook, b, high));
                high = upper_bits(high);
            }
        }
        return decoded;
    }
    const vc codebook = load_lifted_codebook(w.cb, kLift);
    for (size_t i = 0; i < bytes; i += 128, codes += 64) {
        prefetch(codes + kPrefetchBytes);
        const vc packed = load_codes(codes);
        store_codes(decoded + i, low_codes(codebook, packed));
        store_codes(decoded + i + 64, high_codes(codebook, packed));
    }
    return decoded;
}

} // namespace
} // namespace rwkv::cpu
