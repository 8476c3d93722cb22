// Tokens that were evaluated after a state without changing it: what each of them does to the state is kept,
// so that any number of the first ones can be made part of it afterwards, by the recurrence alone.
#pragma once

#include <vector>

#include "core/aligned_buffer.h"
#include "cpu/kernels.h"
#include "model/config.h"
#include "model/state.h"

namespace rwkv {

class Lookahead {
  public:
    /// Tokens of one evaluation: what a block of activations holds on every level.
    static constexpr int kMost = cpu::kWidestBlock;

    /// What the recurrence takes of a token, and its normed inputs, which become the shift state: [C] each.
    enum Row { kAttShift, kFfnShift, kKey, kValue, kDecay, kRemoval, kAddition, kRows };

    Lookahead(const Config& config, int threads);

    const Config& config() const { return config_; }
    int threads() const { return threads_; } ///< that it has room for
    size_t bytes() const { return (rows_.size() + heads_.size() + out_.size()) * sizeof(float); }

    float* row(int layer, Row which, int t) {
        return rows_.data() + ((size_t(layer) * size_t(kRows) + size_t(which)) * kMost + size_t(t)) * stride_;
    }
    size_t stride() const { return stride_; }
    /// Room for what the recurrence gives while a state goes on, which nobody needs: [tokens, stride].
    float* out() { return out_.data(); }
    /// A thread's copy of `count` floats of a state.
    float* copy_of(const float* values, size_t count, int thread, size_t at = 0);

    int tokens = 0; ///< that were evaluated
    int kept = 0;   ///< of them, that the state has seen by now

  private:
    Config config_;
    int threads_;
    size_t stride_, head_floats_;
    AlignedBuffer<float> rows_, heads_, out_;
};

} // namespace rwkv
