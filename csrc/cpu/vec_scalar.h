// Sixteen lanes in plain C++: the level that runs everywhere and says what the vector levels mean.
//
// Every vec_*.h gives the same names:
//   vf   16 floats      vi   16 int32      vc   64 bytes (the codes of 16 rows x 4 inputs)
// `_n` forms touch only the first n lanes (0 <= n <= 16) and read the others as zero.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "formats/matrix.h"

namespace rwkv::cpu {
namespace {

constexpr int kMaxTokens = 4; // tokens that one tile of weights meets in registers
constexpr int kFloatRows = 4; // rows of floats that kMaxTokens / 2 tokens meet in registers
constexpr bool kDecodesTiles = true;
constexpr bool kTakesPanels = false;
constexpr bool kSplitsSigns = false; // whether tiles of q8 meet Acts::split (dot_split)
constexpr bool kAddsSixBits = false; // whether codes of six bits meet eight inputs at a time (dot_eight_q6)
constexpr int kValueVectors = 4;     // vectors of value channels that a recurrence takes at once

struct vf {
    float v[16];
};
struct vi {
    int32_t v[16];
};
struct vc {
    uint8_t v[64];
};

#define RWKV_LANES(expression)                                                                               \
    for (int i = 0; i < 16; ++i)                                                                             \
        r.v[i] = (expression);                                                                               \
    return r

vf set(float x) {
    vf r;
    RWKV_LANES(x);
}
vf zero() { return set(0.0f); }
vf load(const float* p) {
    vf r;
    RWKV_LANES(p[i]);
}
vf load_n(const float* p, int n) {
    vf r;
    RWKV_LANES(i < n ? p[i] : 0.0f);
}
void store(float* p, vf a) {
    for (int i = 0; i < 16; ++i)
        p[i] = a.v[i];
}
void store_n(float* p, vf a, int n) {
    for (int i = 0; i < n; ++i)
        p[i] = a.v[i];
}
vf load_bf16(const uint16_t* p) {
    vf r;
    RWKV_LANES(bf16_to_float(p[i]));
}
vf load_bf16_n(const uint16_t* p, int n) {
    vf r;
    RWKV_LANES(i < n ? bf16_to_float(p[i]) : 0.0f);
}
vf load_f16(const uint16_t* p) {
    vf r;
    RWKV_LANES(f16_to_float(p[i]));
}
vf load_f16_n(const uint16_t* p, int n) {
    vf r;
    RWKV_LANES(i < n ? f16_to_float(p[i]) : 0.0f);
}

vf add(vf a, vf b) {
    vf r;
    RWKV_LANES(a.v[i] + b.v[i]);
}
vf sub(vf a, vf b) {
    vf r;
    RWKV_LANES(a.v[i] - b.v[i]);
}
vf mul(vf a, vf b) {
    vf r;
    RWKV_LANES(a.v[i] * b.v[i]);
}
vf div(vf a, vf b) {
    vf r;
    RWKV_LANES(a.v[i] / b.v[i]);
}
vf fma(vf a, vf b, vf c) {
    vf r;
    RWKV_LANES(fmaf(a.v[i], b.v[i], c.v[i]));
} // a b + c, rounded once
vf max(vf a, vf b) {
    vf r;
    RWKV_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
} // b where one is NaN; so min
vf min(vf a, vf b) {
    vf r;
    RWKV_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
vf abs(vf a) {
    vf r;
    RWKV_LANES(fabsf(a.v[i]));
}
vf select_lt(vf a, vf b, vf x, vf y) {
    vf r;
    RWKV_LANES(a.v[i] < b.v[i] ? x.v[i] : y.v[i]);
} // a < b ? x : y

/// The one order of every horizontal sum: halves are folded onto each other.
float reduce_add(vf a) {
    for (int width = 8; width >= 1; width /= 2)
        for (int i = 0; i < width; ++i)
            a.v[i] = a.v[i] + a.v[i + width];
    return a.v[0];
}
float reduce_max(vf a) {
    float m = a.v[0];
    for (int i = 1; i < 16; ++i)
        m = a.v[i] > m ? a.v[i] : m;
    return m;
}

vi iset(int32_t x) {
    vi r;
    RWKV_LANES(x);
}
vi round_int(vf a) {
    vi r;
    RWKV_LANES(fabsf(a.v[i]) < 2147483648.0f ? int32_t(lrintf(a.v[i])) : INT32_MIN);
} // to nearest, ties to even; what does not fit, NaN too, is INT32_MIN
vf to_float(vi a) {
    vf r;
    RWKV_LANES(float(a.v[i]));
}
vf pow2(vi n) {
    vf r;
    RWKV_LANES(bits_to_float(uint32_t(n.v[i] + 127) << 23));
} // -126 <= n <= 127
vi load_i8(const int8_t* p) {
    vi r;
    RWKV_LANES(p[i]);
}
/// Codes, scales and biases (see Acts) of 32 channels of kMaxTokens rows at once, where a level has a way
/// that is faster than row by row; else false, as when there is a value that is no number. `tiny`: what
/// counts as zero.
bool quantize_block(const float*, size_t, float, int8_t*, float*, int32_t*, int32_t*) { return false; }
void store_i8(int8_t* p, vi a) {
    for (int i = 0; i < 16; ++i)
        p[i] = int8_t(a.v[i]);
}
/// s * |s| for signed bytes: the square law of group scales.
vf square_law(vi s) {
    vf r;
    RWKV_LANES(float(s.v[i] * (s.v[i] < 0 ? -s.v[i] : s.v[i])));
}

vi load_words(const uint8_t* p) {
    vi r;
    memcpy(r.v, p, 64);
    return r;
}
vi isub(vi a, vi b) {
    vi r;
    RWKV_LANES(int32_t(uint32_t(a.v[i]) - uint32_t(b.v[i])));
} // wraps around
template <int I>
vi shift_right(vi a) {
    vi r;
    RWKV_LANES(a.v[i] >> I);
}
/// Byte I of each word, sign-extended.
template <int I>
vi signed_byte(vi a) {
    vi r;
    RWKV_LANES(int32_t(int8_t(uint32_t(a.v[i]) >> (8 * I))));
}
/// to[j], word i: from p[i] + at + 4 j.
void load_columns(const uint8_t* const* p, size_t at, vi (&to)[4]) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j)
            memcpy(&to[j].v[i], p[i] + at + 4 * j, 4);
}
/// to[i] = factor times the sum of m[i], wrapping around.
void store_sums(int32_t* to, const vi (&m)[4], int32_t factor) {
    for (int i = 0; i < 4; ++i) {
        uint32_t sum = 0;
        for (const int32_t value : m[i].v)
            sum += uint32_t(value);
        to[i] = int32_t(sum * uint32_t(factor));
    }
}
/// Lanes 2p and 2p + 1 as the low and high half of word p; values within int16.
void store_pairs(int32_t* to, vi a) {
    for (int p = 0; p < 8; ++p)
        to[p] = int32_t((uint32_t(a.v[2 * p]) & 0xffff) | uint32_t(a.v[2 * p + 1]) << 16);
}
/// Bit i says whether lane i is not zero.
unsigned nonzero_mask(vf a) {
    unsigned mask = 0;
    for (int i = 0; i < 16; ++i)
        mask |= unsigned(a.v[i] != 0.0f) << i;
    return mask;
}
int count_bits(unsigned mask) {
    int count = 0;
    for (; mask != 0; mask &= mask - 1)
        ++count;
    return count;
}
int lowest_bit(unsigned mask) {
    int bit = 0;
    while ((mask >> bit & 1) == 0)
        ++bit;
    return bit;
}

/// Of the lanes whose bit is set, side by side: first + lane, and a times b. After them anything may be
/// written, up to sixteen in all.
void pack(unsigned mask, vf a, vf b, int32_t first, int32_t* lanes, float* products) {
    for (; mask != 0; mask &= mask - 1, ++lanes, ++products) {
        const int i = lowest_bit(mask);
        *lanes = first + i;
        *products = a.v[i] * b.v[i];
    }
}

// 64 / kHalves bytes as words: what one pass over a line of records holds in registers.
using vh = vi;
constexpr int kHalves = 1;
vh load_half(const uint8_t* p) { return load_words(p); }
vh half_set(int32_t x) { return iset(x); }
/// The low (high) halves of a's words below those of b's.
vh low_words(vh a, vh b) {
    vh r;
    RWKV_LANES(int32_t((uint32_t(a.v[i]) & 0xffff) | uint32_t(b.v[i]) << 16));
}
vh high_words(vh a, vh b) {
    vh r;
    RWKV_LANES(int32_t(uint32_t(a.v[i]) >> 16 | (uint32_t(b.v[i]) & 0xffff0000)));
}
/// Sixteen codes, for the two lookups.
vh half_codebook(const uint8_t* cb) {
    vh r;
    RWKV_LANES(cb[i]);
}
/// Each byte's low (high) nibble looked up.
vh low_nibbles(vh codebook, vh a) {
    vh r;
    RWKV_LANES(int32_t((uint32_t(codebook.v[a.v[i] & 15]) & 0xff) |
                       (uint32_t(codebook.v[a.v[i] >> 8 & 15]) & 0xff) << 8 |
                       (uint32_t(codebook.v[a.v[i] >> 16 & 15]) & 0xff) << 16 |
                       (uint32_t(codebook.v[a.v[i] >> 24 & 15]) & 0xff) << 24));
}
vh high_nibbles(vh codebook, vh a) {
    for (int32_t& word : a.v)
        word = int32_t(uint32_t(word) >> 4);
    return low_nibbles(codebook, a);
}
/// Halves of words from a below those from b: word i from 2 bytes at a + 2 i and at b + 2 i.
vh pair_words(const uint8_t* a, const uint8_t* b) {
    vh r;
    RWKV_LANES(a[2 * i] | a[2 * i + 1] << 8 | b[2 * i] << 16 | int32_t(uint32_t(b[2 * i + 1]) << 24));
}
/// Six-bit codes: the low (V even) or high nibble of each byte of a, below bits 2 V and 2 V + 1 of that byte
/// of bits.
template <int V>
vh half_six_bits(vh a, vh bits) {
    vh r;
    RWKV_LANES(int32_t((uint32_t(a.v[i]) >> (V % 2 * 4) & 0x0f0f0f0f) |
                       (uint32_t(bits.v[i]) >> (2 * V) & 0x03030303) << 4));
}
/// Word i from byte i at a and at b: in its lower half a's byte, and from bit 8 on that byte's upper half; in
/// the upper half b's likewise.
vh pair_bytes(const uint8_t* a, const uint8_t* b) {
    vh r;
    RWKV_LANES(a[i] | a[i] << 4 | (b[i] | b[i] << 4) << 16);
}
/// Five-bit codes: the entry of the low (V even) or high nibble of each byte of a, mirrored where bit V of
/// that byte of bits is set.
template <int V>
vh half_five_bits(vh codebook, vh a, vh bits) {
    const vh entries = V % 2 ? high_nibbles(codebook, a) : low_nibbles(codebook, a);
    vh r;
    RWKV_LANES(int32_t(uint32_t(entries.v[i]) ^ (uint32_t(bits.v[i]) >> V & 0x01010101) * 127u));
}
/// Bytes 0 and 2 (1 and 3) of each word in its two halves.
vh even_bytes(vh a) {
    vh r;
    RWKV_LANES(a.v[i] & 0x00ff00ff);
}
vh odd_bytes(vh a) {
    vh r;
    RWKV_LANES(int32_t(uint32_t(a.v[i]) >> 8 & 0x00ff00ff));
}
/// acc + (low half of w times low half of x) + (high half of w times high half of x), wrapping around
vh dot_pairs(vh acc, vh w, int32_t x) {
    vh r;
    RWKV_LANES(int32_t(uint32_t(acc.v[i]) + uint32_t(int16_t(w.v[i]) * int16_t(x)) +
                       uint32_t((w.v[i] >> 16) * (x >> 16))));
}
/// y += acc * scale
void add_scaled(float* y, vh acc, float scale) { store(y, fma(to_float(acc), set(scale), load(y))); }

vc load_codes(const uint8_t* p) {
    vc r;
    memcpy(r.v, p, 64);
    return r;
}
void store_codes(uint8_t* p, vc x) { memcpy(p, x.v, 64); }
vc load_codebook(const uint8_t* p) {
    vc r;
    for (int i = 0; i < 64; ++i)
        r.v[i] = p[i % 16];
    return r;
}
vc low_codes(vc codebook, vc packed) {
    vc r;
    for (int i = 0; i < 64; ++i)
        r.v[i] = codebook.v[packed.v[i] & 15];
    return r;
}
vc high_codes(vc codebook, vc packed) {
    vc r;
    for (int i = 0; i < 64; ++i)
        r.v[i] = codebook.v[packed.v[i] >> 4];
    return r;
}

/// Six-bit codes: the low (V even) or high nibble of each byte below its bits 2 V and 2 V + 1 of `bits`.
template <int V>
vc six_bits(vc packed, vc bits) {
    vc r;
    for (int i = 0; i < 64; ++i)
        r.v[i] = uint8_t((packed.v[i] >> (V % 2 * 4) & 15) | (bits.v[i] >> (2 * V) & 3) << 4);
    return r;
}

/// Five-bit codes: the entry of the low (V even) or high nibble of each byte, mirrored where bit V of that
/// byte of `bits` is set.
template <int V>
vc five_bits(vc codebook, vc packed, vc bits) {
    vc r;
    for (int i = 0; i < 64; ++i)
        r.v[i] = uint8_t(codebook.v[packed.v[i] >> (V % 2 * 4) & 15] ^ (bits.v[i] >> V & 1) * 127);
    return r;
}
/// Bits 4 to 7 of each byte where 0 to 3 are, whatever is above them.
vc upper_bits(vc bits) {
    for (uint8_t& byte : bits.v)
        byte = uint8_t(byte >> 4);
    return bits;
}

void stay_in_registers(vi&) {}
vi dot_start(int32_t bias) { return iset(bias); }
/// acc[row] += sum over 4 inputs of code[row][i] * x[i]; codes below 128
vi dot_q4(vi acc, vc w, const int8_t* x) {
    for (int row = 0; row < 16; ++row)
        for (int i = 0; i < 4; ++i)
            acc.v[row] += int32_t(w.v[4 * row + i]) * x[i];
    return acc;
}
/// The same for codes up to 255, where the level's dot_start_q8 says what the accumulator begins with.
vi dot_q8(vi acc, vc w, const int8_t* x) { return dot_q4(acc, w, x); }
vi dot_start_q8(int32_t bias) { return iset(bias); }
/// The same of x as Acts::split has it, from dot_start(bias) on.
inline vi dot_split(vi acc, vc w, const int8_t* x) {
    for (int row = 0; row < 16; ++row)
        for (int i = 0; i < 4; ++i)
            acc.v[row] += uint8_t(x[i]) * int8_t(w.v[4 * row + i] ^ uint8_t(x[4 + i]));
    return acc;
}
/// dot_q4 of two lines of codes below 64.
inline vi dot_eight_q6(vi acc, vc w, vc next, const int8_t* x, const int8_t* next_x) {
    return dot_q4(dot_q4(acc, w, x), next, next_x);
}

#undef RWKV_LANES

} // namespace
} // namespace rwkv::cpu
