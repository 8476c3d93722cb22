// Products with ffn.value stored by input channel (layout "kn"): channels whose relu^2 activation is zero are
// never read. A token's active channels are taken in ascending order, sixteen at a time: activation times
// record scale times group scale is rounded to 16 bits of the block's largest, the sum over the block is an
// exact int32, and one fused multiply-add brings it to the output. So the order is the same for one token and
// for many.
#pragma once

#include "cpu/kernels.h"

namespace rwkv::cpu {
namespace {

constexpr int kBlock = 16;                    // active channels that share one integer sum
constexpr int kChunkBytes = 256 * 1024;       // weights that several tokens visit while a cache holds them
constexpr float kLargestScale = 127.0f * 127; // of a group
constexpr float kLargest16 = 32767.0f;

struct ChannelBlock {
    const uint8_t* record[kBlock];
    float factor[kBlock]; ///< activation * record scale / step; times a group's scale it is at most 32767
    float step;
};

/// `count` (1 to 16) active channels of one token, with their activations times record scales; the places of
/// missing ones hold zeros.
inline ChannelBlock make_block(const Matrix& w, const int32_t* channels, const float* values, int count) {
    ChannelBlock block;
    for (int r = 0; r < kBlock; ++r)
        block.record[r] = w.q + size_t(channels[r < count ? r : 0]) * size_t(w.stride);
    const vf all = load_n(values, count);
    const float largest = reduce_max(abs(all));
    const bool used = largest > kTiny;
    const vf factor = mul(all, set(used ? kLargest16 / kLargestScale / largest : 0.0f));
    store(block.factor, factor);
    const bool finite = nonzero_mask(sub(factor, factor)) == 0;
    block.step = !finite ? NAN : used ? largest * (kLargestScale / kLargest16) : 0.0f;
    return block;
}

constexpr int kWindow = 16; // groups of scales that are made ready together

/// Of sixteen groups: what the block's codes are multiplied by, two channels in a word, and where their sums
/// start, since codes keep their zero point: minus it times the sum of the multipliers.
struct Multipliers {
    int32_t pairs[kWindow][kBlock / 2];
    int32_t start[kWindow];
};

/// Groups [begin, end) of the window whose scales stand at `scales_at` in the records. Both are multiples
/// of 4.
template <int kZero>
inline void set_multipliers(const ChannelBlock& block, size_t scales_at, int begin, int end,
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
        store_sums(to.start + g, m, -kZero);
    }
}

/// y[0..kOutputs) += the block's products with one 64-byte line of every record; its groups are the
/// multipliers' from `first` on.
template <Encoding E, int kGroup>
inline void add_line(const Matrix& w, const ChannelBlock& block, int line, const Multipliers& m, int first,
                     vh codebook, float* y) {
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
                    const vh bits = pair_bytes(block.record[2 * p] + above, block.record[2 * p + 1] + above);
                    low_even = half_five_bits<0>(codebook, low, bits);
                    low_odd = half_five_bits<1>(codebook, low, bits);
                    high_even = half_five_bits<2>(codebook, high, bits);
                    high_odd = half_five_bits<3>(codebook, high, bits);
                } else if constexpr (E == Encoding::kQ4) {
                    low_even = low_nibbles(codebook, low), low_odd = high_nibbles(codebook, low);
                    high_even = low_nibbles(codebook, high), high_odd = high_nibbles(codebook, high);
                } else { // the bits above a line's nibbles lie behind those of all lines
                    const size_t above = size_t(w.n_pad) / 2 + at / 2;
                    const vh bits = pair_words(block.record[2 * p] + above, block.record[2 * p + 1] + above);
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

/// Of what x [k] activates: the channels, ascending, and activation times record scale of each; returns their
/// number. What comes after them is overwritten up to a whole vector. Bit c % 16 of used[c / 16] is set for
/// each. x is padded to 32.
inline int find_active(const float* x, const Matrix& w, int32_t* channels, float* values, uint16_t* used) {
    int count = 0;
    for (int k = 0; k < w.k; k += 16) {
        const vf v = load(x + k);
        const unsigned mask = nonzero_mask(v);
        pack(mask, v, load_n(w.d + k, lanes(k, w.k)), k, channels + count, values + count);
        count += count_bits(mask);
        used[k / 16] = uint16_t(used[k / 16] | mask);
    }
    return count;
}

/// Channels whose bit is set (see find_active), ascending; returns their number.
inline int list_used(const uint16_t* used, int k, int32_t* channels) {
    int count = 0;
    for (int i = 0; i < k; i += 16)
        for (unsigned mask = used[i / 16]; mask != 0; mask &= mask - 1)
            channels[count++] = i + lowest_bit(mask);
    return count;
}

/// Fetches lines [begin, end) of the channels that are used, and their scales: those that come next bit by
/// bit while tokens visit others. They go into the second-level cache, but where one token takes a line in
/// halves (AVX2) into the first: that is much faster there, and a little slower elsewhere.
template <Encoding E>
class Fetcher {
  public:
    Fetcher(const Matrix& w, int begin, int end, size_t scales_at, const int32_t* used, int count, int tokens)
        : w_(w), begin_(begin), end_(end), scales_at_(scales_at), used_(used), count_(count),
          near_(kHalves > 1 && tokens == 1) {}

    /// Spreads the channels below `until` over the coming `steps` calls of `step`.
    void plan_until(int64_t until, int steps) {
        int stop = next_;
        while (stop < count_ && used_[stop] < until)
            ++stop;
        plan(stop - next_, steps);
    }
    /// The same with the next `records` channels.
    void plan(int records, int steps) {
        planned_ = records < count_ - next_ ? records : count_ - next_;
        steps_ = steps;
        credit_ = 0;
    }
    /// Fetches the scales of what is planned, so that all its pages are met at once: one after the other
    /// would hold up the lines.
    void meet() {
        for (int i = 0; i < planned_; ++i) {
            fetch(record(next_ + i) + scales_at_);
            keep_loop();
        }
    }
    void step() {
        for (credit_ += planned_; credit_ >= steps_; credit_ -= steps_) {
            const uint8_t* lines = record(next_++);
            fetch(lines + scales_at_);
            for (int line = begin_; line < end_; ++line)
                fetch(lines + size_t(line) * 64);
            if constexpr (E == Encoding::kQ6) // two lines of nibbles have one of the bits above them
                for (int line = begin_; line < end_ + begin_ % 2; line += 2)
                    fetch(lines + size_t(w_.n_pad) / 2 + size_t(line) * 32);
            if constexpr (E == Encoding::kQ5) // four have one
                for (int line = begin_; line < end_ + begin_ % 4; line += 4)
                    fetch(lines + size_t(w_.n_pad) / 2 + size_t(line) * 16);
        }
    }

  private:
    void fetch(const uint8_t* p) const {
        if (near_)
            prefetch(p);
        else
            prefetch_far(p);
    }
    const uint8_t* record(int i) const { return w_.q + size_t(used_[i]) * size_t(w_.stride); }

    const Matrix& w_;
    int begin_, end_;
    size_t scales_at_;
    const int32_t* used_;
    int count_, next_ = 0, planned_ = 0, steps_ = 1, credit_ = 0;
    bool near_;
};

/// Lines [begin, end) for tokens [t0, t0 + tokens): y[t] has (end - begin) * kOutputs floats.
template <Encoding E, int kGroup>
RWKV_BY_ITSELF void sparse_lines(const Matrix& w, int begin, int end, const Acts& x, int t0, int tokens,
                                 uint8_t* scratch) {
    constexpr int kOutputs = line_outputs(E);
    constexpr int kGroups = kOutputs / kGroup, kWindowLines = kWindow / kGroups; // of a line, in a window
    constexpr int kZero = E == Encoding::kQ8 ? kQ8Zero : E == Encoding::kQ6 ? kQ6Zero : kQ4Zero;
    const int lines = end - begin, width = lines * kOutputs;
    const size_t first_scale = w.code_bytes(size_t(w.n_pad));
    const size_t own_scale = first_scale + size_t(begin) * kGroups;
    const float* inputs = x.f + size_t(t0) * size_t(x.k_pad);
    const size_t stride = listed_channels(w); // of a token's channels and their values
    float* y = reinterpret_cast<float*>(scratch);
    float* values = y + size_t(tokens) * size_t(w.n_pad);
    int32_t* active = reinterpret_cast<int32_t*>(values + size_t(tokens) * stride);
    int32_t* any = active + size_t(tokens) * stride;
    uint16_t* used_bits = reinterpret_cast<uint16_t*>(any + stride);
    vh codebook = half_set(0);
    if constexpr (has_codebook(E))
        codebook = half_codebook(w.cb);
    for (int i = 0; i < w.k; i += 16) { // the channels' scales
        prefetch_far(reinterpret_cast<const uint8_t*>(w.d + i));
        keep_loop();
    }
    for (int i = 0; i < tokens * width; i += 16)
        store(y + i, zero());
    for (int i = 0; i < w.k; i += 16)
        used_bits[i / 16] = 0;
    int count[kSparseTokens] = {}, done[kSparseTokens] = {};
    for (int t = 0; t < tokens; ++t)
        count[t] = find_active(inputs + size_t(t) * size_t(x.k_pad), w, active + size_t(t) * stride,
                               values + size_t(t) * stride, used_bits);
    const int32_t* used = tokens == 1 ? active : any;
    const int used_count = tokens == 1 ? count[0] : list_used(used_bits, w.k, any);
    Fetcher<E> fetcher(w, begin, end, own_scale, used, used_count, tokens);
    // Tokens take turns on a chunk of channels; each finishes its blocks that begin in it.
    const int chunk = tokens == 1 ? w.k : kChunkBytes / (64 * (lines + 1));
    if (tokens == 1) {
        fetcher.plan(kBlock, 1);
        fetcher.meet();
    } else {
        fetcher.plan_until(chunk, 1);
    }
    fetcher.step();
    for (int64_t until = chunk; until < int64_t(w.k) + chunk; until += chunk) {
        if (tokens > 1) {
            int blocks = 0;
            for (int t = 0; t < tokens; ++t)
                for (int i = done[t]; i < count[t] && active[size_t(t) * stride + size_t(i)] < until;
                     i += kBlock)
                    ++blocks;
            fetcher.plan_until(until + chunk, blocks * lines);
        }
        for (int t = 0; t < tokens; ++t) {
            const int32_t* mine = active + size_t(t) * stride;
            float* out = y + size_t(t) * size_t(width);
            for (; done[t] < count[t] && mine[done[t]] < until; done[t] += kBlock) {
                const int left = count[t] - done[t], here = left < kBlock ? left : kBlock;
                const ChannelBlock block = 
                    make_block(w, mine + done[t], values + size_t(t) * stride + size_t(done[t]), here);
                Multipliers multipliers;
                for (int line = begin; line < end; ++line) {
                    const int place = line % kWindowLines; // in an aligned window of the scales
                    if (line == begin || place == 0) {
                        const int last =
                            place + end - line < kWindowLines ? place + end - line : kWindowLines;
                        set_multipliers<kZero>(block, first_scale + size_t(line - place) * kGroups,
                                               place * kGroups / 4 * 4, (last * kGroups + 3) / 4 * 4,
                                               multipliers);
                    }
                    if (tokens == 1 && line == begin) {
                        fetcher.plan(kBlock, lines); // of the next block
                        fetcher.meet();
                    }
                    fetcher.step();
                    add_line<E, kGroup>(w, block, line, multipliers, place * kGroups, codebook,
                                        out + size_t(line - begin) * kOutputs);
                }
            }
        }
    }
}

void sparse_product(const Product& p, int begin, int end, int rows, uint8_t* scratch) {
    const Matrix& w = *p.w;
    const int unit = w.unit(), first = begin * unit, last = end * unit < w.n ? end * unit : w.n;
    for (int t0 = 0; t0 < rows; t0 += kSparseTokens) {
        const int tokens = rows - t0 < kSparseTokens ? rows - t0 : kSparseTokens;
        with_codes(w, [&]<Encoding E, int kGroup>() {
            sparse_lines<E, kGroup>(w, begin, end, *p.x, t0, tokens, scratch);
        });
        finish_rows(p, t0, tokens, first, last - first, reinterpret_cast<float*>(scratch),
                    size_t(end - begin) * size_t(unit));
    }
}

} // namespace
} // namespace rwkv::cpu
