// Sixteen lanes as four quarters of NEON (AArch64); with RWKV_VEC_DOTPROD the integer products use its dot
// products, with RWKV_VEC_I8MM also those of unsigned bytes and its products of matrices. Names:
// vec_scalar.h.
#pragma once

#if !defined(__aarch64__)
#error "for 64-bit ARM processors only"
#endif

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "formats/matrix.h"

namespace rwkv::cpu {
namespace {

constexpr int kMaxTokens = 4;        // sixteen of the 32 registers are accumulators
constexpr int kFloatRows = 2;        // rows of floats that kMaxTokens / 2 tokens meet in registers
constexpr bool kDecodesTiles = true; // so the codebook needs none
constexpr bool kTakesPanels = false; // for want of registers
constexpr bool kSplitsSigns = false;
constexpr bool kAddsSixBits = false;
constexpr int kValueVectors = 1; // of a head, whose sums stay in registers

struct vf {
    float32x4_t v[4];
};
struct vi {
    int32x4_t v[4];
};
struct vc {
    uint8x16_t v[4];
};

/// f of every quarter. No loop, so that quarters stay in registers.
template <class V, class F>
inline V quarters(F f) {
    return {{f(0), f(1), f(2), f(3)}};
}

inline vf set(float x) {
    return quarters<vf>([=](int) { return vdupq_n_f32(x); });
}
inline vf zero() { return set(0.0f); }
inline vf load(const float* p) {
    return quarters<vf>([=](int i) { return vld1q_f32(p + 4 * i); });
}
inline vf load_n(const float* p, int n) {
    if (n >= 16)
        return load(p);
    float lanes[16] = {};
    memcpy(lanes, p, size_t(n) * sizeof(float));
    return load(lanes);
}
inline void store(float* p, vf a) {
    vst1q_f32(p, a.v[0]);
    vst1q_f32(p + 4, a.v[1]);
    vst1q_f32(p + 8, a.v[2]);
    vst1q_f32(p + 12, a.v[3]);
}
inline void store_n(float* p, vf a, int n) {
    if (n >= 16)
        return store(p, a);
    float lanes[16];
    store(lanes, a);
    memcpy(p, lanes, size_t(n) * sizeof(float));
}
inline vf load_bf16(const uint16_t* p) {
    return quarters<vf>([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
inline vf load_f16(const uint16_t* p) {
    return quarters<vf>([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline vf load_bf16_n(const uint16_t* p, int n) {
    uint16_t lanes[16] = {};
    memcpy(lanes, p, size_t(n) * 2);
    return load_bf16(lanes);
}
inline vf load_f16_n(const uint16_t* p, int n) {
    uint16_t lanes[16] = {};
    memcpy(lanes, p, size_t(n) * 2);
    return load_f16(lanes);
}

inline vf add(vf a, vf b) {
    return quarters<vf>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline vf sub(vf a, vf b) {
    return quarters<vf>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline vf mul(vf a, vf b) {
    return quarters<vf>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline vf div(vf a, vf b) {
    return quarters<vf>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline vf fma(vf a, vf b, vf c) {
    return quarters<vf>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline vf select_lt(vf a, vf b, vf x, vf y) {
    return quarters<vf>([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]); });
}
// not the instructions of that name: they return a NaN where one is
inline vf max(vf a, vf b) { return select_lt(b, a, a, b); }
inline vf min(vf a, vf b) { return select_lt(a, b, a, b); }
inline vf abs(vf a) {
    return quarters<vf>([&](int i) { return vabsq_f32(a.v[i]); });
}

inline float reduce_add(vf a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float reduce_max(vf a) { // a NaN where there is one
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}

inline vi iset(int32_t x) {
    return quarters<vi>([=](int) { return vdupq_n_s32(x); });
}
inline vi round_int(vf a) {
    return quarters<vi>([&](int i) { // the conversion saturates, and makes 0 of a NaN
        const uint32x4_t fits = vcaltq_f32(a.v[i], vdupq_n_f32(2147483648.0f));
        return vbslq_s32(fits, vcvtnq_s32_f32(a.v[i]), vdupq_n_s32(INT32_MIN));
    });
}
inline vf to_float(vi a) {
    return quarters<vf>([&](int i) { return vcvtq_f32_s32(a.v[i]); });
}
inline vf pow2(vi n) {
    return quarters<vf>(
        [&](int i) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23)); });
}
inline vi load_i8(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
             vmovl_high_s16(high)}};
}
inline bool quantize_block(const float*, size_t, float, int8_t*, float*, int32_t*, int32_t*) {
    return false; // row by row
}
inline int16x8_t narrow(int32x4_t a, int32x4_t b) { return vqmovn_high_s32(vqmovn_s32(a), b); }
inline void store_i8(int8_t* p, vi a) {
    vst1q_s8(p, vqmovn_high_s16(vqmovn_s16(narrow(a.v[0], a.v[1])), narrow(a.v[2], a.v[3])));
}
inline vf square_law(vi s) {
    return quarters<vf>([&](int i) { return vcvtq_f32_s32(vmulq_s32(s.v[i], vabsq_s32(s.v[i]))); });
}

inline vi load_words(const uint8_t* p) {
    return quarters<vi>([=](int i) { return vreinterpretq_s32_u8(vld1q_u8(p + 16 * i)); });
}
inline vi isub(vi a, vi b) {
    return quarters<vi>([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
}
template <int I>
inline vi signed_byte(vi a) {
    return quarters<vi>([&](int i) { return vshrq_n_s32(vshlq_n_s32(a.v[i], 24 - 8 * I), 24); });
}
/// Word i of to[j] is word j of rows[i].
inline void transpose(const int32x4_t (&rows)[4], int32x4_t (&to)[4]) {
    const auto wide = [](int32x4_t a) { return vreinterpretq_s64_s32(a); };
    const auto words = [](int64x2_t a) { return vreinterpretq_s32_s64(a); };
    const int64x2_t ab_even = wide(vtrn1q_s32(rows[0], rows[1])), ab_odd = wide(vtrn2q_s32(rows[0], rows[1])),
                    cd_even = wide(vtrn1q_s32(rows[2], rows[3])), cd_odd = wide(vtrn2q_s32(rows[2], rows[3]));
    to[0] = words(vtrn1q_s64(ab_even, cd_even));
    to[1] = words(vtrn1q_s64(ab_odd, cd_odd));
    to[2] = words(vtrn2q_s64(ab_even, cd_even));
    to[3] = words(vtrn2q_s64(ab_odd, cd_odd));
}
inline void load_columns(const uint8_t* const* p, size_t at, vi (&to)[4]) {
    for (int i = 0; i < 4; ++i) {
        int32x4_t rows[4], columns[4];
        for (int j = 0; j < 4; ++j)
            rows[j] = vreinterpretq_s32_u8(vld1q_u8(p[4 * i + j] + at));
        transpose(rows, columns);
        for (int j = 0; j < 4; ++j)
            to[j].v[i] = columns[j];
    }
}
inline void store_sums(int32_t* to, const vi (&m)[4], int32_t factor) {
    const auto sums = [&](int i) {
        return vaddq_s32(vaddq_s32(m[i].v[0], m[i].v[1]), vaddq_s32(m[i].v[2], m[i].v[3]));
    };
    const int32x4_t all = vpaddq_s32(vpaddq_s32(sums(0), sums(1)), vpaddq_s32(sums(2), sums(3)));
    vst1q_s32(to, vmulq_n_s32(all, factor));
}
inline void store_pairs(int32_t* to, vi a) {
    vst1q_s32(to, vreinterpretq_s32_s16(narrow(a.v[0], a.v[1])));
    vst1q_s32(to + 4, vreinterpretq_s32_s16(narrow(a.v[2], a.v[3])));
}
inline unsigned nonzero_mask(vf a) {
    const auto zeros = [&](int i) { return vmovn_u32(vceqzq_f32(a.v[i])); };
    const uint8x8_t low = vmovn_u16(vcombine_u16(zeros(0), zeros(1))),
                    high = vmovn_u16(vcombine_u16(zeros(2), zeros(3)));
    const uint8x8_t bits = vcreate_u8(0x8040201008040201u);
    return unsigned(vaddv_u8(vbic_u8(bits, low))) | unsigned(vaddv_u8(vbic_u8(bits, high))) << 8;
}
inline int count_bits(unsigned mask) { return __builtin_popcount(mask); }
inline int lowest_bit(unsigned mask) { return __builtin_ctz(mask); }
inline void pack(unsigned mask, vf a, vf b, int32_t first, int32_t* lanes, float* products) {
    float all[16];
    store(all, mul(a, b));
    for (; mask != 0; mask &= mask - 1, ++lanes, ++products) {
        const int i = lowest_bit(mask);
        *lanes = first + i;
        *products = all[i];
    }
}

// Sixteen codes: the arithmetic of bytes.
inline uint8x16_t low_codes(uint8x16_t codebook, uint8x16_t packed) {
    return vqtbl1q_u8(codebook, vandq_u8(packed, vdupq_n_u8(15)));
}
inline uint8x16_t high_codes(uint8x16_t codebook, uint8x16_t packed) {
    return vqtbl1q_u8(codebook, vshrq_n_u8(packed, 4));
}
template <int V>
inline uint8x16_t six_bits(uint8x16_t packed, uint8x16_t bits) {
    if constexpr (V % 2)
        packed = vshrq_n_u8(packed, 4);
    if constexpr (V > 0)
        bits = vshrq_n_u8(bits, 2 * V);
    return vandq_u8(vsliq_n_u8(packed, bits, 4), vdupq_n_u8(63));
}
template <int V>
inline uint8x16_t five_bits(uint8x16_t codebook, uint8x16_t packed, uint8x16_t bits) {
    const uint8x16_t entries = V % 2 ? high_codes(codebook, packed) : low_codes(codebook, packed);
    return veorq_u8(entries, vandq_u8(vtstq_u8(bits, vdupq_n_u8(1 << V)), vdupq_n_u8(127)));
}
/// acc[i] += sum of the four bytes of w[i] times those of x[i], all signed. Without the instruction the
/// products of a pair must not both be 2^14.
inline int32x4_t dot_bytes(int32x4_t acc, uint8x16_t w, int8x16_t x) {
    const int8x16_t codes = vreinterpretq_s8_u8(w);
#ifdef RWKV_VEC_DOTPROD
    return vdotq_s32(acc, codes, x);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(codes), vget_low_s8(x)), high = vmull_high_s8(codes, x);
    return vpadalq_s16(acc, vpaddq_s16(low, high));
#endif
}
/// Codes of 8 bits as dot_bytes takes them: without their zero point.
inline uint8x16_t dot_codes(uint8x16_t codes) { return veorq_u8(codes, vdupq_n_u8(kQ8Zero)); }

// Half a line of records: sums of all of one would take all registers.
struct vh {
    int32x4_t v[2];
};
constexpr int kHalves = 2;
template <class F>
inline vh both(F f) {
    return {{f(0), f(1)}};
}
inline uint8x16_t bytes_of(int32x4_t a) { return vreinterpretq_u8_s32(a); }
inline int16x8_t halves_of(int32x4_t a) { return vreinterpretq_s16_s32(a); }
inline int32x4_t words_of(uint8x16_t a) { return vreinterpretq_s32_u8(a); }
inline int32x4_t words_of(int16x8_t a) { return vreinterpretq_s32_s16(a); }
inline vh load_half(const uint8_t* p) {
    return both([=](int i) { return words_of(vld1q_u8(p + 16 * i)); });
}
inline vh half_set(int32_t x) {
    return both([=](int) { return vdupq_n_s32(x); });
}
inline vh low_words(vh a, vh b) {
    return both([&](int i) { return vsliq_n_s32(a.v[i], b.v[i], 16); });
}
inline vh high_words(vh a, vh b) {
    return both([&](int i) { return words_of(vtrn2q_s16(halves_of(a.v[i]), halves_of(b.v[i]))); });
}
inline vh half_codebook(const uint8_t* cb) {
    const int32x4_t codebook = words_of(vld1q_u8(cb));
    return {{codebook, codebook}};
}
inline vh low_nibbles(vh codebook, vh a) {
    return both([&](int i) { return words_of(low_codes(bytes_of(codebook.v[0]), bytes_of(a.v[i]))); });
}
inline vh high_nibbles(vh codebook, vh a) {
    return both([&](int i) { return words_of(high_codes(bytes_of(codebook.v[0]), bytes_of(a.v[i]))); });
}
inline vh pair_words(const uint8_t* a, const uint8_t* b) {
    const int16x8_t first = vreinterpretq_s16_u8(vld1q_u8(a)), second = vreinterpretq_s16_u8(vld1q_u8(b));
    return {{words_of(vzip1q_s16(first, second)), words_of(vzip2q_s16(first, second))}};
}
template <int V>
inline vh half_six_bits(vh a, vh bits) {
    return both([&](int i) { return words_of(six_bits<V>(bytes_of(a.v[i]), bytes_of(bits.v[i]))); });
}
inline vh pair_bytes(const uint8_t* a, const uint8_t* b) {
    const auto halves = [](const uint8_t* p) { // a byte, and its upper half from bit 8 on
        const uint16x8_t bytes = vmovl_u8(vld1_u8(p));
        return vreinterpretq_s16_u16(vorrq_u16(bytes, vshlq_n_u16(bytes, 4)));
    };
    const int16x8_t first = halves(a), second = halves(b);
    return {{words_of(vzip1q_s16(first, second)), words_of(vzip2q_s16(first, second))}};
}
template <int V>
inline vh half_five_bits(vh codebook, vh a, vh bits) {
    return both([&](int i) {
        return words_of(five_bits<V>(bytes_of(codebook.v[0]), bytes_of(a.v[i]), bytes_of(bits.v[i])));
    });
}
inline vh even_bytes(vh a) {
    return both([&](int i) { return vandq_s32(a.v[i], vdupq_n_s32(0x00ff00ff)); });
}
inline vh odd_bytes(vh a) {
    return both(
        [&](int i) { return words_of(vreinterpretq_u8_u16(vshrq_n_u16(vreinterpretq_u16_s32(a.v[i]), 8))); });
}
inline vh dot_pairs(vh acc, vh w, int32_t x) {
    const int16x8_t pair = halves_of(vdupq_n_s32(x));
    return both([&](int i) {
        const int16x8_t codes = halves_of(w.v[i]);
        const int32x4_t low = vmull_s16(vget_low_s16(codes), vget_low_s16(pair));
        return vaddq_s32(acc.v[i], vpaddq_s32(low, vmull_high_s16(codes, pair)));
    });
}
inline void add_scaled(float* y, vh acc, float scale) {
    const auto add = [=](int32x4_t sums, float* to) {
        vst1q_f32(to, vfmaq_f32(vld1q_f32(to), vcvtq_f32_s32(sums), vdupq_n_f32(scale)));
    };
    add(acc.v[0], y);
    add(acc.v[1], y + 4);
}

#define RWKV_VEC_SUMS_BYTES 1 // sparse_bytes_inl.h; the names are described in vec_avx512.h
using pc = uint8x16_t;
using pi = int32x4_t;
using pf = float32x4_t;
constexpr int kLineParts = 4;
inline pc load_part(const uint8_t* p) { return vld1q_u8(p); }
inline pc part_codebook(const uint8_t* p) { return vld1q_u8(p); }
constexpr int dot_zero(Encoding e) { return e == Encoding::kQ8 ? 0 : zero_point(e); }
inline pc set_bytes(int byte) { return vdupq_n_u8(uint8_t(byte)); }
inline pi set_words(int word) { return vdupq_n_s32(word); }
inline pf set_part(float x) { return vdupq_n_f32(x); }
inline int8x16_t load_quad(const int32_t* p) { return vreinterpretq_s8_s32(vld1q_s32(p)); }
inline pi isub(pi a, pi b) { return vsubq_s32(a, b); }
inline void mix_bytes(pc a, pc b, pc c, pc d, pc (&to)[4]) {
    const auto pairs = [](pc x) { return vreinterpretq_u16_u8(x); };
    const auto bytes = [](uint16x8_t x) { return vreinterpretq_u8_u16(x); };
    const uint16x8_t ab_low = pairs(vzip1q_u8(a, b)), ab_high = pairs(vzip2q_u8(a, b));
    const uint16x8_t cd_low = pairs(vzip1q_u8(c, d)), cd_high = pairs(vzip2q_u8(c, d));
    to[0] = bytes(vzip1q_u16(ab_low, cd_low));
    to[1] = bytes(vzip2q_u16(ab_low, cd_low));
    to[2] = bytes(vzip1q_u16(ab_high, cd_high));
    to[3] = bytes(vzip2q_u16(ab_high, cd_high));
}
inline void add_part(float* y, pi low, pi high, pf step) {
    vst1q_f32(y, vfmaq_f32(vld1q_f32(y), vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(high, 8), low)), step));
}
inline void split_words(const vi (&m)[4], vi& low, vi& high) {
    for (int i = 0; i < 4; ++i) {
        const int16x8_t a = narrow(m[0].v[i], m[1].v[i]), b = narrow(m[2].v[i], m[3].v[i]);
        const int16x8_t half = vdupq_n_s16(128);
        low.v[i] = vreinterpretq_s32_s8(vmovn_high_s16(vmovn_s16(a), b));
        high.v[i] =
            vreinterpretq_s32_s8(vshrn_high_n_s16(vshrn_n_s16(vaddq_s16(a, half), 8), vaddq_s16(b, half), 8));
    }
}
inline void store_words(int32_t* p, vi a) {
    for (int i = 0; i < 4; ++i)
        vst1q_s32(p + 4 * i, a.v[i]);
}
template <int I, int J, int K, int L>
inline vi pick_words(vi a) {
    return quarters<vi>([&](int i) {
        const int32x4_t words = vdupq_laneq_s32(a.v[i], I);
        return vcopyq_laneq_s32(vcopyq_laneq_s32(vcopyq_laneq_s32(words, 1, a.v[i], J), 2, a.v[i], K), 3,
                                a.v[i], L);
    });
}
inline vi even_words(vi a, vi b) {
    return quarters<vi>([&](int i) { return vuzp1q_s32(a.v[i], b.v[i]); });
}
inline vi odd_words(vi a, vi b) {
    return quarters<vi>([&](int i) { return vuzp2q_s32(a.v[i], b.v[i]); });
}
inline void transpose_quads(float* p, int stride) {
    for (int i = 0; i < 16; i += 4) {
        int32x4_t rows[4], columns[4];
        for (int j = 0; j < 4; ++j)
            rows[j] = vreinterpretq_s32_f32(vld1q_f32(p + j * stride + i));
        transpose(rows, columns);
        for (int j = 0; j < 4; ++j)
            vst1q_f32(p + j * stride + i, vreinterpretq_f32_s32(columns[j]));
    }
}

inline vc load_codes(const uint8_t* p) {
    return quarters<vc>([=](int i) { return vld1q_u8(p + 16 * i); });
}
inline void store_codes(uint8_t* p, vc x) {
    vst1q_u8(p, x.v[0]);
    vst1q_u8(p + 16, x.v[1]);
    vst1q_u8(p + 32, x.v[2]);
    vst1q_u8(p + 48, x.v[3]);
}
inline vc load_codebook(const uint8_t* p) {
    const uint8x16_t codebook = vld1q_u8(p);
    return quarters<vc>([=](int) { return codebook; });
}
inline vc low_codes(vc codebook, vc packed) {
    return quarters<vc>([&](int i) { return low_codes(codebook.v[i], packed.v[i]); });
}
inline vc high_codes(vc codebook, vc packed) {
    return quarters<vc>([&](int i) { return high_codes(codebook.v[i], packed.v[i]); });
}
template <int V>
inline vc six_bits(vc packed, vc bits) {
    return quarters<vc>([&](int i) { return six_bits<V>(packed.v[i], bits.v[i]); });
}
template <int V>
inline vc five_bits(vc codebook, vc packed, vc bits) {
    return quarters<vc>([&](int i) { return five_bits<V>(codebook.v[i], packed.v[i], bits.v[i]); });
}
inline vc upper_bits(vc bits) {
    return quarters<vc>([&](int i) { return vshrq_n_u8(bits.v[i], 4); });
}

/// Keeps GCC from reordering sums over several steps, for which there are not enough registers.
inline void stay_in_registers(vi& x) {
    __asm__ volatile("" : "+w"(x.v[0]), "+w"(x.v[1]), "+w"(x.v[2]), "+w"(x.v[3]));
}
inline vi dot_start(int32_t bias) { return iset(bias); }
inline vi dot_q4(vi acc, vc w, const int8_t* x) {
    uint32_t word;
    memcpy(&word, x, 4);
#ifdef RWKV_VEC_I8MM // which, like the next, takes four bytes from where they are
    const int8x8_t four = vcreate_s8(word);
    return quarters<vi>([&](int i) { return vusdotq_lane_s32(acc.v[i], w.v[i], four, 0); });
#elif defined(RWKV_VEC_DOTPROD)
    const int8x8_t four = vcreate_s8(word);
    return quarters<vi>(
        [&](int i) { return vdotq_lane_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), four, 0); });
#else
    const int8x16_t four = vreinterpretq_s8_u32(vdupq_n_u32(word));
    return quarters<vi>([&](int i) { return dot_bytes(acc.v[i], w.v[i], four); });
#endif
}
#ifdef RWKV_VEC_I8MM
inline vi dot_start_q8(int32_t bias) { return iset(bias); }
inline vi dot_q8(vi acc, vc w, const int8_t* x) { return dot_q4(acc, w, x); }

#define RWKV_VEC_BLOCKS 1 // blocks_inl.h: a part holds two outputs of two tokens
/// acc[2 i + j] += sum of eight products of w[8 i ...] (unsigned) and x[8 j ...] (signed).
inline pi multiply_block(pi acc, pc w, pc x) { return vusmmlaq_s32(acc, w, vreinterpretq_s8_u8(x)); }
/// Words of two parts in turns.
inline void pair_words(pc a, pc b, pc (&to)[2]) {
    to[0] = bytes_of(vzip1q_s32(words_of(a), words_of(b)));
    to[1] = bytes_of(vzip2q_s32(words_of(a), words_of(b)));
}
/// Of four words the first two and the last two, each twice.
inline void repeat_pairs(pi a, pi (&to)[2]) {
    const int64x2_t pairs = vreinterpretq_s64_s32(a);
    to[0] = vreinterpretq_s32_s64(vdupq_laneq_s64(pairs, 0));
    to[1] = vreinterpretq_s32_s64(vdupq_laneq_s64(pairs, 1));
}
inline void repeat_pairs(pf a, pf (&to)[2]) {
    pi pairs[2];
    repeat_pairs(vreinterpretq_s32_f32(a), pairs);
    to[0] = vreinterpretq_f32_s32(pairs[0]);
    to[1] = vreinterpretq_f32_s32(pairs[1]);
}
/// Every word twice.
inline void repeat_words(pf a, pf (&to)[2]) {
    to[0] = vzip1q_f32(a, a);
    to[1] = vzip2q_f32(a, a);
}
/// The even words of both, and the odd ones.
inline void part_words(pf a, pf b, pf (&to)[2]) {
    to[0] = vuzp1q_f32(a, b);
    to[1] = vuzp2q_f32(a, b);
}
inline pf load_part(const float* p) { return vld1q_f32(p); }
inline pi load_part(const int32_t* p) { return vld1q_s32(p); }
inline void store_part(float* p, pf a) { vst1q_f32(p, a); }
inline void store_part(uint8_t* p, pc a) { vst1q_u8(p, a); }
inline void stay_in_registers(pi& x) { __asm__ volatile("" : "+w"(x)); }
inline pi iadd(pi a, pi b) { return vaddq_s32(a, b); }
inline pi halve(pi a) { return vshrq_n_s32(a, 1); }
inline pf to_float(pi a) { return vcvtq_f32_s32(a); }
inline pf mul(pf a, pf b) { return vmulq_f32(a, b); }
inline pf fma(pf a, pf b, pf c) { return vfmaq_f32(c, a, b); }
#else
// Bytes are signed: the zero point goes first, so the accumulator starts at 0, not at the bias.
inline vi dot_start_q8(int32_t) { return iset(0); }
inline vi dot_q8(vi acc, vc w, const int8_t* x) {
    return dot_q4(acc, quarters<vc>([&](int i) { return dot_codes(w.v[i]); }), x);
}
#endif

} // namespace
} // namespace rwkv::cpu
