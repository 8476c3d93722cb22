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

/// Fetches lines [begin, end) of the channels that are used, and their scales: those that come next bit by
/// bit while tokens visit others. They go into the first-level cache, but for one token on levels that do not
/// fetch near into the second.
template <Encoding E>
class Fetcher {
  public:
    Fetcher(const Matrix& w, int begin, int end, size_t scales_at, const int32_t* used, int count, int tokens)
        : w_(w), begin_(begin), end_(end), scales_at_(scales_at), used_(used), count_(count),
          near_(kFetchesNear || tokens > 1) {}

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
        stop_ = next_ + planned_;
        steps_ = steps > 1 ? steps : 1;
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
        for (credit_ += planned_; credit_ >= steps_ && next_ < stop_; credit_ -= steps_) {
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
    int count_, next_ = 0, stop_ = 0, planned_ = 0, steps_ = 1, credit_ = 0;
    bool near_;
};

} // namespace
} // namespace rwkv::cpu
