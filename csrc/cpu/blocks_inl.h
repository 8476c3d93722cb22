// Products of many tokens where one instruction multiplies eight inputs of two outputs by those of two
// tokens. Every sum has the order that it has in matmat_inl.h.
#pragma once

#include "cpu/codes_inl.h"

namespace rwkv::cpu {
namespace {

#ifdef RWKV_VEC_BLOCKS
constexpr bool kTakesBlocks = true;
#else
constexpr bool kTakesBlocks = false;
#endif

/// Whether it pays for so many tokens to put a tile's codes in another order.
constexpr bool takes_blocks(int rows) { return kTakesBlocks && rows > kMaxTokens; }

#ifdef RWKV_VEC_BLOCKS
/// A tile as decode_tile makes it becomes one of blocks: 16 bytes hold 8 inputs of 2 rows, and a group's
/// scales stand two by two, each twice. `decoded` are its codes, or where they go if they are the file's own.
/// `scales` has room for twice as many.
template <Encoding E>
const uint8_t* order_blocks(const Matrix& w, const uint8_t* codes, uint8_t* decoded, float* scales,
                            int groups) {
    const size_t bytes = size_t(w.k_pad) * kTileRows;
    for (size_t i = 0; i < bytes; i += 128) {
        pc blocks[4][2];
        for (size_t part = 0; part < 4; ++part)
            pair_words(load_part(codes + i + 16 * part), load_part(codes + i + 64 + 16 * part), blocks[part]);
        for (size_t part = 0; part < 8; ++part)
            store_part(decoded + i + 16 * part, blocks[part / 2][part % 2]);
    }
    for (int g = groups - 1; g >= 0; --g) { // the last first, as they move up
        pf twice[4][2];
        for (int part = 0; part < 4; ++part)
            repeat_words(load_part(scales + g * kTileRows + 4 * part), twice[part]);
        for (int part = 0; part < 8; ++part)
            store_part(scales + 2 * g * kTileRows + 4 * part, twice[part / 2][part % 2]);
    }
    return decoded;
}

/// Outputs of a tile of blocks for the first T tokens of block `block`; otherwise as decoded_times_tokens.
/// Until the end two rows of y have the outputs of two tokens as blocks.
template <int T, Encoding E, int kGroup>
RWKV_BY_ITSELF void blocks_times_tokens(const Matrix& w, int tile, const uint8_t* codes, const float* scales,
                                        const Acts& x, int block, float* y, int y_stride,
                                        const uint8_t* fetch, int lines) {
    constexpr int kHalf = E == Encoding::kQ8 ? 32 : 16; // inputs per bias
    constexpr int kBiases = kGroup / kHalf, kPairs = kTileRows / 2;
    static_assert(kMaxTokens == 4, "a part holds a word of every token of a block");
    const size_t first_group = size_t(block) * size_t(w.k_pad / kActGroup) * kMaxTokens;
    const uint8_t* xq = reinterpret_cast<const uint8_t*>(x.q + first_group * kActGroup);
    const float* x_scale = x.scale + first_group;
    const int32_t* bias = E == Encoding::kQ8 ? x.bias_q8 + first_group : x.bias_q4 + 2 * first_group;
    for (int t = 0; t < T; ++t)
        store(y + t * y_stride, zero());
    for (int k = 0; k < w.k_pad; k += kGroup, scales += 2 * kTileRows) {
        for (int i = 0; i < lines; ++i, fetch += 64) {
            prefetch_far(fetch);
            keep_loop();
        }
        pi begin = load_part(bias), start[2], sum[kPairs][T / 2];
        if constexpr (kBiases == 2)
            begin = iadd(begin, load_part(bias + kMaxTokens));
        repeat_pairs(E == Encoding::kQ6 ? halve(begin) : begin, start); // see dot_start_q6
        bias += kBiases * kMaxTokens;
        for (int pair = 0; pair < kPairs; ++pair)
            for (int t = 0; t < T / 2; ++t)
                sum[pair][t] = start[t];
        for (int j = 0; j < kGroup / 8; ++j, codes += 8 * kTileRows, xq += 8 * kMaxTokens) {
            pc inputs[2];
            pair_words(load_part(xq), load_part(xq + 4 * kMaxTokens), inputs);
            RWKV_UNROLL
            for (int pair = 0; pair < kPairs; ++pair) {
                const pc quads = load_part(codes + 16 * pair);
                for (int t = 0; t < T / 2; ++t) {
                    sum[pair][t] = multiply_block(sum[pair][t], quads, inputs[t]);
                    stay_in_registers(sum[pair][t]);
                }
            }
        }
        pf factor[2];
        repeat_pairs(load_part(x_scale + k / kActGroup * kMaxTokens), factor);
        RWKV_UNROLL
        for (int pair = 0; pair < kPairs; ++pair) {
            const pf scale = load_part(scales + 4 * pair);
            for (int t = 0; t < T / 2; ++t) {
                float* total = y + (2 * t + pair / 4) * y_stride + pair % 4 * 4;
                store_part(total, fma(to_float(sum[pair][t]), mul(scale, factor[t]), load_part(total)));
            }
        }
    }
    for (int t = 0; t < T; t += 2, y += 2 * y_stride) {
        pf outputs[4][2]; // of the first token, of the second
        for (int i = 0; i < 4; ++i) {
            const float* pairs = y + i / 2 * y_stride + i % 2 * 8;
            part_words(load_part(pairs), load_part(pairs + 4), outputs[i]);
        }
        for (int i = 0; i < 4; ++i) {
            const pf row_scale = load_part(w.d + tile * kTileRows + 4 * i);
            store_part(y + 4 * i, mul(outputs[i][0], row_scale));
            store_part(y + y_stride + 4 * i, mul(outputs[i][1], row_scale));
        }
    }
}
#endif

} // namespace
} // namespace rwkv::cpu
