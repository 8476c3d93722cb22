// A loaded model: maps the file, owns the threads, evaluates tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/mapped_file.h"
#include "core/thread_pool.h"
#include "core/turnstile.h"
#include "model/config.h"
#include "model/lookahead.h"
#include "model/pass.h"
#include "model/scratch.h"
#include "model/state.h"
#include "model/weights.h"

namespace rwkv {

/// What the blocks of a model leave behind of `count` tokens: rows of the residual stream [count, n_embd]
/// and, for RWKV-7, the first block's values beside them, `stride` floats apart.
struct BlockRows {
    const float *x, *v_first;
    size_t stride;
    int count;
};

class Model {
  public:
    /// `threads` >= 1; `level` names a CPU level or is empty. With fewer blocks in `config` than in the file
    /// it is the model's first blocks, whose rows another device goes on with. Throws Error.
    Model(const std::string& path, const Config& config, const TensorSpecs& specs, int threads,
          const std::string& level);

    const Config& config() const { return config_; }
    int threads() const { return pool_.size(); }
    const char* level() const { return op_.name; }
    size_t weight_bytes() const { return weight_bytes_; }

    /// Begins (at zero) or ends counting the channels of ffn.value in layout kn that are read: those whose
    /// relu^2 activation is not zero, for every layer and row.
    void count_active_channels(bool on);
    const std::vector<uint64_t>& active_channels() const { return active_channels_; } // [n_layer]

    /// Begins (at zero) or ends adding up what goes into each matrix.
    void collect_inputs(bool on);
    const InputStatistics& inputs() const { return inputs_; }

    /// Returns true to stop. Called on the calling thread, while it waits for another evaluation to end and
    /// between the layers of a prompt of more than a few tokens.
    using Poll = std::function<bool()>;

    /// Feeds `tokens` (at least one) to `state`. Writes the logits of the last token, or of every token when
    /// `all`: [tokens, vocab]. Throws Error(kArgument) for a bad token or a foreign state and Cancelled when
    /// `poll` says so; the state is then as it was before.
    void forward(std::span<const int32_t> tokens, State& state, float* logits, bool all, const Poll& poll);

    /// One token for each of B different states: logits [B, vocab]. `poll` can stop it before it begins.
    void forward_batch(std::span<const int32_t> tokens, std::span<State* const> states, float* logits,
                       const Poll& poll);

    /// Logits [tokens, vocab] of the tokens (Lookahead::kMost at most) that may follow `state`, which stays
    /// as it is. Throws as forward does; `poll` can stop it before it begins.
    void look_ahead(std::span<const int32_t> tokens, const State& state, Lookahead& ahead, float* logits,
                    const Poll& poll);
    /// Makes the first `count` of those tokens part of the state that they followed, which has seen
    /// `ahead.kept` of them. Every bit is what forward would have made it.
    void keep(State& state, Lookahead& ahead, int count, const Poll& poll);

    /// Feeds `tokens` to one state, or one token to each of as many states, and hands over what the blocks
    /// leave behind instead of making logits: chunk by chunk, on the calling thread. Throws as forward does,
    /// and what `take` throws; states then have any part of the tokens in them.
    void forward_rows(std::span<const int32_t> tokens, std::span<State* const> states, const Poll& poll,
                      const std::function<void(const BlockRows&)>& take);

  private:
    void check(const State& state) const;
    /// Logits of the rows in `wanted`, in order.
    bool run(std::span<const int32_t> tokens, const std::vector<Segment>& segments,
             std::span<const int> wanted, float* logits, const Poll& poll, Lookahead* ahead = nullptr);

    Config config_;
    const cpu::KernelTable& op_;
    MappedFile file_;
    Weights weights_;
    ThreadPool pool_;
    Turnstile turnstile_; ///< one evaluation at a time: the scratch is the model's
    Scratch scratch_;
    int chunk_;
    size_t weight_bytes_ = 0;
    bool counts_active_ = false, collects_inputs_ = false;
    std::vector<uint64_t> active_channels_;
    InputStatistics inputs_;
};

} // namespace rwkv
