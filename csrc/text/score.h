// What logits say of the tokens that came, and how far two models' logits are apart. In float64, with the
// same bits on every processor: exponential and logarithm are computed here, every sum in one order.
#pragma once

#include <cstdint>
#include <span>

namespace rwkv {

/// Of every row of float32 logits [T, vocab]: ln softmax(row)[target] into `log_probs` [T], and the first of
/// the largest logits into `tops` [T]. Throws Error(kArgument) for a target outside [0, vocab) and
/// Error(kFormat) for a row with a NaN or +inf, or without a finite logit.
void score(std::span<const float> logits, std::span<const int32_t> targets, std::span<double> log_probs,
           std::span<int32_t> tops);

/// Of every row: the Kullback-Leibler divergence sum p (ln p - ln q) in nats into `result` [T], where p is
/// the softmax of `base` and q that of `logits`, both [T, vocab]. Not below 0. Throws Error(kFormat) for rows
/// with a NaN or an infinity.
void divergence(std::span<const float> base, std::span<const float> logits, std::span<double> result);

} // namespace rwkv
