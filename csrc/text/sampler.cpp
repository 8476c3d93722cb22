#include "text/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "core/check.h"

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

/// The largest, in lanes that the compiler can keep in one register; a NaN is passed over.
float largest(std::span<const float> values) {
    float lanes[16];
    std::fill_n(lanes, 16, values[0]);
    size_t i = 0;
    for (; i + 16 <= values.size(); i += 16) {
        for (size_t j = 0; j < 16; j++)
            lanes[j] = values[i + j] > lanes[j] ? values[i + j] : lanes[j];
    }
    for (; i < values.size(); i++)
        lanes[0] = values[i] > lanes[0] ? values[i] : lanes[0];
    return *std::max_element(lanes, lanes + 16);
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
void Sampler::weigh(std::span<const float> logits, float top, float temperature) {
    const size_t size = logits.size();
    const size_t blocks = (size + kBlock - 1) / kBlock;
    weights_.resize(size);
    maxima_.resize(blocks);
    sums_.resize(blocks);
    whole_ = 0;
    for (size_t b = 0; b < blocks; b++) {
        float block[kBlock] = {};
        const size_t begin = b * kBlock;
        const size_t length = std::min(kBlock, size - begin);
        if (temperature == 1) {
            for (size_t i = 0; i < length; i++)
                block[i] = exp_negative(logits[begin + i] - top);
        } else {
            for (size_t i = 0; i < length; i++)
                block[i] = exp_negative((logits[begin + i] - top) / temperature);
        }
        std::copy_n(block, length, weights_.begin() + static_cast<ptrdiff_t>(begin));
        float maxima[8] = {};
        double sums[8] = {};
        for (size_t i = 0; i < kBlock; i += 8) {
            for (size_t j = 0; j < 8; j++) {
                maxima[j] = block[i + j] > maxima[j] ? block[i + j] : maxima[j];
                sums[j] += block[i + j];
            }
        }
        maxima_[b] = *std::max_element(maxima, maxima + 8);
        sums_[b] = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
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
void Sampler::gather(float floor) {
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
    const bool by_mass = options.top_p < 1;
    const bool by_count = options.top_k > 0 && static_cast<uint64_t>(options.top_k) < logits.size();
    const auto k = static_cast<size_t>(by_count ? options.top_k : 0);
    const bool all = !by_mass && !by_count;
    weigh(logits, top, all ? options.temperature : 1);
    require(std::isfinite(top) && std::isfinite(whole_), Fault::kFormat,
            "the logits hold no finite maximum: the model computed something that is not a number");
    if (all)
        return pick_all(draw);

    if (by_mass) {
        const double goal = options.top_p * whole_;
        gather(floor_of_mass(goal, whole_ - goal));
        gather(cut_of_mass(goal));
    } else {
        gather(floor_of_count(k));
    }
    if (by_count && ids_.size() > k)
        keep_largest(k);

    scratch_.clear();
    double sum = 0;
    for (int32_t id : ids_) {
        const auto at = static_cast<size_t>(id);
        const float w =
            options.temperature == 1 ? weights_[at] : exp_negative((logits[at] - top) / options.temperature);
        scratch_.push_back(w);
        sum += w;
    }
    return ids_[first_above<float>(scratch_, draw * sum)];
}

} // namespace rwkv
