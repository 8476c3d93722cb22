// What products with layout "kn" are made of besides their arithmetic: active channels, blocks of them, and
// records that are fetched ahead.
#pragma once

#include "cpu/codes_inl.h"

namespace rwkv::cpu {
namespace {

constexpr int kBlock = 16;                    // active channels that share one integer sum
constexpr float kLargestScale = 127.0f * 127; // of a group

struct ChannelBlock {
    const uint8_t* record[kBlock];
    float factor[kBlock]; ///< activation * record scale / step; times a group's scale they are at most
                          ///< kLargestMultiplier
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
    const vf factor = mul(all, set(used ? kLargestMultiplier / kLargestScale / largest : 0.0f));
    store(block.factor, factor);
    const bool finite = nonzero_mask(sub(factor, factor)) == 0;
    block.step = !finite ? NAN : used ? largest * (kLargestScale / kLargestMultiplier) : 0.0f;
    return block;
}

constexpr int kWindow = 16; // groups of scales that are made ready together
/// Groups of scales in a line of a record.
constexpr int line_groups(Encoding e, int group) { return line_outputs(e) / group; }
/// Lines of a record that have a window's scales.
constexpr int window_lines(Encoding e, int group) { return kWindow / line_groups(e, group); }

/// Of what x [k] activates: the channels, ascending, and activation times record scale of each; returns their
/// number. What comes after them is overwritten up to a whole vector. Bit c % 16 of used[c / 16] is set for
/// each. x is padded to 32.
inline int find_active(const float* x, const Matrix& w, int32_t* channels, float* values, uint16_t* used) {
    int count = 0;
    for (int k = 0; k < w.k; k += 16) {
        const vf v = load(x + k);
        const unsigned mask = nonzero_mask(v);
        const int found = count_bits(mask);
        used[k / 16] = uint16_t(used[k / 16] | mask);
        pack(mask, v, load_n(w.d + k, lanes(k, w.k)), k, channels + count, values + count);
        count += found;
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

/// One token: fetches lines [begin, end) of the channels that are used, and what belongs to them, ahead of
/// the blocks. Row by row: a line of each of sixteen records before the next line of any. Record after
/// record, lines come at half the speed.
template <Encoding E>
class RowFetcher {
  public:
    /// `scales_at`: of the first line's scales in a record.
    RowFetcher(const Matrix& w, int begin, int end, size_t scales_at, const int32_t* used, int count)
        : w_(w), used_(used), count_(count) {
        const size_t first = size_t(begin), lines = size_t(end - begin), bits = size_t(w.n_pad) / 2;
        set_part(0, scales_at, lines * size_t(line_groups(E, w.group)));
        if constexpr (E == Encoding::kQ6) // two lines of nibbles have one of the bits above them
            set_part(1, bits + first * 32, lines * 32);
        if constexpr (E == Encoding::kQ5) // four have one
            set_part(1, bits + first * 16, lines * 16);
        set_part(kParts - 1, first * 64, lines * 64);
        fetch(kRowsAhead);
        each_ = rows_ / int(lines);
        rest_ = rows_ % int(lines);
    }

    /// To be called before every line of a block.
    void step() {
        credit_ += rest_;
        const bool more = credit_ >= part_[kParts - 1].lines;
        credit_ -= more ? part_[kParts - 1].lines : 0;
        fetch(each_ + (more ? 1 : 0));
    }

  private:
    static constexpr int kRowsAhead = 16; ///< that the first-level cache holds
    static constexpr int kParts = E == Encoding::kQ6 || E == Encoding::kQ5 ? 3 : 2;
    struct Part {
        size_t at; ///< in a record
        int lines;
    };
    void set_part(int part, size_t at, size_t bytes) {
        part_[part] = {at, int((at % 64 + bytes + 63) / 64)};
        rows_ += part_[part].lines;
    }
    void fetch(int rows) {
        for (; rows > 0 && next_row(); --rows)
            for (int i = 0; i < records_; ++i) {
                prefetch(record_[i] + at_);
                keep_loop();
            }
    }
    bool next_row() {
        if (left_ > 1) {
            --left_;
            at_ += 64;
        } else if (now_ + 1 < kParts) {
            begin_part(now_ + 1);
        } else if (next_ < count_) {
            records_ = count_ - next_ < kBlock ? count_ - next_ : kBlock;
            for (int i = 0; i < records_; ++i)
                record_[i] = w_.q + size_t(used_[next_ + i]) * size_t(w_.stride);
            next_ += records_;
            begin_part(0);
        } else {
            return false;
        }
        return true;
    }
    void begin_part(int part) {
        now_ = part;
        at_ = part_[part].at;
        left_ = part_[part].lines;
    }

    const Matrix& w_;
    const int32_t* used_;
    int count_, next_ = 0; ///< used channels, and the first whose rows have not begun
    Part part_[kParts];    ///< scales, bits above the codes, codes
    int rows_ = 0;         ///< of a block
    const uint8_t* record_[kBlock];
    int records_ = 0, now_ = kParts - 1; ///< of the row, and its part
    int left_ = 0;                       ///< lines of that part from at_ on
    size_t at_ = 0;
    int each_ = 0, rest_ = 0, credit_ = 0; ///< rows of a step, and what the division leaves
};

/// Several tokens: the same, record by record, spread over the work on those before.
template <Encoding E>
class RecordFetcher {
  public:
    RecordFetcher(const Matrix& w, int begin, int end, size_t scales_at, const int32_t* used, int count)
        : w_(w), begin_(begin), end_(end), scales_at_(scales_at), used_(used), count_(count) {}

    /// Spreads the channels below `until` over the coming `steps` calls of `step`.
    void plan_until(int64_t until, int steps) {
        while (stop_ < count_ && used_[stop_] < until)
            ++stop_;
        planned_ = stop_ - next_;
        steps_ = steps > 1 ? steps : 1;
        credit_ = 0;
    }
    void step() {
        for (credit_ += planned_; credit_ >= steps_; credit_ -= steps_) {
            const uint8_t* lines = w_.q + size_t(used_[next_++]) * size_t(w_.stride);
            prefetch(lines + scales_at_);
            for (int line = begin_; line < end_; ++line)
                prefetch(lines + size_t(line) * 64);
            if constexpr (E == Encoding::kQ6)
                for (int line = begin_; line < end_ + begin_ % 2; line += 2)
                    prefetch(lines + size_t(w_.n_pad) / 2 + size_t(line) * 32);
            if constexpr (E == Encoding::kQ5)
                for (int line = begin_; line < end_ + begin_ % 4; line += 4)
                    prefetch(lines + size_t(w_.n_pad) / 2 + size_t(line) * 16);
        }
    }

  private:
    const Matrix& w_;
    int begin_, end_;
    size_t scales_at_;
    const int32_t* used_;
    int count_, next_ = 0, stop_ = 0, planned_ = 0, steps_ = 1, credit_ = 0;
};

} // namespace
} // namespace rwkv::cpu
