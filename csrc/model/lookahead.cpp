#include "model/lookahead.h"

#include <algorithm>

#include "model/model.h"

namespace rwkv {

Lookahead::Lookahead(const Config& config, int threads)
    : config_(config), threads_(threads), stride_(size_t(config.n_embd + 15) / 16 * 16) {
    const size_t n = size_t(config.head_size);
    head_floats_ = config.version == Version::k4 ? 3 * stride_ : n * size_t(cpu::state_stride(int(n)));
    rows_ = AlignedBuffer<float>(size_t(config.n_layer) * size_t(kRows) * kMost * stride_);
    heads_ = AlignedBuffer<float>(head_floats_ * size_t(threads));
    out_ = AlignedBuffer<float>(kMost * stride_);
}

float* Lookahead::copy_of(const float* values, size_t count, int thread, size_t at) {
    float* copy = heads_.data() + size_t(thread) * head_floats_ + at;
    std::copy_n(values, count, copy);
    return copy;
}

void Model::look_ahead(std::span<const int32_t> tokens, const State& state, Lookahead& ahead, float* logits,
                       const Poll& poll) {
    check_tokens(config_, tokens);
    check(state);
    require(ahead.config() == config_, Fault::kArgument, "the room belongs to a model of another shape");
    require(ahead.threads() >= threads(), Fault::kArgument, "the room belongs to a model with fewer threads");
    require(tokens.size() <= size_t(Lookahead::kMost), Fault::kArgument, "too many tokens to look ahead");
    const Turnstile::Turn turn(turnstile_, poll);
    ahead.tokens = ahead.kept = 0;
    std::vector<int> wanted;
    for (int t = 0; t < int(tokens.size()); ++t)
        wanted.push_back(t);
    // with `ahead` no part of a pass writes to the state
    run(tokens, {{const_cast<State*>(&state), 0, int(tokens.size())}}, wanted, logits, {}, &ahead);
    ahead.tokens = int(tokens.size());
}

void Model::keep(State& state, Lookahead& ahead, int count, const Poll& poll) {
    check(state);
    require(ahead.config() == config_ && count >= ahead.kept && count <= ahead.tokens, Fault::kArgument,
            "so many tokens were not looked ahead");
    const Turnstile::Turn turn(turnstile_, poll);
    const int from = ahead.kept, more = count - from;
    if (more == 0)
        return;
    using Row = Lookahead::Row;
    const size_t stride = ahead.stride();
    pool_.run([&](int thread) {
        const auto share = [&](int all, int who) { return int(int64_t(all) * who / pool_.size()); };
        for (int layer = 0; layer < config_.n_layer; ++layer) {
            const Block& b = weights_.blocks[size_t(layer)];
            const float *k = ahead.row(layer, Row::kKey, from), *v = ahead.row(layer, Row::kValue, from),
                        *w = ahead.row(layer, Row::kDecay, from), *a = ahead.row(layer, Row::kRemoval, from),
                        *add = ahead.row(layer, Row::kAddition, from);
            if (config_.version == Version::k4) {
                const int pieces = (config_.n_embd + 15) / 16, begin = share(pieces, thread) * 16,
                          end = std::min(config_.n_embd, share(pieces, thread + 1) * 16);
                op_.wkv4(k, k, v, b.decay, b.bonus, state.aa(layer), state.bb(layer), state.pp(layer),
                         ahead.out(), stride, more, begin, end);
            } else {
                const int n = config_.head_size, end = share(config_.n_head, thread + 1);
                for (int head = share(config_.n_head, thread); head < end; ++head) {
                    const int c = head * n;
                    float *s = state.head(layer, head), *out = ahead.out() + c;
                    if (config_.version == Version::k7)
                        op_.wkv7(k + c, k + c, v + c, w + c, a + c, add + c, s, out, stride, more, n);
                    else if (config_.version == Version::k6)
                        op_.wkv5(k + c, k + c, v + c, w + c, stride, b.bonus + c, s, out, stride, more, n);
                    else
                        op_.wkv5(k + c, k + c, v + c, b.decay + c, 0, b.bonus + c, s, out, stride, more, n);
                }
            }
            if (thread == 0) {
                std::copy_n(ahead.row(layer, Row::kAttShift, count - 1), config_.n_embd,
                            state.att_x_prev(layer));
                std::copy_n(ahead.row(layer, Row::kFfnShift, count - 1), config_.n_embd,
                            state.ffn_x_prev(layer));
            }
        }
    });
    ahead.kept = count;
}

} // namespace rwkv
