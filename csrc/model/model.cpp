#include "model/model.h"

#include <algorithm>
#include <optional>

#include "core/check.h"

namespace rwkv {
namespace {

/// Scratch for a prompt's chunk stays below this, whatever the prompt's length.
constexpr size_t kScratchBudget = size_t(24) << 20;
constexpr int kLongestChunk = 256;
/// So many tokens take about as long as two: nothing is copied to stop halfway.
constexpr size_t kSoonDone = 16;

} // namespace

Model::Model(const std::string& path, const Config& config, const TensorSpecs& specs, int threads,
             const std::string& level)
    : config_((validate(config), config)), op_(cpu::choose(level.c_str())), file_(path),
      weights_(file_, config_, specs, op_),
      pool_((require(threads >= 1 && threads <= 1024, Fault::kArgument, "threads must be 1 to 1024"),
             threads)) {
    weight_bytes_ = weights_.head.bytes();
    for (const Block& b : weights_.blocks)
        Weights::each_matrix(b, [&](const Matrix& m) { weight_bytes_ += m.bytes(); });
    const size_t row = Scratch::bytes_per_row(config_, weights_, op_);
    chunk_ = int(std::clamp<size_t>(kScratchBudget / row, 8, kLongestChunk)) / 8 * 8;
    scratch_ = Scratch(config_, weights_, op_, 1, pool_.size());
    if (!specs.count("blocks." + std::to_string(config_.n_layer) + ".ln1.weight"))
        file_.populate(); // the rest of a file that has more blocks is not read here
}

void Model::check(const State& state) const {
    require(state.config() == config_, Fault::kArgument, "the state belongs to a model of another shape");
}

void Model::count_active_channels(bool on) {
    const Turnstile::Turn turn(turnstile_, {});
    counts_active_ = on;
    if (on)
        active_channels_.assign(size_t(config_.n_layer), 0);
}

void Model::collect_inputs(bool on) {
    const Turnstile::Turn turn(turnstile_, {});
    collects_inputs_ = on;
    if (!on)
        return;
    inputs_ = {};
    inputs_.prepare(weights_.head);
    for (const Block& b : weights_.blocks)
        Weights::each_matrix(b, [&](const Matrix& m) { inputs_.prepare(m); });
}

void Model::forward(std::span<const int32_t> tokens, State& state, float* logits, bool all,
                    const Poll& poll) {
    check_tokens(config_, tokens);
    check(state);
    const Turnstile::Turn turn(turnstile_, poll);
    std::optional<State> before;
    if (poll && tokens.size() > kSoonDone)
        before.emplace(state);
    std::vector<int> wanted;
    for (size_t done = 0; done < tokens.size();) {
        const int count = int(std::min(tokens.size() - done, size_t(chunk_)));
        wanted.clear();
        for (int t = 0; t < count; ++t)
            if (all || done + size_t(t) + 1 == tokens.size())
                wanted.push_back(t);
        float* out = all ? logits + done * size_t(config_.vocab_size) : logits;
        if (!run(tokens.subspan(done, size_t(count)), {{&state, 0, count}}, wanted, out,
                 before ? poll : Poll())) {
            state.assign(*before);
            throw Cancelled();
        }
        done += size_t(count);
    }
}

void Model::forward_batch(std::span<const int32_t> tokens, std::span<State* const> states, float* logits,
                          const Poll& poll) {
    require(tokens.size() == states.size(), Fault::kArgument, "as many tokens as states are needed");
    check_tokens(config_, tokens);
    for (size_t i = 0; i < states.size(); ++i) {
        check(*states[i]);
        require(std::find(states.begin(), states.begin() + long(i), states[i]) == states.begin() + long(i),
                Fault::kArgument, "the same state stands twice in the batch");
    }
    const Turnstile::Turn turn(turnstile_, poll);
    for (size_t done = 0; done < tokens.size();) {
        const int count = int(std::min(tokens.size() - done, size_t(chunk_)));
        std::vector<Segment> segments;
        std::vector<int> wanted;
        for (int i = 0; i < count; ++i) {
            segments.push_back({states[done + size_t(i)], i, 1});
            wanted.push_back(i);
        }
        run(tokens.subspan(done, size_t(count)), segments, wanted, logits + done * size_t(config_.vocab_size),
            {});
        done += size_t(count);
    }
}

void Model::forward_rows(std::span<const int32_t> tokens, std::span<State* const> states, const Poll& poll,
                         const std::function<void(const BlockRows&)>& take) {
    require(states.size() == 1 || tokens.size() == states.size(), Fault::kArgument,
            "as many tokens as states are needed");
    check_tokens(config_, tokens);
    for (const State* state : states)
        check(*state);
    const bool stops = poll && states.size() == 1 && tokens.size() > 1;
    const Turnstile::Turn turn(turnstile_, poll);
    std::vector<Segment> segments;
    for (size_t done = 0; done < tokens.size();) {
        const int count = int(std::min(tokens.size() - done, size_t(chunk_)));
        segments.clear();
        if (states.size() == 1)
            segments.push_back({states[0], 0, count});
        for (int i = 0; states.size() > 1 && i < count; ++i)
            segments.push_back({states[done + size_t(i)], i, 1});
        if (!run(tokens.subspan(done, size_t(count)), segments, {}, nullptr, stops ? poll : Poll()))
            throw Cancelled();
        take({scratch_.x.data, scratch_.v_first.data, scratch_.x.stride, count});
        done += size_t(count);
    }
}

bool Model::run(std::span<const int32_t> tokens, const std::vector<Segment>& segments,
                std::span<const int> wanted, float* logits, const Poll& poll, Lookahead* ahead) {
    const int rows = int(tokens.size());
    if (scratch_.capacity < rows) {
        const int capacity = std::min(chunk_, std::max(8, (rows + 7) / 8 * 8));
        scratch_ = Scratch(); // the old one goes before the new one comes
        scratch_ = Scratch(config_, weights_, op_, capacity, pool_.size());
    }
    scratch_.set_width(rows == 1 ? 1 : op_.token_block);
    scratch_.head.width = wanted.size() <= 1 ? 1 : op_.token_block;
    // One flag per layer, written by the caller's thread before a barrier and read by all after it.
    std::vector<char> stop(size_t(config_.n_layer), 0);
    pool_.run([&](int thread) {
        Pass p{config_,
               op_,
               scratch_,
               pool_,
               segments,
               rows,
               thread,
               counts_active_ ? active_channels_.data() : nullptr,
               collects_inputs_ ? &inputs_ : nullptr,
               ahead};
        Scratch& s = scratch_;
        const int c = config_.n_embd;
        p.each_of(rows, [&](int t) {
            op_.embedding_row(weights_.emb, tokens[size_t(t)], s.x.row(t));
            if (weights_.ln0.weight)
                op_.layer_norm(s.x.row(t), weights_.ln0.weight, weights_.ln0.bias, kLayerNormEps, c,
                               s.x.row(t));
        });
        p.barrier();
        for (int layer = 0; layer < config_.n_layer; ++layer) {
            const Block& block = weights_.blocks[size_t(layer)];
            if (thread == 0 && poll)
                stop[size_t(layer)] = poll();
            switch (config_.version) {
            case Version::k4:
                time_mix_v4(p, block, layer);
                break;
            case Version::k5_0:
            case Version::k5_1:
            case Version::k5_2:
                time_mix_v5(p, block, layer);
                break;
            case Version::k6:
                time_mix_v6(p, block, layer);
                break;
            case Version::k7:
                time_mix_v7(p, block, layer);
                break;
            }
            if (stop[size_t(layer)])
                return;
            channel_mix(p, block, layer);
        }
        if (wanted.empty())
            return;
        p.each_of(int(wanted.size()), [&](int i) {
            float* normed = s.thread_row(thread, 0);
            op_.layer_norm(s.x.row(wanted[size_t(i)]), weights_.ln_out.weight, weights_.ln_out.bias,
                           kLayerNormEps, c, normed);
            op_.set_acts(normed, 0, i, 1, 0, c, s.head);
        });
        p.barrier();
        p.rows = int(wanted.size());
        p.products({{&weights_.head, &s.head, cpu::Epilogue::kStore, logits, size_t(config_.vocab_size),
                     nullptr, 0, nullptr}});
    });
    return std::find(stop.begin(), stop.end(), 1) == stop.end();
}

} // namespace rwkv
