// Sixteen lanes as two AVX2 halves; with RWKV_VEC_VNNI the integer products use AVX-VNNI. Names:
// vec_scalar.h.
#pragma once

#if !defined(__AVX2__)
#error "compile with the AVX2 flags of cmake/cpu_levels.cmake"
#endif

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "formats/matrix.h"

namespace rwkv::cpu {
namespace {

constexpr int kMaxTokens = 4;        // eight of the sixteen registers are accumulators
constexpr int kFloatRows = 2;        // rows of floats that kMaxTokens / 2 tokens meet in registers
constexpr bool kDecodesTiles = true; // so the codebook needs none
constexpr bool kTakesPanels = false; // for want of registers
constexpr int kValueVectors = 2;     // of a head, whose sums stay in registers

struct vf {
    __m256 a, b;
};
struct vi {
    __m256i a, b;
};
using vc = vi;

inline vf set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline vf zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline vf load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline vf load_n(const float* p, int n) {
    if (n >= 16)
        return load(p);
    return {_mm256_maskload_ps(p, first(n)), _mm256_maskload_ps(p + 8, first(n - 8))};
}
inline void store(float* p, vf x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline void store_n(float* p, vf x, int n) {
    if (n >= 16) // AMD's masked stores take dozens of cycles
        return store(p, x);
    _mm256_maskstore_ps(p, first(n), x.a);
    _mm256_maskstore_ps(p + 8, first(n - 8), x.b);
}
inline __m256 widen_bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline __m128i half_row(const uint16_t* p) { return _mm_loadu_si128((const __m128i*)p); }
inline vf load_bf16(const uint16_t* p) { return {widen_bf16(half_row(p)), widen_bf16(half_row(p + 8))}; }
inline vf load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(half_row(p)), _mm256_cvtph_ps(half_row(p + 8))};
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

inline vf add(vf x, vf y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline vf sub(vf x, vf y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline vf mul(vf x, vf y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline vf div(vf x, vf y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline vf fma(vf x, vf y, vf z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline vf max(vf x, vf y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline vf min(vf x, vf y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline vf abs(vf x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline vf select_lt(vf x, vf y, vf yes, vf no) {
    return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}

inline __m128 fold_to_four(vf x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
inline float reduce_add(vf x) {
    const __m128 four = fold_to_four(x), two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float reduce_max(vf x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

inline vi iset(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline vi round_int(vf x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline vf to_float(vi x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline __m256 pow2(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
inline vf pow2(vi n) { return {pow2(n.a), pow2(n.b)}; }
inline vi load_i8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
inline bool quantize_block(const float*, size_t, float, int8_t*, float*, int32_t*, int32_t*) {
    return false; // row by row
}
inline void store_i8(int8_t* p, vi x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)p, bytes);
}
inline vf square_law(vi s) {
    return to_float(
        {_mm256_mullo_epi32(s.a, _mm256_abs_epi32(s.a)), _mm256_mullo_epi32(s.b, _mm256_abs_epi32(s.b))});
}

inline __m256i load_half(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline vi load_words(const uint8_t* p) { return {load_half(p), load_half(p + 32)}; }
inline vi isub(vi x, vi y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
template <int I>
inline vi shift_right(vi x) {
    return {_mm256_srai_epi32(x.a, I), _mm256_srai_epi32(x.b, I)};
}
template <int I>
inline __m256i signed_byte(__m256i x) {
    return _mm256_srai_epi32(_mm256_slli_epi32(x, 24 - 8 * I), 24);
}
template <int I>
inline vi signed_byte(vi x) {
    return {signed_byte<I>(x.a), signed_byte<I>(x.b)};
}
inline __m256i two_quads(const uint8_t* const* p, size_t at) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(p[0] + at))),
                                   _mm_loadu_si128((const __m128i*)(p[4] + at)), 1);
}
inline void load_columns(const uint8_t* const* p, size_t at, vi (&to)[4]) {
    const auto half = [&](const uint8_t* const* eight, __m256i vi::* part) {
        const __m256i a = two_quads(eight, at), b = two_quads(eight + 1, at), c = two_quads(eight + 2, at),
                      d = two_quads(eight + 3, at);
        const __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
        const __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
        to[0].*part = _mm256_unpacklo_epi64(ab_low, cd_low);
        to[1].*part = _mm256_unpackhi_epi64(ab_low, cd_low);
        to[2].*part = _mm256_unpacklo_epi64(ab_high, cd_high);
        to[3].*part = _mm256_unpackhi_epi64(ab_high, cd_high);
    };
    half(p, &vi::a);
    half(p + 8, &vi::b);
}
inline void store_sums(int32_t* to, const vi (&m)[4], int32_t factor) {
    const auto half = [&](int i) { return _mm256_add_epi32(m[i].a, m[i].b); };
    const __m256i ab = _mm256_hadd_epi32(half(0), half(1)), cd = _mm256_hadd_epi32(half(2), half(3));
    const __m256i all = _mm256_hadd_epi32(ab, cd);
    const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    _mm_storeu_si128((__m128i*)to, _mm_mullo_epi32(sums, _mm_set1_epi32(factor)));
}
inline void store_pairs(int32_t* to, vi x) {
    _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8));
}
inline unsigned nonzero_mask(vf x) {
    const __m256 none = _mm256_setzero_ps();
    return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(x.a, none, _CMP_NEQ_UQ))) |
           unsigned(_mm256_movemask_ps(_mm256_cmp_ps(x.b, none, _CMP_NEQ_UQ))) << 8;
}
inline int lowest_bit(unsigned mask) { return int(_mm_popcnt_u32((mask & (0u - mask)) - 1)); }

inline int count_bits(unsigned mask) { return int(_mm_popcnt_u32(mask)); }
inline void pack(unsigned mask, vf a, vf b, int32_t first, int32_t* lanes, float* products) {
    float all[16];
    store(all, mul(a, b));
    for (; mask != 0; mask &= mask - 1, ++lanes, ++products) {
        const int i = lowest_bit(mask);
        *lanes = first + i;
        *products = all[i];
    }
}

using vh = __m256i;
constexpr int kHalves = 2; // sixteen registers hold the sums of half a line
inline vh half_set(int32_t x) { return _mm256_set1_epi32(x); }
inline vh low_words(vh a, vh b) { return _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa); }
inline vh high_words(vh a, vh b) { return _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa); }
inline vh half_codebook(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
}
inline vh low_nibbles(vh codebook, vh x) {
    return _mm256_shuffle_epi8(codebook, _mm256_and_si256(x, _mm256_set1_epi8(15)));
}
inline vh high_nibbles(vh codebook, vh x) { return low_nibbles(codebook, _mm256_srli_epi16(x, 4)); }
inline vh pair_words(const uint8_t* a, const uint8_t* b) {
    const auto words = [](const uint8_t* p) {
        return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    };
    return _mm256_or_si256(words(a), _mm256_slli_epi32(words(b), 16));
}
template <int V>
inline vh half_six_bits(vh x, vh bits) {
    if constexpr (V % 2)
        x = _mm256_srli_epi16(x, 4);
    if constexpr (V < 2)
        bits = _mm256_slli_epi16(bits, 4 - 2 * V);
    else if constexpr (V == 3)
        bits = _mm256_srli_epi16(bits, 2);
    return _mm256_or_si256(_mm256_and_si256(x, _mm256_set1_epi8(15)),
                           _mm256_and_si256(bits, _mm256_set1_epi8(0x30)));
}
inline vh pair_bytes(const uint8_t* a, const uint8_t* b) {
    const auto bytes = [](const uint8_t* p) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
    };
    const __m256i both = _mm256_or_si256(bytes(a), _mm256_slli_epi32(bytes(b), 16));
    return _mm256_or_si256(both, _mm256_slli_epi32(both, 4));
}
template <int V>
inline vh half_five_bits(vh codebook, vh x, vh bits) {
    const __m256i entries = V % 2 ? high_nibbles(codebook, x) : low_nibbles(codebook, x);
    const __m256i mirrored = _mm256_xor_si256(entries, _mm256_set1_epi8(127));
    return _mm256_blendv_epi8(entries, mirrored, _mm256_slli_epi16(bits, 7 - V)); // by the uppermost bit
}
inline vh even_bytes(vh x) { return _mm256_and_si256(x, _mm256_set1_epi16(255)); }
inline vh odd_bytes(vh x) { return _mm256_srli_epi16(x, 8); }
inline void add_scaled(float* y, vh acc, float scale) {
    _mm256_storeu_ps(y, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), _mm256_set1_ps(scale), _mm256_loadu_ps(y)));
}

inline vc load_codes(const uint8_t* p) { return load_words(p); }
inline void store_codes(uint8_t* p, vc x) {
    _mm256_storeu_si256((__m256i*)p, x.a);
    _mm256_storeu_si256((__m256i*)(p + 32), x.b);
}
inline vc load_codebook(const uint8_t* p) {
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
    return {twice, twice};
}
inline vc low_codes(vc codebook, vc packed) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_shuffle_epi8(codebook.a, _mm256_and_si256(packed.a, mask)),
            _mm256_shuffle_epi8(codebook.b, _mm256_and_si256(packed.b, mask))};
}
inline vc high_codes(vc codebook, vc packed) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_shuffle_epi8(codebook.a, _mm256_and_si256(_mm256_srli_epi16(packed.a, 4), mask)),
            _mm256_shuffle_epi8(codebook.b, _mm256_and_si256(_mm256_srli_epi16(packed.b, 4), mask))};
}

