#include "text/score.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/check.h"

// Compiled for wider registers too: the same operations in the same order, so the same bits. Only where the
// system's loader can choose between them, which the thread sanitizer does not survive.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&                 \
    !defined(__SANITIZE_THREAD__)
#define RWKV_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define RWKV_WIDE
#endif
#if defined(__GNUC__)
#define RWKV_INLINE inline __attribute__((always_inline))
#else
#define RWKV_INLINE inline
#endif

namespace rwkv {
namespace {

constexpr size_t kLanes = 8; // running sums, by index mod 8
constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
constexpr double kSmallest = -708; // e^x is 0 below

/// e^x for x <= 0 to about 2 units in the last place, in plain arithmetic without branches. A NaN stays one.
RWKV_INLINE double exp_negative(double x) {
    constexpr double kRounder = 6755399441055744.0; // 1.5 * 2^52: adding it rounds to a whole number
    const double clamped = x < kSmallest ? kSmallest : x;
    const double rounded = clamped * 1.4426950408889634 + kRounder;
    const double n = rounded - kRounder;
    const double r = (clamped - n * kLn2High) - n * kLn2Low; // |r| <= ln(2) / 2
    double p = 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    const double scale =
        std::bit_cast<double>((std::bit_cast<uint64_t>(rounded) << 52) + std::bit_cast<uint64_t>(1.0));
    return x < kSmallest ? 0.0 : p * scale;
}

/// ln x for normal x > 0: 2 artanh((m - 1) / (m + 1)) of the mantissa m in [0.7, 1.42), and the exponent.
double log_positive(double x) {
    int exponent = 0;
    double m = std::frexp(x, &exponent); // exact
    if (m < 0.70710678118654752) {
        m *= 2;
        exponent -= 1;
    }
    const double f = (m - 1) / (m + 1), square = f * f; // |f| < 0.172
    double series = 0;
    for (int odd = 23; odd >= 1; odd -= 2)
        series = series * square + 1.0 / odd;
    return exponent * kLn2High + (2 * f * series + exponent * kLn2Low);
}

double folded(const double* s) { return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])); }

/// The first of the largest. A NaN is passed over; the sums notice it.
size_t first_largest(std::span<const float> row) {
    return size_t(std::max_element(row.begin(), row.end()) - row.begin());
}

/// sum e^(row - top)
RWKV_WIDE double weight_sum(const float* row, size_t size, double top) {
    double sums[kLanes] = {};
    size_t i = 0;
    for (; i + kLanes <= size; i += kLanes)
        for (size_t j = 0; j < kLanes; j++)
            sums[j] += exp_negative(double(row[i + j]) - top);
    for (size_t j = 0; i + j < size; j++)
        sums[j] += exp_negative(double(row[i + j]) - top);
    return folded(sums);
}

RWKV_INLINE void add_gap(double a, double b, double& weight, double& gap) {
    const double e = exp_negative(a);
    weight += e;
    gap += e * (a - b);
}

struct Gap {
    double weight = 0; // sum e^a
    double gap = 0;    // sum e^a (a - b)
};

/// With a = base - base_top, b = row - top.
RWKV_WIDE Gap weighted_gap(const float* base, const float* row, size_t size, double base_top, double top) {
    double weights[kLanes] = {}, gaps[kLanes] = {};
    size_t i = 0;
    for (; i + kLanes <= size; i += kLanes)
        for (size_t j = 0; j < kLanes; j++)
            add_gap(base[i + j] - base_top, row[i + j] - top, weights[j], gaps[j]);
    for (size_t j = 0; i + j < size; j++)
        add_gap(base[i + j] - base_top, row[i + j] - top, weights[j], gaps[j]);
    return {folded(weights), folded(gaps)};
}

void require_finite(double value) {
    require(std::isfinite(value), Fault::kFormat, "the logits are not finite numbers");
}

} // namespace

void score(std::span<const float> logits, std::span<const int32_t> targets, std::span<double> log_probs,
           std::span<int32_t> tops) {
    const size_t rows = targets.size(), vocab = rows ? logits.size() / rows : 0;
    for (size_t t = 0; t < rows; t++) {
        const auto row = logits.subspan(t * vocab, vocab);
        require(targets[t] >= 0 && size_t(targets[t]) < vocab, Fault::kArgument,
                "a target is outside the vocabulary");
        const size_t best = first_largest(row);
        const double top = row[best];
        log_probs[t] =
            (double(row[size_t(targets[t])]) - top) - log_positive(weight_sum(row.data(), vocab, top));
        require_finite(log_probs[t]);
        tops[t] = int32_t(best);
    }
}

void divergence(std::span<const float> base, std::span<const float> logits, std::span<double> result) {
    const size_t rows = result.size(), vocab = rows ? logits.size() / rows : 0;
    for (size_t t = 0; t < rows; t++) {
        const auto p = base.subspan(t * vocab, vocab), q = logits.subspan(t * vocab, vocab);
        const double p_top = p[first_largest(p)], q_top = q[first_largest(q)];
        const double q_sum = weight_sum(q.data(), vocab, q_top);
        const Gap found = weighted_gap(p.data(), q.data(), vocab, p_top, q_top);
        const double kl = found.gap / found.weight + (log_positive(q_sum) - log_positive(found.weight));
        require_finite(kl);
        result[t] = std::max(kl, 0.0);
    }
}

} // namespace rwkv
