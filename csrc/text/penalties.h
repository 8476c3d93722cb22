// What generated tokens cost from then on: presence, frequency and repetition penalties, with RWKV's decay.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace rwkv {

struct PenaltyOptions {
    float presence = 0;   // off every logit of a token that was generated
    float frequency = 0;  // times how often, off its logit
    float repetition = 1; // divides its logit when positive, multiplies it when negative; > 0, 1: off
    double decay = 1;     // of the counts, per generated token; in [0, 1]
};

/// Counts of the generated tokens. A token once seen stays seen, however far its count has decayed.
class Penalties {
  public:
    explicit Penalties(const PenaltyOptions& options) : options_(options) {}

    /// All counts decay; that of `token` (>= 0) then grows by `weight`.
    void observe(int32_t token, double weight);

    /// Changes the logits of the tokens seen: first repetition, then presence + count * frequency.
    void apply(std::span<float> logits) const;

    /// (token, count) in the order in which the tokens were first seen.
    const std::vector<std::pair<int32_t, double>>& counts() const { return counts_; }

    /// Takes over what `counts` returned. Throws Error(kArgument) for an id below 0 or one that stands twice.
    void restore(const std::vector<std::pair<int32_t, double>>& counts);

  private:
    double& count_of(int32_t token);

    PenaltyOptions options_;
    std::vector<std::pair<int32_t, double>> counts_;
    std::vector<int32_t> place_; // [largest id seen + 1], 1 + index into counts_, or 0
};

} // namespace rwkv