template <int V>
inline vc six_bits(vc packed, vc bits) {
    return {half_six_bits<V>(packed.a, bits.a), half_six_bits<V>(packed.b, bits.b)};
}

template <int V>
inline vc five_bits(vc codebook, vc packed, vc bits) {
    return {half_five_bits<V>(codebook.a, packed.a, bits.a), half_five_bits<V>(codebook.b, packed.b, bits.b)};
}
inline vc upper_bits(vc bits) { return {_mm256_srli_epi16(bits.a, 4), _mm256_srli_epi16(bits.b, 4)}; }

inline __m256i four_bytes(const int8_t* x) {
    int32_t word;
    memcpy(&word, x, 4);
    return _mm256_set1_epi32(word);
}
inline vi dot_start(int32_t bias) { return iset(bias); }

/// Keeps GCC from reordering sums over several steps, for which there are not enough registers.
inline void stay_in_registers(vi& x) {
#ifdef __GNUC__
    __asm__ volatile("" : "+x"(x.a), "+x"(x.b));
#else
    (void)x;
#endif
}

#ifdef RWKV_VEC_VNNI

inline vh dot_pairs(vh acc, vh w, int32_t x) { return _mm256_dpwssd_avx_epi32(acc, w, _mm256_set1_epi32(x)); }
inline vi dot_q4(vi acc, vc w, const int8_t* x) {
    const __m256i four = four_bytes(x);
    return {_mm256_dpbusd_avx_epi32(acc.a, w.a, four), _mm256_dpbusd_avx_epi32(acc.b, w.b, four)};
}
inline vi dot_start_q8(int32_t bias) { return iset(bias); }
inline vi dot_q8(vi acc, vc w, const int8_t* x) { return dot_q4(acc, w, x); }
constexpr bool kSplitsSigns = false;
constexpr bool kAddsSixBits = false;

