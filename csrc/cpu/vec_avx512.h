// Sixteen lanes in AVX-512 (F, BW, VL, DQ, VNNI). The names are described in vec_scalar.h.
#pragma once

#ifndef __AVX512VNNI__
#error "compile with the AVX-512 flags of cmake/cpu_levels.cmake"
#endif

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "formats/matrix.h"

namespace rwkv::cpu {
namespace {

constexpr int kMaxTokens = 8;
constexpr int kFloatRows = 4;         // rows of floats that kMaxTokens / 2 tokens meet in registers
constexpr bool kDecodesTiles = false; // whether tiles are decoded for all tokens at once
constexpr bool kTakesPanels = true;   // whether many tokens meet two tiles at once
constexpr bool kSplitsSigns = false;
constexpr bool kAddsSixBits = false;
constexpr int kValueVectors = 4; // vectors of value channels that a recurrence takes at once

using vf = __m512;
using vi = __m512i;
using vc = __m512i;

inline __mmask16 first(int n) { return __mmask16((1u << n) - 1u); }

inline vf set(float x) { return _mm512_set1_ps(x); }
inline vf zero() { return _mm512_setzero_ps(); }
inline vf load(const float* p) { return _mm512_loadu_ps(p); }
inline vf load_n(const float* p, int n) { return n >= 16 ? load(p) : _mm512_maskz_loadu_ps(first(n), p); }
inline void store(float* p, vf a) { _mm512_storeu_ps(p, a); }
inline void store_n(float* p, vf a, int n) {
    if (n >= 16) // a masked store is not forwarded to the loads that follow
        return store(p, a);
    _mm512_mask_storeu_ps(p, first(n), a);
}
inline vf widen_bf16(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
inline vf load_bf16(const uint16_t* p) { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
inline vf load_bf16_n(const uint16_t* p, int n) { return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }
inline vf load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline vf load_f16_n(const uint16_t* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
}

inline vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf max(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf min(vf a, vf b) { return _mm512_min_ps(a, b); }
inline vf abs(vf a) { return _mm512_abs_ps(a); }
inline vf select_lt(vf a, vf b, vf x, vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

inline float fold(__m256 eight) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float reduce_add(vf a) {
    return fold(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}
inline float reduce_max(vf a) { return _mm512_reduce_max_ps(a); }

inline vi iset(int32_t x) { return _mm512_set1_epi32(x); }
inline vi round_int(vf a) { return _mm512_cvtps_epi32(a); }
inline vf to_float(vi a) { return _mm512_cvtepi32_ps(a); }
inline vf pow2(vi n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, iset(127)), 23)); }
inline vi load_i8(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline void store_i8(int8_t* p, vi a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a)); }
inline vf square_law(vi s) { return to_float(_mm512_mullo_epi32(s, _mm512_abs_epi32(s))); }

inline vi load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline vi isub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
template <int I>
inline vi shift_right(vi a) {
    return _mm512_srai_epi32(a, I);
}
template <int I>
inline vi signed_byte(vi a) {
    return _mm512_srai_epi32(_mm512_slli_epi32(a, 24 - 8 * I), 24);
}
inline __m512i four_quads(const uint8_t* const* p, size_t at) {
    const auto quad = [&](int i) { return _mm_loadu_si128((const __m128i*)(p[4 * i] + at)); };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(quad(0)), quad(1), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(quad(2)), quad(3), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
inline void load_columns(const uint8_t* const* p, size_t at, vi (&to)[4]) {
    const vi a = four_quads(p, at), b = four_quads(p + 1, at), c = four_quads(p + 2, at),
             d = four_quads(p + 3, at);
    const vi ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
    const vi cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
    to[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
    to[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
    to[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
    to[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
}
inline vi iadd(vi a, vi b) { return _mm512_add_epi32(a, b); }
inline void store_sums(int32_t* to, const vi (&m)[4], int32_t factor) {
    const vi ab = iadd(_mm512_unpacklo_epi32(m[0], m[1]), _mm512_unpackhi_epi32(m[0], m[1]));
    const vi cd = iadd(_mm512_unpacklo_epi32(m[2], m[3]), _mm512_unpackhi_epi32(m[2], m[3]));
    const vi all = iadd(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i two = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
    _mm_storeu_si128((__m128i*)to, _mm_mullo_epi32(sums, _mm_set1_epi32(factor)));
}
inline void store_pairs(int32_t* to, vi a) { _mm256_storeu_si256((__m256i*)to, _mm512_cvtsepi32_epi16(a)); }
inline unsigned nonzero_mask(vf a) {
    unsigned mask = _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_NEQ_UQ);
#ifdef __GNUC__
    __asm__("" : "+r"(mask)); // GCC 12 spills a mask register as two bytes and reads four back
#endif
    return mask;
}
inline int lowest_bit(unsigned mask) { return int(_mm_popcnt_u32((mask & (0u - mask)) - 1)); }

inline int count_bits(unsigned mask) { return int(_mm_popcnt_u32(mask)); }
inline void pack(unsigned mask, vf a, vf b, int32_t first, int32_t* lanes, float* products) {
    const vi numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 chosen = __mmask16(mask);
    _mm512_storeu_si512(lanes, _mm512_maskz_compress_epi32(chosen, _mm512_add_epi32(numbers, iset(first))));
    store(products, _mm512_maskz_compress_ps(chosen, mul(a, b)));
}

using vh = __m512i;
constexpr int kHalves = 1;
inline vh load_half(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline vh half_set(int32_t x) { return _mm512_set1_epi32(x); }
inline vh low_words(vh a, vh b) { return _mm512_mask_blend_epi16(0xaaaaaaaau, a, _mm512_slli_epi32(b, 16)); }
inline vh high_words(vh a, vh b) { return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(a, 16), b); }
inline vh half_codebook(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
}
inline vh low_nibbles(vh codebook, vh x) {
    return _mm512_shuffle_epi8(codebook, _mm512_and_si512(x, _mm512_set1_epi8(15)));
}
inline vh high_nibbles(vh codebook, vh x) { return low_nibbles(codebook, _mm512_srli_epi16(x, 4)); }
inline vh pair_words(const uint8_t* a, const uint8_t* b) {
    const auto words = [](const uint8_t* p) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    };
    return _mm512_or_si512(words(a), _mm512_slli_epi32(words(b), 16));
}
template <int V>
inline vh half_six_bits(vh x, vh bits) {
    if constexpr (V % 2)
        x = _mm512_srli_epi16(x, 4);
    if constexpr (V < 2)
        bits = _mm512_slli_epi16(bits, 4 - 2 * V);
    else if constexpr (V == 3)
        bits = _mm512_srli_epi16(bits, 2);
    constexpr int kSelected = 0xea; // (a and b) or c
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), x, _mm512_and_si512(bits, _mm512_set1_epi8(0x30)),
                                     kSelected);
}
inline vh pair_bytes(const uint8_t* a, const uint8_t* b) {
    const auto bytes = [](const uint8_t* p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    };
    const __m512i both = _mm512_or_si512(bytes(a), _mm512_slli_epi32(bytes(b), 16));
    return _mm512_or_si512(both, _mm512_slli_epi32(both, 4));
}
template <int V>
inline vh half_five_bits(vh codebook, vh x, vh bits) {
    const vh entries = V % 2 ? high_nibbles(codebook, x) : low_nibbles(codebook, x);
    return _mm512_mask_sub_epi8(entries, _mm512_test_epi8_mask(bits, _mm512_set1_epi8(1 << V)),
                                _mm512_set1_epi8(127), entries);
}
inline vh even_bytes(vh x) { return _mm512_and_si512(x, _mm512_set1_epi16(255)); }
inline vh odd_bytes(vh x) { return _mm512_srli_epi16(x, 8); }
inline vh dot_pairs(vh acc, vh w, int32_t x) {
#ifdef __GNUC__ // of the intrinsic GCC 12 makes two more moves between registers
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(iset(x)));
    return acc;
#else
    return _mm512_dpwssd_epi32(acc, w, iset(x));
#endif
}
inline void add_scaled(float* y, vh acc, float scale) { store(y, fma(to_float(acc), set(scale), load(y))); }

#define RWKV_VEC_SUMS_BYTES 1 // sparse_bytes_inl.h
/// What is worked on at once of a line: its bytes, and as many words and floats as there are in it.
using pc = vc;
using pi = vi;
using pf = vf;
constexpr int kLineParts = 1;
inline pc load_part(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline pc part_codebook(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
}
/// Codes of 8 bits as dot_bytes takes them, and the zero point that a form's codes have then.
inline pc dot_codes(pc codes) { return codes; }
constexpr int dot_zero(Encoding e) { return zero_point(e); }
/// Words of 16 lanes in four vectors as two bytes, word = 256 high + low, both signed: word 4 i + j of low
/// and of high has the bytes of lanes 4 i to 4 i + 3 of m[j]. Words within 127 * 257.
inline void split_words(const vi (&m)[4], vi& low, vi& high) {
    const vi a = _mm512_packs_epi32(m[0], m[1]), b = _mm512_packs_epi32(m[2], m[3]);
    const vi byte = _mm512_set1_epi16(255), half = _mm512_set1_epi16(128);
    low = _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
    high = _mm512_packs_epi16(_mm512_srai_epi16(_mm512_add_epi16(a, half), 8),
                              _mm512_srai_epi16(_mm512_add_epi16(b, half), 8));
}
inline void store_words(int32_t* p, vi a) { _mm512_storeu_si512(p, a); }
/// Four words in every quarter.
inline vi load_quad(const int32_t* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)); }
/// Words I, J, K, L of each quarter.
template <int I, int J, int K, int L>
inline vi pick_words(vi a) {
    return _mm512_shuffle_epi32(a, _MM_PERM_ENUM(I | J << 2 | K << 4 | L << 6));
}
/// Words 0 and 2 (1 and 3) of each quarter of a, then of b.
inline vi even_words(vi a, vi b) {
    return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0x88));
}
inline vi odd_words(vi a, vi b) {
    return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0xdd));
}
/// Words of one byte of each of four vectors: word 4 i + j of to[v] from their bytes 16 i + 4 v + j.
inline void mix_bytes(vc a, vc b, vc c, vc d, vc (&to)[4]) {
    const vc ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
    const vc cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
    to[0] = _mm512_unpacklo_epi16(ab_low, cd_low);
    to[1] = _mm512_unpackhi_epi16(ab_low, cd_low);
    to[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
    to[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
}
/// acc[i] += sum of the four bytes of w[i] (unsigned) times those of x[i] (signed)
inline vi dot_bytes(vi acc, vc w, vi x) {
#ifdef __GNUC__ // of the intrinsic GCC 12 makes two more moves between registers
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
#else
    return _mm512_dpbusd_epi32(acc, w, x);
#endif
}
inline pc set_bytes(int byte) { return _mm512_set1_epi8(char(byte)); }
inline pi set_words(int word) { return _mm512_set1_epi32(word); }
inline pf set_part(float x) { return set(x); }
/// y += (256 high + low) * step
inline void add_part(float* y, pi low, pi high, pf step) {
    store(y, fma(to_float(iadd(_mm512_slli_epi32(high, 8), low)), step, load(y)));
}
/// Four vectors, `stride` apart: word 4 i + j of the v-th becomes word 4 i + v of the j-th.
inline void transpose_quads(float* p, int stride) {
    const auto at = [&](int i) { return load(p + i * stride); };
    const auto put = [&](int i, __m512d a) { store(p + i * stride, _mm512_castpd_ps(a)); };
    const auto pairs = [](vf a) { return _mm512_castps_pd(a); };
    const vf a = at(0), b = at(1), c = at(2), d = at(3);
    const __m512d ab_low = pairs(_mm512_unpacklo_ps(a, b)), ab_high = pairs(_mm512_unpackhi_ps(a, b));
    const __m512d cd_low = pairs(_mm512_unpacklo_ps(c, d)), cd_high = pairs(_mm512_unpackhi_ps(c, d));
    put(0, _mm512_unpacklo_pd(ab_low, cd_low));
    put(1, _mm512_unpackhi_pd(ab_low, cd_low));
    put(2, _mm512_unpacklo_pd(ab_high, cd_high));
    put(3, _mm512_unpackhi_pd(ab_high, cd_high));
}

inline vc load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_codes(uint8_t* p, vc x) { _mm512_storeu_si512(p, x); }
inline vc load_codebook(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
}
inline vc low_codes(vc codebook, vc packed) {
    return _mm512_shuffle_epi8(codebook, _mm512_and_si512(packed, _mm512_set1_epi8(15)));
}
inline vc high_codes(vc codebook, vc packed) {
    return _mm512_shuffle_epi8(codebook,
                               _mm512_and_si512(_mm512_srli_epi16(packed, 4), _mm512_set1_epi8(15)));
}

template <int V>
inline vc six_bits(vc packed, vc bits) {
    return half_six_bits<V>(packed, bits);
}

template <int V>
inline vc five_bits(vc codebook, vc packed, vc bits) {
    return half_five_bits<V>(codebook, packed, bits);
}
inline vc upper_bits(vc bits) { return _mm512_srli_epi16(bits, 4); }

inline int32_t four_bytes(const int8_t* x) {
    int32_t word;
    memcpy(&word, x, 4);
    return word;
}
/// The largest of each of four vectors, in every quarter of the result for that quarter of them.
inline vf largest_of_quarters(vf a, vf b, vf c, vf d) {
    const vf ab = max(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const vf cd = max(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const auto pairs = [](vf v) { return _mm512_castps_pd(v); };
    return max(_mm512_castpd_ps(_mm512_unpacklo_pd(pairs(ab), pairs(cd))),
               _mm512_castpd_ps(_mm512_unpackhi_pd(pairs(ab), pairs(cd))));
}
/// Codes, scales and biases (see Acts) of 32 channels of eight rows, whose integers need no order of summing:
/// the quads of a place stand side by side. False, with nothing settled, if there is a value that is no
/// number.
inline bool quantize_block(const float* x, size_t stride, float tiny, int8_t* q, float* scale,
                           int32_t* bias_q8, int32_t* bias_q4) {
    vf m[8];
    for (size_t t = 0; t < 8; ++t)
        m[t] = max(abs(load(x + t * stride)), abs(load(x + t * stride + 16)));
    const vf low = largest_of_quarters(m[0], m[1], m[2], m[3]);
    const vf high = largest_of_quarters(m[4], m[5], m[6], m[7]);
    const vf halves = max(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
    const __m256 largest = _mm512_castps512_ps256(
        max(_mm512_shuffle_f32x4(halves, halves, 0x88), _mm512_shuffle_f32x4(halves, halves, 0xdd)));
    const __mmask8 used = _mm256_cmp_ps_mask(largest, _mm256_set1_ps(tiny), _CMP_GT_OQ);
    const __m256 most = _mm256_set1_ps(127.0f);
    float inverse[8];
    _mm256_storeu_ps(inverse, _mm256_maskz_div_ps(used, most, largest));
    _mm256_storeu_ps(scale, _mm256_maskz_div_ps(used, largest, most));
    const vi first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const vi second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const vi ones = _mm512_set1_epi8(1), none = _mm512_set1_epi8(-128); // NaN rounds to INT32_MIN
    __mmask64 wrong = 0;
    __m256i sums[2];
    for (size_t half = 0; half < 2; ++half) {
        vi code[8];
        for (size_t t = 0; t < 8; ++t)
            code[t] = round_int(mul(load(x + t * stride + 16 * half), set(inverse[t])));
        const auto quads = [&](size_t t) { // of rows t to t + 3, a place in each quarter
            return _mm512_packs_epi16(_mm512_packs_epi32(code[t], code[t + 1]),
                                      _mm512_packs_epi32(code[t + 2], code[t + 3]));
        };
        const vi a = quads(0), b = quads(4);
        const vi c = _mm512_permutex2var_epi64(a, first, b), d = _mm512_permutex2var_epi64(a, second, b);
        _mm512_storeu_si512(q + 128 * half, c);
        _mm512_storeu_si512(q + 128 * half + 64, d);
        wrong |= _mm512_cmpeq_epi8_mask(c, none) | _mm512_cmpeq_epi8_mask(d, none);
        const vi all = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, c), ones, d);
        sums[half] = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    }
    const auto minus = [](__m256i v) { return _mm256_sub_epi32(_mm256_setzero_si256(), v); };
    _mm256_storeu_si256((__m256i*)bias_q4, minus(_mm256_slli_epi32(sums[0], 6)));
    _mm256_storeu_si256((__m256i*)(bias_q4 + 8), minus(_mm256_slli_epi32(sums[1], 6)));
    _mm256_storeu_si256((__m256i*)bias_q8, minus(_mm256_slli_epi32(_mm256_add_epi32(sums[0], sums[1]), 7)));
    return wrong == 0;
}
inline void stay_in_registers(vi&) {}
inline vi dot_start(int32_t bias) { return iset(bias); }
inline vi dot_q4(vi acc, vc w, const int8_t* x) { return _mm512_dpbusd_epi32(acc, w, iset(four_bytes(x))); }
inline vi dot_start_q8(int32_t bias) { return iset(bias); }
inline vi dot_q8(vi acc, vc w, const int8_t* x) { return dot_q4(acc, w, x); }

} // namespace
} // namespace rwkv::cpu
