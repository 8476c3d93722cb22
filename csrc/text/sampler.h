// Drawing one token from logits: softmax, the cuts (typical, top-p, min-p, top-k), then temperature
// (BlinkDL's order); or temperature before the cuts, as most other engines do.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "cpu/kernels.h"

namespace rwkv {

struct SamplingOptions {
    float temperature = 1;          // > 0
    int64_t top_k = 0;              // 0: off
    double top_p = 1;               // > 0; off from 1 up
    double min_p = 0;               // in [0, 1]; 0: off
    double typical = 1;             // > 0; off from 1 up
    bool temperature_first = false; // the cuts see the distribution at `temperature`, not at 1
};

/// Holds the scratch memory, so that a token allocates nothing. One thread at a time.
///
/// The cuts come in this order, each over what the one before it left:
/// - typical keeps the tokens whose surprise -log p is nearest to the expected one (Meister et al., "Locally
///   typical sampling", 2022), up to and with the first at which their running sum reaches `typical` of all;
/// - top-p keeps every weight that is not below that of the first token, in descending order, at which the
///   running sum reaches top_p of all; in both, equals survive together;
/// - min-p keeps every weight that is not below min_p of the largest;
/// - top-k keeps exactly k, of equals those with the lower ids.
/// The same logits, options and draw give the same token on every CPU level.
class Sampler {
  public:
    explicit Sampler(const cpu::KernelTable& op) : op_(op) {}

    /// The first id, in ascending order of those kept, at which the running sum of the weights exceeds `draw`
    /// (in [0, 1)) of their sum. -inf bans a token. Throws Error(kFormat) for no logits, a NaN, a +inf, or
    /// -inf alone.
    int32_t sample(std::span<const float> logits, const SamplingOptions& options, double draw);

    /// The first NaN among the logits, else the first of the largest. Throws Error(kFormat) for none.
    int32_t greedy(std::span<const float> logits) const;

  private:
    void weigh(std::span<const float> logits, float top, float temperature);
    float floor_of_mass(double goal, double rest);
    float floor_of_count(size_t k);
    void gather(float floor);
    uint32_t bin_of(double goal, double* before) const;
    float cut_of_mass(double goal);
    double keep_typical(std::span<const float> logits, float top, float temperature, double share);
    void drop_below(double least);
    void keep_largest(size_t k);
    int32_t pick_all(double draw) const;

    const cpu::KernelTable& op_;
    size_t size_ = 0;            // V
    std::vector<float> weights_; // [blocks of V * kSoftmaxBlock], exp((logit - largest) / temperature)
    std::vector<float> maxima_;  // [blocks of V], largest weight of each block
    std::vector<float> sums_;    // [blocks of V], sum of each block
    double whole_ = 0;           // sum of all
    std::vector<int32_t> ids_;   // candidates, ascending
    std::vector<float> scratch_; // their weights, then what the search makes of them
    std::vector<double> bins_;   // sums of weights of nearly the same size
    std::vector<float> away_;    // of candidates: how far their surprise is from the expected one
    std::vector<std::pair<float, float>> tied_; // distance and weight of those that the goal may lie on
};

/// Adds `added` [n] to the logits of `tokens` [n], one after the other. Throws Error(kArgument) for a token
/// that has none, and changes nothing then.
void add_to(std::span<float> logits, std::span<const int32_t> tokens, std::span<const float> added);

} // namespace rwkv