#else

constexpr bool kSplitsSigns = true; // multiplications share their two ports with what moves signs
constexpr bool kAddsSixBits = true;

inline vh dot_pairs(vh acc, vh w, int32_t x) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(w, _mm256_set1_epi32(x)));
}
// Codes below 128 times bytes within +-127: a pair sums to at most 32258, so maddubs cannot saturate.
inline __m256i add_quads(__m256i acc, __m256i pairs) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline vi dot_q4(vi acc, vc w, const int8_t* x) {
    const __m256i four = four_bytes(x);
    return {add_quads(acc.a, _mm256_maddubs_epi16(w.a, four)),
            add_quads(acc.b, _mm256_maddubs_epi16(w.b, four))};
}
// Codes up to 255 would saturate: take the zero point off first (so the accumulator starts at 0, not at the
// bias) and move the sign of x to the weight.
inline vi dot_start_q8(int32_t) { return iset(0); }
inline vi dot_q8(vi acc, vc w, const int8_t* x) {
    const __m256i four = four_bytes(x), magnitude = _mm256_sign_epi8(four, four),
                  flip = _mm256_set1_epi8(-128);
    const __m256i wa = _mm256_sign_epi8(_mm256_xor_si256(w.a, flip), four);
    const __m256i wb = _mm256_sign_epi8(_mm256_xor_si256(w.b, flip), four);
    return {add_quads(acc.a, _mm256_maddubs_epi16(magnitude, wa)),
            add_quads(acc.b, _mm256_maddubs_epi16(magnitude, wb))};
}
// A magnitude is at most 127, what it meets within -128 and 127: a pair sums to no less than -32512.
inline vi dot_split(vi acc, vc w, const int8_t* x) {
    const __m256i magnitude = four_bytes(x), turn = four_bytes(x + 4);
    return {add_quads(acc.a, _mm256_maddubs_epi16(magnitude, _mm256_xor_si256(w.a, turn))),
            add_quads(acc.b, _mm256_maddubs_epi16(magnitude, _mm256_xor_si256(w.b, turn)))};
}
// Four products of codes below 64 sum to at most 32004.
inline vi dot_eight_q6(vi acc, vc w, vc next, const int8_t* x, const int8_t* next_x) {
    const __m256i four = four_bytes(x), next_four = four_bytes(next_x);
    const auto pairs = [&](__m256i a, __m256i b) {
        return _mm256_add_epi16(_mm256_maddubs_epi16(a, four), _mm256_maddubs_epi16(b, next_four));
    };
    return {add_quads(acc.a, pairs(w.a, next.a)), add_quads(acc.b, pairs(w.b, next.b))};
}

#endif

} // namespace
} // namespace rwkv::cpu
