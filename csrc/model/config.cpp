#include "model/config.h"

#include "core/check.h"

namespace rwkv {

Version parse_version(const std::string& text) {
    if (text == "4")
        return Version::k4;
    if (text == "5.0")
        return Version::k5_0;
    if (text == "5.1")
        return Version::k5_1;
    if (text == "5.2")
        return Version::k5_2;
    if (text == "6")
        return Version::k6;
    if (text == "7")
        return Version::k7;
    throw Error(Fault::kFormat, "unknown RWKV version '" + text + "'");
}

void validate(const Config& c) {
    constexpr int kMost = 1 << 20;
    const bool positive = c.n_layer > 0 && c.n_embd > 0 && c.n_ffn > 0 && c.vocab_size > 0;
    const bool bounded =
        c.n_layer <= 4096 && c.n_embd <= kMost && c.n_ffn <= kMost && c.vocab_size <= (1 << 24);
    require(positive && bounded, Fault::kFormat, "impossible model dimensions");
    if (c.version != Version::k4)
        require(c.n_head > 0 && c.head_size > 0 && c.head_size <= 1024 && c.n_head <= kMost / c.head_size &&
                    c.n_head * c.head_size == c.n_embd,
                Fault::kFormat, "n_head times head_size is not n_embd");
    require(c.group_norm_eps > 0.0f && c.group_norm_eps < 1.0f, Fault::kFormat, "impossible group_norm_eps");
}

void check_tokens(const Config& c, std::span<const int32_t> tokens) {
    require(!tokens.empty(), Fault::kArgument, "no tokens");
    for (const int32_t token : tokens)
        if (token < 0 || token >= c.vocab_size)
            throw Error(Fault::kArgument, "token " + std::to_string(token) +
                                              " is outside the vocabulary of " +
                                              std::to_string(c.vocab_size));
}

} // namespace rwkv
