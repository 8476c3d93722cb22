// The arithmetic of "kn" products where four channels are summed at a time, as bytes: multipliers of 16 bits
// are two bytes each, whose sums meet at a block's end.
#pragma once

#include "cpu/sparse_block_inl.h"

namespace rwkv::cpu {
namespace {

template <Encoding E, int kGroup>
struct ByteSums {
    /// Of sixteen groups: what the block's codes are multiplied by. A slot holds, four channels in a word,
    /// words of channels 0 to 3, then of 4 to 7 and so on; the four words of each are for the outputs of a
    /// record's bytes 0 to 3, 4 to 7 and so on. A line has one slot, or one for low nibbles and one for high
    /// ones.
    struct Multipliers {
        static constexpr int kSlots = 8;
        int32_t low[kSlots][kBlock], high[kSlots][kBlock];
    };

    /// Groups [begin, end) of the window whose scales stand at `scales_at` in the records. Both are multiples
    /// of 4.
    RWKV_BY_ITSELF static void set_multipliers(const ChannelBlock& block, size_t scales_at, int begin,
                                               int end, Multipliers& to) {
        vi columns[kWindow / 4];
        load_columns(block.record, scales_at, columns);
        const vf factor = load(block.factor);
        const auto four_groups = [&](vi column, vi& low, vi& high) {
            vi m[4];
            m[0] = round_int(mul(factor, square_law(signed_byte<0>(column))));
            m[1] = round_int(mul(factor, square_law(signed_byte<1>(column))));
            m[2] = round_int(mul(factor, square_law(signed_byte<2>(column))));
            m[3] = round_int(mul(factor, square_law(signed_byte<3>(column))));
            split_words(m, low, high);
        };
        const auto put = [&](int slot, vi low, vi high) {
            store_words(to.low[slot], low);
            store_words(to.high[slot], high);
        };
        for (int g = begin; g < end; g += 4) {
            vi low, high;
            four_groups(columns[g / 4], low, high);
            if constexpr (E == Encoding::kQ8) { // a line has two groups
                put(g / 2, pick_words<0, 0, 1, 1>(low), pick_words<0, 0, 1, 1>(high));
                put(g / 2 + 1, pick_words<2, 2, 3, 3>(low), pick_words<2, 2, 3, 3>(high));
            } else if constexpr (kGroup == 32) {
                put(g / 4, low, high);
            } else { // eight, of low and high nibbles in turns
                vi next_low, next_high;
                g += 4;
                four_groups(columns[g / 4], next_low, next_high);
                put(g / 4 - 1, even_words(low, next_low), even_words(high, next_high));
                put(g / 4, odd_words(low, next_low), odd_words(high, next_high));
            }
        }
    }

    /// y[0..lines * kOutputs) += the block's products with `lines` lines from `line` on of every record, the
    /// first of which is the window's line `place`. Before each a step is taken by `fetcher`. The outputs of
    /// a line stand in the order of put_in_order.
    template <class F>
    RWKV_BY_ITSELF static void add_lines(const Matrix& w, const ChannelBlock& block, int line, int lines,
                                         int place, const Multipliers& m, float* y, F& fetcher) {
        constexpr int kVectors = line_outputs(E) / 16, kSlots = E != Encoding::kQ8 && kGroup == 16 ? 2 : 1;
        const pf step = set_part(block.step);
        pc codebook{};
        if constexpr (has_codebook(E))
            codebook = part_codebook(w.cb);
        for (const int end = line + lines; line < end; ++line, ++place, y += 16 * kVectors) {
            fetcher.step();
            const int32_t (*m_low)[kBlock] = m.low + kSlots * place,
                          (*m_high)[kBlock] = m.high + kSlots * place;
            pi low_start[kSlots], high_start[kSlots]; // what the codes' zero point adds
            for (int slot = 0; slot < kSlots; ++slot) {
                low_start[slot] = zero_sums(m_low[slot]);
                high_start[slot] = zero_sums(m_high[slot]);
            }
            for (int part = 0; part < kLineParts; ++part) {
                pi low[kVectors], high[kVectors];
                for (int i = 0; i < kVectors; ++i) {
                    low[i] = low_start[i % kSlots];
                    high[i] = high_start[i % kSlots];
                }
                const size_t at = size_t(line) * 64 + size_t(part) * (64 / kLineParts);
                RWKV_UNROLL
                for (int quad = 0; quad < kBlock; quad += 4) {
                    const uint8_t* const* record = block.record + quad;
                    const auto load_bytes = [&](int i) { return load_part(record[i] + at); };
                    pc bytes[4];
                    mix_bytes(load_bytes(0), load_bytes(1), load_bytes(2), load_bytes(3), bytes);
                    const auto add = [&](int i, pc codes) {
                        const int slot = i % kSlots;
                        low[i] = dot_bytes(low[i], codes, load_quad(m_low[slot] + quad));
                        high[i] = dot_bytes(high[i], codes, load_quad(m_high[slot] + quad));
                    };
                    RWKV_UNROLL
                    for (int v = 0; v < 4; ++v) {
                        if constexpr (E == Encoding::kQ8) {
                            add(v, dot_codes(bytes[v]));
                        } else {
                            add(2 * v, low_codes(codebook, bytes[v]));
                            add(2 * v + 1, high_codes(codebook, bytes[v]));
                        }
                    }
                }
                RWKV_UNROLL
                for (int i = 0; i < kVectors; ++i)
                    add_part(y + 16 * i + part * (16 / kLineParts), low[i], high[i], step);
            }
        }
    }

    /// What makes up for the zero point that the codes of a slot keep.
    static pi zero_sums(const int32_t* multipliers) {
        const pc zero_points = set_bytes(dot_zero(E));
        pi sum = set_words(0);
        for (int quad = 0; quad < kBlock; quad += 4)
            sum = dot_bytes(sum, zero_points, load_quad(multipliers + quad));
        return isub(set_words(0), sum);
    }

    /// Puts the outputs of a line in order, after all blocks.
    static void put_in_order(float* y) {
        if constexpr (E == Encoding::kQ8) {
            transpose_quads(y, 16);
        } else { // low nibbles, high nibbles
            transpose_quads(y, 32);
            transpose_quads(y + 16, 32);
        }
    }
};

} // namespace
} // namespace rwkv::cpu
