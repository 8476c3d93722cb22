// What a model is: version and dimensions, as the model file states them.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace rwkv {

enum class Version { k4, k5_0, k5_1, k5_2, k6, k7 };

struct Config {
    Version version = Version::k7;
    int n_layer = 0;
    int n_embd = 0;    ///< C
    int n_head = 0;    ///< H; 0 for RWKV-4
    int head_size = 0; ///< N = C / H; 0 for RWKV-4
    int n_ffn = 0;     ///< F
    int vocab_size = 0;
    float group_norm_eps = 64e-5f; ///< 1e-5 times head_size_divisor 8 squared; not in any checkpoint

    bool operator==(const Config&) const = default;
};

constexpr float kLayerNormEps = 1e-5f;

/// "4", "5.0", "5.1", "5.2", "6", "7". Throws Error(kFormat) for anything else.
Version parse_version(const std::string& text);
/// Throws Error(kFormat) when the dimensions contradict each other.
void validate(const Config& config);
/// Throws Error(kArgument) when there are no tokens, or one is outside the vocabulary.
void check_tokens(const Config& config, std::span<const int32_t> tokens);

} // namespace rwkv
