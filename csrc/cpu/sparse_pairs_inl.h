// The arithmetic of "kn" products where two channels are summed at a time, as 16-bit integers.
#pragma once

#include "cpu/sparse_block_inl.h"

namespace rwkv::cpu {
namespace {

template <Encoding E, int kGroup>
struct PairSums {
    /// Of sixteen groups: what the block's codes are multiplied by, two channels in a word, and where their
    /// sums start, since codes keep their zero point: minus it times the sum of the multipliers.
    struct Multipliers {
        int32_t pairs[kWindow][kBlock / 2];
        int32_t start[kWindow];
    };

    /// Groups [begin, end) of the window whose scales stand at `scales_at` in the records. Both are multiples
    /// of 4.
    static void set_multipliers(const ChannelBlock& block, size_t scales_at, int begin, int end,
                                Multipliers& to) {
        vi columns[kWindow / 4];
        load_columns(block.record, scales_at, columns);
        const vf factor = load(block.factor);
        for (int g = begin; g < end; g += 4) {
            vi m[4];
            const auto group = [&]<int I>() {
                m[I] = round_int(mul(factor, square_law(signed_byte<I>(columns[g / 4]))));
                store_pairs(to.pairs[g + I], m[I]);
            };
            group.template operator()<0>();
            group.template operator()<1>();
            group.template operator()<2>();
            group.template operator()<3>();
            store_sums(to.start + g, m, -zero_point(E));
        }
    }

    /// y[0..kOutputs) += the block's products with one 64-byte line of every record; its groups are the
    /// multipliers' from `first` on.
    RWKV_BY_ITSELF static void add_line(const Matrix& w, const ChannelBlock& block, int line,
                                        const Multipliers& m, int first, vh codebook, float* y) {
        constexpr int kVectors = line_outputs(E) / 16;
        const auto* pairs = m.pairs + first;
        for (int half = 0; half < kHalves; ++half) {
            const size_t at = size_t(line) * 64 + size_t(half) * (64 / kHalves);
            vh sum[kVectors];
            for (int i = 0; i < kVectors; ++i)
                sum[i] = half_set(m.start[first + 16 * i / kGroup]);
            for (int p = 0; p < kBlock / 2; ++p) {
                const vh a = load_half(block.record[2 * p] + at), b = load_half(block.record[2 * p + 1] + at);
                const vh low = low_words(a, b), high = high_words(a, b);
                const auto add = [&]<int I>(vh codes) { // outputs of the even bytes
                    sum[I] = dot_pairs(sum[I], even_bytes(codes), pairs[16 * I / kGroup][p]);
                };
                const auto add_odd = [&]<int I>(vh codes) {
                    sum[I] = dot_pairs(sum[I], odd_bytes(codes), pairs[16 * I / kGroup][p]);
                };
                if constexpr (E != Encoding::kQ8) {
                    vh low_even, low_odd, high_even, high_odd;
                    if constexpr (E == Encoding::kQ5) { // as of six bits, but one of each weight
                        const size_t above = size_t(w.n_pad) / 2 + at / 4;
                        const vh bits =
                            pair_bytes(block.record[2 * p] + above, block.record[2 * p + 1] + above);
                        low_even = half_five_bits<0>(codebook, low, bits);
                        low_odd = half_five_bits<1>(codebook, low, bits);
                        high_even = half_five_bits<2>(codebook, high, bits);
                        high_odd = half_five_bits<3>(codebook, high, bits);
                    } else if constexpr (E == Encoding::kQ4) {
                        low_even = low_nibbles(codebook, low), low_odd = high_nibbles(codebook, low);
                        high_even = low_nibbles(codebook, high), high_odd = high_nibbles(codebook, high);
                    } else { // the bits above a line's nibbles lie behind those of all lines
                        const size_t above = size_t(w.n_pad) / 2 + at / 2;
                        const vh bits =
                            pair_words(block.record[2 * p] + above, block.record[2 * p + 1] + above);
                        low_even = half_six_bits<0>(low, bits), low_odd = half_six_bits<1>(low, bits);
                        high_even = half_six_bits<2>(high, bits), high_odd = half_six_bits<3>(high, bits);
                    }
                    add.template operator()<0>(low_even);
                    add.template operator()<1>(low_odd);
                    add_odd.template operator()<2>(low_even);
                    add_odd.template operator()<3>(low_odd);
                    add.template operator()<4>(high_even);
                    add.template operator()<5>(high_odd);
                    add_odd.template operator()<6>(high_even);
                    add_odd.template operator()<7>(high_odd);
                } else {
                    add.template operator()<0>(low);
                    add_odd.template operator()<1>(low);
                    add.template operator()<2>(high);
                    add_odd.template operator()<3>(high);
                }
            }
            for (int i = 0; i < kVectors; ++i)
                add_scaled(y + 16 * i + half * (16 / kHalves), sum[i], block.step);
        }
    }

    /// y[0..lines * kOutputs) += the block's products with `lines` lines from `line` on of every record, the
    /// first of which is the window's line `place`. Before each a step is taken by `fetcher`.
    template <class F>
    static void add_lines(const Matrix& w, const ChannelBlock& block, int line, int lines, int place,
                          const Multipliers& m, float* y, F& fetcher) {
        vh codebook = half_set(0);
        if constexpr (has_codebook(E))
            codebook = half_codebook(w.cb);
        for (int i = 0; i < lines; ++i) {
            fetcher.step();
            add_line(w, block, line + i, m, (place + i) * line_groups(E, kGroup), codebook,
                     y + size_t(i) * line_outputs(E));
        }
    }

    /// Puts the outputs of a line in order, after all blocks.
    static void put_in_order(float*) {}
};

} // namespace
} // namespace rwkv::cpu
