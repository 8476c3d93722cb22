// The sampler's passes over all logits: the largest, the softmax weights, and their mean surprise.
#pragma once

#include "cpu/kernels.h"

namespace rwkv::cpu {
namespace {

float largest(const float* x, int n) {
    if (n < 16) {
        float best = x[0];
        for (int i = 1; i < n; ++i)
            best = x[i] > best ? x[i] : best;
        return best;
    }
    vf best[4];
    for (vf& lanes : best)
        lanes = load(x);
    int i = 0;
    for (; i + 64 <= n; i += 64) {
        for (int j = 0; j < 4; ++j)
            best[j] = max(best[j], load(x + i + 16 * j));
    }
    for (; i + 16 <= n; i += 16)
        best[0] = max(best[0], load(x + i));
    best[1] = max(best[1], load(x + n - 16)); // the tail, and some again
    return reduce_max(max(max(best[0], best[1]), max(best[2], best[3])));
}

/// What lies below e^-87.33 has the weight 0, and counts as this far away.
constexpr float kFarthest = -87.33f;

template <bool kDivide>
inline vf distance(const float* logits, vf top, vf temperature) {
    const vf x = sub(load(logits), top);
    return kDivide ? div(x, temperature) : x;
}

template <bool kDivide>
inline void softmax_block(const float* logits, vf top, vf temperature, float* weights, float* largest,
                          float* sum) {
    vf best = zero(), total = zero();
    for (int i = 0; i < kSoftmaxBlock; i += 16) {
        const vf w = exp(distance<kDivide>(logits + i, top, temperature));
        store(weights + i, w);
        best = max(best, w);
        total = add(total, w);
    }
    *largest = reduce_max(best);
    *sum = reduce_add(total);
}

inline void surprise_block(const float* logits, vf top, vf temperature, const float* weights, float* sum) {
    vf total = zero();
    for (int i = 0; i < kSoftmaxBlock; i += 16)
        total =
            fma(load(weights + i), max(set(kFarthest), distance<true>(logits + i, top, temperature)), total);
    *sum = reduce_add(total);
}

/// Calls block(logits, index) for every block; the last one padded with logits of -inf.
template <class Block>
inline void each_block(const float* logits, int n, Block block) {
    int b = 0;
    for (; (b + 1) * kSoftmaxBlock <= n; ++b)
        block(logits + b * kSoftmaxBlock, b);
    const int rest = n - b * kSoftmaxBlock;
    if (rest == 0)
        return;
    float tail[kSoftmaxBlock];
    for (int i = 0; i < kSoftmaxBlock; ++i)
        tail[i] = i < rest ? logits[b * kSoftmaxBlock + i] : -INFINITY;
    block(tail, b);
}

void softmax_weights(const float* logits, int n, float top, float temperature, float* weights, float* maxima,
                     float* sums) {
    const vf t = set(top), scale = set(temperature);
    each_block(logits, n, [&](const float* x, int b) {
        float* w = weights + b * kSoftmaxBlock;
        if (temperature == 1.0f)
            softmax_block<false>(x, t, scale, w, maxima + b, sums + b);
        else
            softmax_block<true>(x, t, scale, w, maxima + b, sums + b);
    });
}

void softmax_surprise(const float* logits, int n, float top, float temperature, const float* weights,
                      float* sums) {
    const vf t = set(top), scale = set(temperature);
    each_block(logits, n, [&](const float* x, int b) {
        surprise_block(x, t, scale, weights + b * kSoftmaxBlock, sums + b);
    });
}

} // namespace
} // namespace rwkv::cpu
