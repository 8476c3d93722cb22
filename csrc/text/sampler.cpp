#include "text/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "core/check.h"

// The passes over the whole vocabulary, compiled for wider registers too: the same operations in the same
// order, so the same bits. Only where the system's loader can choose between them.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define RWKV_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define RWKV_WIDE
#endif

namespace rwkv {
namespace {

constexpr size_t kBlock = 128;     // weights summed, and skipped, together
constexpr uint32_t kBinShift = 17; // bins of 6 mantissa bits: neighbours differ by about 1 %

/// exp(x) for x <= 0 to about 2 units in the last place; 0 below -87. Plain arithmetic without branches: the
/// compiler vectorizes it, and every processor gets the same bits.
inline float exp_negative(float x) {
    constexpr float kRounder = 12582912.0f; // 1.5 * 2^23: adding it rounds to a whole number in the low bits
    const float clamped = x < -87.0f ? -87.0f : x;
    const float rounded = clamped * 1.44269504f + kRounder;
    const float n = rounded - kRounder;
    const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f; // |r| <= ln(2) / 2
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const float scale =
        std::bit_cast<float>((std::bit_cast<uint32_t>(rounded) << 23) + std::bit_cast<uint32_t>(1.0f));
    return x < -87.0f ? 0.0f : p * scale;
}

// Eight lanes that the compiler keeps in registers; GCC does not see through the plain loop by itself.
#if defined(__GNUC__)
using Floats = float __attribute__((vector_size(32)));
using Doubles = double __attribute__((vector_size(64)));
#define RWKV_INLINE inline __attribute__((always_inline))
RWKV_INLINE void load(Floats& lanes, const float* from) { __builtin_memcpy(&lanes, from, sizeof lanes); }
RWKV_INLINE void keep_larger(Floats& lanes, const Floats& other) { lanes = other > lanes ? other : lanes; }
RWKV_INLINE void add(Doubles& sums, const Floats& values) {
    sums += __builtin_convertvector(values, Doubles);
}
#else
struct Floats {
    float lanes[8];
    float operator[](size_t j) const { return lanes[j]; }
};
struct Doubles {
    double lanes[8];
    double operator[](size_t j) const { return lanes[j]; }
};
#define RWKV_INLINE inline
RWKV_INLINE void load(Floats& lanes, const float* from) { std::copy_n(from, 8, lanes.lanes); }
RWKV_INLINE void keep_larger(Floats& lanes, const Floats& other) {
    for (size_t j = 0; j < 8; j++)
        lanes.lanes[j] = other.lanes[j] > lanes.lanes[j] ? other.lanes[j] : lanes.lanes[j];
}
RWKV_INLINE void add(Doubles& sums, const Floats& values) {
    for (size_t j = 0; j < 8; j++)
        sums.lanes[j] += values.lanes[j];
}
#endif

RWKV_INLINE float largest_lane(const Floats& lanes) {
    float best = lanes[0];
    for (size_t j = 1; j < 8; j++)
        best = lanes[j] > best ? lanes[j] : best;
    return best;
}

RWKV_INLINE double folded(const Doubles& s) {
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/// The largest; a NaN after the first is passed over.
RWKV_WIDE float largest(std::span<const float> values) {
    if (values.size() < 32)
        return std::accumulate(values.begin(), values.end(), values[0],
                               [](float best, float value) { return value > best ? value : best; });
    Floats best[4], next;
    for (size_t k = 0; k < 4; k++)
        load(best[k], values.data() + 8 * k);
    size_t i = 32;
    for (; i + 32 <= values.size(); i += 32) {
        for (size_t k = 0; k < 4; k++) {
            load(next, values.data() + i + 8 * k);
            keep_larger(best[k], next);
        }
    }
    for (size_t end = values.size(); end > i; end = end > i + 8 ? end - 8 : i) { // the rest, some of it again
        load(next, values.data() + end - 8);
        keep_larger(best[0], next);
    }
    for (size_t k = 1; k < 4; k++)
        keep_larger(best[0], best[k]);
    return largest_lane(best[0]);
}

RWKV_INLINE void weigh_some(const float* logits, size_t count, float top, float temperature, float* weights) {
    if (temperature == 1) {
        for (size_t i = 0; i < count; i++)
            weights[i] = exp_negative(logits[i] - top);
    } else {
        for (size_t i = 0; i < count; i++)
            weights[i] = exp_negative((logits[i] - top) / temperature);
    }
}

/// Index of the first running sum above `target`; where rounding left none, of the last weight above 0.
template <typename T>
size_t first_above(std::span<const T> weights, double target) {
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
RWKV_WIDE void Sampler::weigh(std::span<const float> logits, float top, float temperature) {
    const size_t size = logits.size();
    const size_t blocks = (size + kBlock - 1) / kBlock;
    weights_.resize(size);
    maxima_.resize(blocks);
    sums_.resize(blocks);
    whole_ = 0;
    float tail[kBlock] = {};
    for (size_t b = 0; b < blocks; b++) {
        const size_t begin = b * kBlock;
        float* block = weights_.data() + begin;
        if (begin + kBlock <= size) {
            weigh_some(logits.data() + begin, kBlock, top, temperature, block);
        } else {
            weigh_some(logits.data() + begin, size - begin, top, temperature, block);
            std::copy_n(block, size - begin, tail);
            block = tail;
        }
        Floats maxima = {}, eight;
        Doubles sums = {};
        for (size_t i = 0; i < kBlock; i += 8) {
            load(eight, block + i);
            keep_larger(maxima, eight);
            add(sums, eight);
        }
        maxima_[b] = largest_lane(maxima);
        sums_[b] = folded(sums);
        whole_ += sums_[b];
    }
}

/// A weight that the cut by mass is not below. The blocks' maxima are weights: where their own running sum,
/// largest first, reaches the goal, that of all weights has reached it. Otherwise: weights below rest / V,
/// all together, weigh less than the rest.
float Sampler::floor_of_mass(double goal, double rest) {
    scratch_ = maxima_;
    std::sort(scratch_.begin(), scratch_.end(), std::greater<>());
    double sum = 0;
    for (float w : scratch_) {
        sum += w;
        if (sum >= goal)
            return w;
    }
    return static_cast<float>(0.999 * rest / static_cast<double>(weights_.size()));
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
RWKV_WIDE void Sampler::gather(float floor) {
    ids_.resize(weights_.size());
    scratch_.resize(weights_.size());
    size_t count = 0;
    for (size_t b = 0; b < maxima_.size(); b++) {
        if (maxima_[b] < floor)
            continue;
        const size_t end = std::min((b + 1) * kBlock, weights_.size());
        for (size_t i = b * kBlock; i < end; i++) {
            ids_[count] = static_cast<int32_t>(i);
            scratch_[count] = weights_[i];
            count += weights_[i] >= floor;
        }
    }
    ids_.resize(count);
    scratch_.resize(count);
}

/// The weight of scratch_ at which the running sum, largest first, reaches the goal. The weights are summed
/// into bins by the leading bits of their float32 form, which order them; only the bin in which the goal lies
/// is sorted.
float Sampler::cut_of_mass(double goal) {
    constexpr auto kOne = std::bit_cast<uint32_t>(1.0f);
    const auto bin = [](float w) { return (kOne - std::bit_cast<uint32_t>(w)) >> kBinShift; };
    bins_.assign((kOne >> kBinShift) + 1, 0.0);
    for (float w : scratch_)
        bins_[bin(w)] += w;
    double before = 0;
    double sum = 0;
    uint32_t goal_bin = 0;
    for (uint32_t i = 0; i < bins_.size() && sum < goal; i++) {
        if (bins_[i] == 0)
            continue;
        goal_bin = i;
        before = sum;
        sum += bins_[i];
    }
    std::erase_if(scratch_, [&](float w) { return bin(w) != goal_bin; });
    std::sort(scratch_.begin(), scratch_.end(), std::greater<>());
    for (float w : scratch_) {
        before += w;
        if (before >= goal)
            return w;
    }
    return scratch_.back();
}

/// ids_ and scratch_ = the typical tokens and their weights; returns the sum of these.
///
/// A candidate is a token that can matter: the likeliest one is `expected - least` away, so that no token
/// past `expected` by more than that comes before one not past it, and those not past it make up `share`.
RWKV_WIDE double Sampler::keep_typical(std::span<const float> logits, float top, float temperature,
                                       double share) {
    const auto log_weight = [&](size_t i) { return (logits[i] - top) / temperature; };
    Doubles sums = {};
    for (size_t b = 0; b < maxima_.size(); b++) {
        if (maxima_[b] == 0)
            continue;
        const size_t begin = b * kBlock;
        const size_t length = std::min(kBlock, weights_.size() - begin);
        float block[kBlock] = {};
        for (size_t i = 0; i < length; i++) {
            const float x = (logits[begin + i] - top) / temperature;
            block[i] = weights_[begin + i] * (x < -87.0f ? -87.0f : x); // the weight is 0 there
        }
        Floats eight;
        for (size_t i = 0; i < kBlock; i += 8) {
            load(eight, block + i);
            add(sums, eight);
        }
    }
    const double dot = folded(sums);
    const double least = std::log(whole_); // the surprise of the likeliest token
    const double expected = least - dot / whole_;
    const double goal = share * whole_;
    const float farthest = static_cast<float>(0.999 * std::exp(2 * (least - expected)));
    gather(std::min(floor_of_mass(goal, whole_ - goal), farthest));

    constexpr uint32_t kLongest =
        std::bit_cast<uint32_t>(256.0f); // float32 weights end at surprises near 100
    away_.resize(ids_.size());
    bins_.assign((kLongest >> kBinShift) + 1, 0.0);
    for (size_t i = 0; i < ids_.size(); i++) {
        const double surprise = least - log_weight(static_cast<size_t>(ids_[i]));
        away_[i] = std::min(static_cast<float>(std::fabs(surprise - expected)), 255.0f);
        bins_[std::bit_cast<uint32_t>(away_[i]) >> kBinShift] += scratch_[i];
    }
    double before = 0;
    double sum = 0;
    uint32_t goal_bin = 0;
    for (uint32_t i = 0; i < bins_.size() && sum < goal; i++) {
        if (bins_[i] == 0)
            continue;
        goal_bin = i;
        before = sum;
        sum += bins_[i];
    }
    tied_.clear();
    for (size_t i = 0; i < ids_.size(); i++) {
        if (std::bit_cast<uint32_t>(away_[i]) >> kBinShift == goal_bin)
            tied_.emplace_back(away_[i], scratch_[i]);
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
    sum = 0;
    for (size_t i = 0; i < ids_.size(); i++) {
        if (away_[i] > cut || scratch_[i] == 0)
            continue;
        ids_[count] = ids_[i];
        scratch_[count++] = scratch_[i];
        sum += scratch_[i];
    }
    ids_.resize(count);
    scratch_.resize(count);
    return sum;
}

/// Leaves in ids_ those with weights not below `least`; scratch_ = their weights.
void Sampler::drop_below(double least) {
    std::erase_if(ids_, [&](int32_t id) { return weights_[static_cast<size_t>(id)] < least; });
    scratch_.resize(ids_.size());
    for (size_t i = 0; i < ids_.size(); i++)
        scratch_[i] = weights_[static_cast<size_t>(ids_[i])];
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
    size_t block = first_above<double>(sums_, target);
    for (size_t b = 0; b < block; b++)
        target -= sums_[b];
    const size_t begin = block * kBlock;
    const std::span<const float> inside(weights_.data() + begin, std::min(kBlock, weights_.size() - begin));
    return static_cast<int32_t>(begin + first_above<float>(inside, target));
}

int32_t Sampler::sample(std::span<const float> logits, const SamplingOptions& options, double draw) {
    require(!logits.empty(), Fault::kFormat, "no logits to sample from");
    const float top = largest(logits);
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

    scratch_.clear();
    double sum = 0;
    for (int32_t id : ids_) {
        const auto at = static_cast<size_t>(id);
        const float w = options.temperature == first ? weights_[at]
                                                     : exp_negative((logits[at] - top) / options.temperature);
        scratch_.push_back(w);
        sum += w;
    }
    return ids_[first_above<float>(scratch_, draw * sum)];
}

} // namespace rwkv
