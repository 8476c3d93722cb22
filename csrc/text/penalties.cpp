#include "text/penalties.h"

#include <string>

#include "core/check.h"

namespace rwkv {
namespace {

constexpr double kGone = 1e-30; // far below what a float32 logit can feel, far above the subnormals
constexpr int32_t kIds = 1 << 24;

} // namespace

double& Penalties::count_of(int32_t token) {
    require(token >= 0 && token < kIds, Fault::kArgument, "not a token id: " + std::to_string(token));
    const auto id = static_cast<size_t>(token);
    if (id >= place_.size())
        place_.resize(id + 1, 0);
    if (place_[id] == 0) {
        counts_.emplace_back(token, 0.0);
        place_[id] = static_cast<int32_t>(counts_.size());
    }
    return counts_[static_cast<size_t>(place_[id] - 1)].second;
}

void Penalties::observe(int32_t token, double weight) {
    if (options_.decay != 1) {
        for (auto& [id, count] : counts_) {
            count *= options_.decay;
            if (count < kGone)
                count = 0;
        }
    }
    count_of(token) += weight;
}

void Penalties::apply(std::span<float> logits) const {
    for (const auto& [id, count] : counts_) {
        const auto at = static_cast<size_t>(id);
        if (at >= logits.size())
            continue;
        float value = logits[at];
        if (options_.repetition != 1)
            value = value > 0 ? value / options_.repetition : value * options_.repetition;
        const double off = options_.presence + count * options_.frequency;
        logits[at] = value - static_cast<float>(off);
    }
}

void Penalties::restore(const std::vector<std::pair<int32_t, double>>& counts) {
    Penalties fresh(options_);
    for (const auto& [id, count] : counts) {
        const size_t before = fresh.counts_.size();
        fresh.count_of(id) = count;
        require(fresh.counts_.size() > before, Fault::kArgument, "a token is counted twice");
    }
    *this = std::move(fresh);
}

} // namespace rwkv
