#include "text/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "core/check.h"

namespace rwkv {
namespace {

constexpr size_t kBlock = cpu::kSoftmaxBlock;
constexpr uint32_t kBinShift = 17; // bins of 6 mantissa bits: neighbours differ by about 1 %
constexpr size_t kFew = 512;       // so many are sorted sooner than binned
constexpr float kLongest = 255;    // float32 weights end at surprises near 100
constexpr ptrdiff_t kFirst = 16;   // of a peaked distribution's blocks, more than reach any share

/// Index of the first running sum above `target`; where rounding left none, of the last weight above 0.
size_t first_above(std::span<const float> weights, double target) {
    double sum = 0;
    size_t last = 0;
    for (size_t i = 0; i < weights.size(); i++) {
        if (weights[i] > 0)
            last = i;
        sum += weights[i];
        if (sum > target)
            return i;
    }
    return last;
}

} // namespace

/// Fills weights_, and maxima_, sums_ and whole_ of them.
void Sampler::weigh(std::span<const float> logits, float top, float temperature) {
    size_ = logits.size();
    const size_t blocks = (size_ + kBlock - 1) / kBlock;
    weights_.resize(blocks * kBlock);
    maxima_.resize(blocks);
    sums_.resize(blocks);
    op_.softmax_weights(logits.data(), static_cast<int>(size_), top, temperature, weights_.data(),
                        maxima_.data(), sums_.data());
    whole_ = std::accumulate(sums_.begin(), sums_.end(), 0.0);
}

/// A weight that the cut by mass is not below. The blocks' maxima are weights: where their own running sum,
/// largest first, reaches the goal, that of all weights has reached it. Otherwise: weights below rest / V,
/// all together, weigh less than the rest.
float Sampler::floor_of_mass(double goal, double rest) {
    scratch_ = maxima_;
    const auto middle = scratch_.begin() + std::min(kFirst, std::ssize(scratch_));
    std::partial_sort(scratch_.begin(), middle, scratch_.end(), std::greater<>());
    double sum = 0;
    for (auto w = scratch_.begin(); w != scratch_.end(); ++w) {
        if (w == middle)
            std::sort(middle, scratch_.end(), std::greater<>());
        sum += *w;
        if (sum >= goal)
            return *w;
    }
    return static_cast<float>(0.999 * rest / static_cast<double>(size_));
}

/// A weight that at least k weights are not below: the k-th largest of the blocks' maxima.
float Sampler::floor_of_count(size_t k) {
    if (k > maxima_.size())
        return 0;
    scratch_ = maxima_;
    const auto kth = scratch_.begin() + static_cast<ptrdiff_t>(k - 1);
    std::nth_element(scratch_.begin(), kth, scratch_.end(), std::greater<>());
    return *kth;
}

/// ids_ = those with weights not below `floor`, scratch_ = their weights.
void Sampler::gather(float floor) {
    ids_.resize(size_);
    scratch_.resize(size_);
    size_t count = 0;
    for (size_t b = 0; b < maxima_.size(); b++) {
        if (maxima_[b] < floor)
            continue;
        const size_t end = std::min((b + 1) * kBlock, size_);
        for (size_t i = b * kBlock; i < end; i++) {
            ids_[count] = static_cast<int32_t>(i);
            scratch_[count] = weights_[i];
            count += weights_[i] >= floor;
        }
    }
    ids_.resize(count);
    scratch_.resize(count);
}

/// The bin in which the running sum reaches the goal; *before = the sum of those before it.
uint32_t Sampler::bin_of(double goal, double* before) const {
    double sum = 0;
    uint32_t found = 0;
    for (uint32_t i = 0; i < bins_.size() && (sum < goal || sum == 0); i++) { // a goal may underflow to 0
        if (bins_[i] == 0)
            continue;
        found = i;
        *before = sum;
        sum += bins_[i];
    }
    return found;
}

/// The weight of scratch_ at which the running sum, largest first, reaches the goal. Many weights are summed
/// into bins by the leading bits of their float32 form, which order them; only the bin in which the goal lies
/// is sorted.
float Sampler::cut_of_mass(double goal) {
    double before = 0;
    if (scratch_.size() > kFew) {
        constexpr auto kOne = std::bit_cast<uint32_t>(1.0f);
        const auto bin = [](float w) { return (kOne - std::bit_cast<uint32_t>(w)) >> kBinShift; };
        bins_.assign((kOne >> kBinShift) + 1, 0.0);
        for (float w : scratch_)
            bins_[bin(w)] += w;
        const uint32_t goal_bin = bin_of(goal, &before);
        std::erase_if(scratch_, [&](float w) { return bin(w) != goal_bin; });
    }
    auto begin = scratch_.begin(), end = scratch_.end();
    while (end - begin > static_cast<ptrdiff_t>(kFew)) { // a nearly flat distribution: halve the bin
        const auto middle = begin + (end - begin) / 2;
        std::nth_element(begin, middle, end, std::greater<>());
        const double upper = std::accumulate(begin, middle, 0.0);
        if (before + upper >= goal) {
            end = middle;
        } else {
            before += upper;
            begin = middle;
        }
    }
    std::sort(begin, end, std::greater<>());
    for (auto w = begin; w != end; ++w) {
        before += *w;
        if (before >= goal)
            return *w;
    }
    return *(end - 1);
}

/// ids_ and scratch_ = the typical tokens and their weights; returns the sum of these.
///
/// A candidate is a token that can matter: the likeliest one is `expected - least` away, so that no token
/// past `expected` by more than that comes before one not past it, and those not past it make up `share`.
double Sampler::keep_typical(std::span<const float> logits, float top, float temperature, double share) {
    const auto log_weight = [&](size_t i) { return (logits[i] - top) / temperature; };
    scratch_.resize(maxima_.size());
    op_.softmax_surprise(logits.data(), static_cast<int>(size_), top, temperature, weights_.data(),
                         scratch_.data());
    const double dot = std::accumulate(scratch_.begin(), scratch_.end(), 0.0);
    const double least = std::log(whole_); // the surprise of the likeliest token
    const double expected = least - dot / whole_;
    const double goal = share * whole_;
    const float farthest = static_cast<float>(0.999 * std::exp(2 * (least - expected)));
    gather(std::min(floor_of_mass(goal, whole_ - goal), farthest));

    tied_.clear();
    for (size_t i = 0; i < ids_.size(); i++) {
        const double surprise = least - log_weight(static_cast<size_t>(ids_[i]));
        tied_.emplace_back(std::min(static_cast<float>(std::fabs(surprise - expected)), kLongest),
                           scratch_[i]);
    }
    away_.resize(ids_.size());
    std::transform(tied_.begin(), tied_.end(), away_.begin(), [](const auto& each) { return each.first; });
    double before = 0;
    if (tied_.size() > kFew) {
        const auto bin = [](float distance) { return std::bit_cast<uint32_t>(distance) >> kBinShift; };
        bins_.assign(bin(kLongest) + 1, 0.0);
        for (const auto& [distance, weight] : tied_)
            bins_[bin(distance)] += weight;
        const uint32_t goal_bin = bin_of(goal, &before);
        std::erase_if(tied_, [&](const auto& each) { return bin(each.first) != goal_bin; });
    }
    std::sort(tied_.begin(), tied_.end());
    float cut = tied_.back().first;
    for (const auto& [distance, weight] : tied_) {
        before += weight;
        if (before >= goal) {
            cut = distance;
            break;
        }
    }
    size_t count = 0;
    double sum = 0;
    for (size_t i = 0; i < ids_.size(); i++) {
        const bool kept = away_[i] <= cut && scratch_[i] > 0;
        sum += kept ? scratch_[i] : 0.0f;
        ids_[count] = ids_[i];
        scratch_[count] = scratch_[i];
        count += kept;
    }
    ids_.resize(count);
    scratch_.resize(count);
    return sum;
}

/// Leaves in ids_ those with weights not below `least`; scratch_ = their weights.
void Sampler::drop_below(double least) {
    scratch_.resize(ids_.size());
    size_t count = 0;
    for (const int32_t id : ids_) { // without a branch, which nobody could predict
        const float w = weights_[static_cast<size_t>(id)];
        ids_[count] = id;
        scratch_[count] = w;
        count += w >= least;
    }
    ids_.resize(count);
    scratch_.resize(count);
}

/// Leaves the k largest in ids_; scratch_ holds their weights, and is used up.
void Sampler::keep_largest(size_t k) {
    const auto kth = scratch_.begin() + static_cast<ptrdiff_t>(k - 1);
    std::nth_element(scratch_.begin(), kth, scratch_.end(), std::greater<>());
    const float least = *kth;
    auto equals =
        static_cast<size_t>(std::count(scratch_.begin(), kth + 1, least)); // how many of them belong
    std::erase_if(ids_, [&](int32_t id) {
        const float w = weights_[static_cast<size_t>(id)];
        if (w != least)
            return w < least;
        if (equals == 0)
            return true;
        equals--;
        return false;
    });
}

int32_t Sampler::pick_all(double draw) const {
    double target = draw * whole_;
    const size_t block = first_above(sums_, target);
    for (size_t b = 0; b < block; b++)
        target -= sums_[b];
    const size_t begin = block * kBlock;
    const std::span<const float> inside(weights_.data() + begin, std::min(kBlock, size_ - begin));
    return static_cast<int32_t>(begin + first_above(inside, target));
}

int32_t Sampler::sample(std::span<const float> logits, const SamplingOptions& options, double draw) {
    require(!logits.empty(), Fault::kFormat, "no logits to sample from");
    const float top = op_.largest(logits.data(), static_cast<int>(logits.size()));
    const bool by_typical = options.typical < 1;
    const bool by_mass = options.top_p < 1;
    const bool by_least = options.min_p > 0;
    const bool by_count = options.top_k > 0 && static_cast<uint64_t>(options.top_k) < logits.size();
    const auto k = static_cast<size_t>(by_count ? options.top_k : 0);
    const bool all = !by_typical && !by_mass && !by_least && !by_count;
    const float first = all || options.temperature_first ? options.temperature : 1;
    weigh(logits, top, first);
    require(std::isfinite(top) && std::isfinite(whole_), Fault::kFormat,
            "the logits hold no finite maximum: the model computed something that is not a number");
    if (all)
        return pick_all(draw);

    double kept = whole_;
    if (by_typical) {
        kept = keep_typical(logits, top, first, options.typical);
    } else if (by_mass) {
        const double goal = options.top_p * whole_;
        gather(floor_of_mass(goal, whole_ - goal));
    } else if (by_least) {
        gather(0.999f * static_cast<float>(options.min_p));
    } else {
        gather(floor_of_count(k));
    }
    if (by_mass)
        drop_below(cut_of_mass(options.top_p * kept));
    if (by_least)
        drop_below(options.min_p * *std::max_element(scratch_.begin(), scratch_.end()));
    if (by_count && ids_.size() > k)
        keep_largest(k);

    scratch_.resize(ids_.size());
    if (options.temperature == first) {
        for (size_t i = 0; i < ids_.size(); i++)
            scratch_[i] = weights_[static_cast<size_t>(ids_[i])];
    } else {
        float best = top; // of those kept: typical may have cut the largest
        if (by_typical) {
            best = logits[static_cast<size_t>(ids_[0])];
            for (const int32_t id : ids_)
                best = std::max(best, logits[static_cast<size_t>(id)]);
        }
        for (size_t i = 0; i < ids_.size(); i++)
            scratch_[i] = (logits[static_cast<size_t>(ids_[i])] - best) / options.temperature;
        op_.exp(scratch_.data(), static_cast<int>(scratch_.size()));
    }
    const double sum = std::accumulate(scratch_.begin(), scratch_.end(), 0.0);
    return ids_[first_above(scratch_, draw * sum)];
}

int32_t Sampler::greedy(std::span<const float> logits) const {
    require(!logits.empty(), Fault::kFormat, "no logits to choose from");
    const float top = op_.largest(logits.data(), static_cast<int>(logits.size()));
    size_t found = logits.size();
    for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
        const auto block = logits.subspan(begin, std::min(kBlock, logits.size() - begin));
        int nans = 0, tops = 0; // counted, so that the compiler makes vectors of it
        for (const float x : block) {
            nans += x != x;
            tops += x == top;
        }
        if (nans > 0) {
            const auto nan = std::find_if(block.begin(), block.end(), [](float x) { return x != x; });
            return static_cast<int32_t>(begin + size_t(nan - block.begin()));
        }
        if (tops > 0 && found == logits.size())
            found = begin + size_t(std::find(block.begin(), block.end(), top) - block.begin());
    }
    return static_cast<int32_t>(found);
}

void add_to(std::span<float> logits, std::span<const int32_t> tokens, std::span<const float> added) {
    require(tokens.size() == added.size(), Fault::kArgument, "one number for each token");
    for (const int32_t token : tokens)
        require(token >= 0 && size_t(token) < logits.size(), Fault::kArgument, "a token without logits");
    for (size_t i = 0; i < tokens.size(); i++)
        logits[size_t(tokens[i])] += added[i];
}

} // namespace rwkv
