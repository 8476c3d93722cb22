// Tokens evaluated ahead of a state: the logits that forward gives and no change; what is kept of them is the
// state that forward makes, on every level and however many tokens, steps and threads there are, in every
// bit.
#include "core/check.h"
#include "model/model.h"
#include "tests/model_writer.h"
#include "tests/test.h"

using namespace rwkv;
using namespace rwkv::test;

namespace {

constexpr int kMost = Lookahead::kMost, kVocab = 50, kPrompt = 3;
const std::vector<int32_t> kTokens = {5, 0, 49, 7, 7, 31, 2, 18, 40, 3, 11, 29}; // a prompt, and what follows

struct Shape {
    Version version;
    int n_embd, head_size; // 0: no heads
    int n_ffn;
};
constexpr Shape kShapes[] = {
    {Version::k4, 72, 0, 104},   {Version::k4, 40, 0, 96},    {Version::k5_0, 72, 8, 104},
    {Version::k5_1, 72, 9, 104}, {Version::k5_2, 96, 32, 96}, {Version::k6, 72, 9, 104},
    {Version::k7, 72, 8, 104},   {Version::k7, 72, 9, 104},   {Version::k7, 128, 64, 96},
};

Config config_of(const Shape& shape) {
    Config config;
    config.version = shape.version;
    config.n_layer = 2;
    config.n_embd = shape.n_embd;
    config.n_head = shape.head_size ? shape.n_embd / shape.head_size : 0;
    config.head_size = shape.head_size;
    config.n_ffn = shape.n_ffn;
    config.vocab_size = kVocab;
    return config;
}

/// Logits after each of kTokens, and the states after the prompt and 0, 1, ... tokens more, of one token at a
/// time.
struct Expected {
    std::vector<float> logits;
    std::vector<std::vector<float>> states;
    const float* after(int ahead) const { return logits.data() + size_t(kPrompt + ahead) * kVocab; }

    explicit Expected(Model& model) : logits(kTokens.size() * kVocab) {
        State state(model.config());
        for (size_t t = 0; t < kTokens.size(); ++t) {
            if (t >= kPrompt)
                states.push_back(values_of(state));
            model.forward(std::span(&kTokens[t], 1), state, logits.data() + t * kVocab, false, {});
        }
    }
};

/// Everything that is asked of one model, whose failures are told with `what`.
void compare(Model& model, const Expected& expected, const char* what) {
    const std::span<const int32_t> all(kTokens), after = all.subspan(kPrompt);
    std::vector<float> logits(size_t(kMost) * kVocab);
    State before(model.config());
    model.forward(all.first(kPrompt), before, logits.data(), false, {});
    Lookahead ahead(model.config(), model.threads());
    const auto look = [&](int count, State& state) {
        std::fill(logits.begin(), logits.end(), -1.0f);
        model.look_ahead(after.first(size_t(count)), state, ahead, logits.data(), {});
        CHECK(same(logits.data(), expected.after(0), size_t(count) * kVocab), "%s: logits of %d", what,
              count);
        CHECK(same(values_of(state), expected.states[0]), "%s: looking at %d changed the state", what, count);
    };
    const auto kept = [&](State& state, int count) {
        model.keep(state, ahead, count, {});
        CHECK(same(values_of(state), expected.states[size_t(count)]), "%s: %d kept", what, count);
    };
    const auto goes_on = [&](State& state, int count) {
        model.forward(after.subspan(size_t(count), 1), state, logits.data(), false, {});
        CHECK(same(logits.data(), expected.after(count), kVocab), "%s: after %d kept", what, count);
    };
    for (int count = 1; count <= kMost; ++count) {
        State whole(before), steps(before);
        look(count, whole);
        kept(whole, count);
        goes_on(whole, count);
        look(count, steps);
        for (int from = 0; from <= count; from += 1 + from % 3) // one, two and three at a time
            kept(steps, from);
        kept(steps, count);
        kept(steps, count); // nothing more
        goes_on(steps, count);
    }
    for (int count = 0; count < kMost; ++count) { // the others never come
        State state(before);
        look(kMost, state);
        kept(state, count);
        goes_on(state, count);
    }
}

/// Whether `call` is refused as a mistake of the caller's.
template <class F>
bool refused(F call) {
    try {
        call();
    } catch (const Error& error) {
        return error.fault() == Fault::kArgument;
    }
    return false;
}

} // namespace

TEST(models_look_ahead_as_they_go_forward) {
    const struct {
        const char* encoding;
        bool kn;
    } formats[] = {{"f32", false}, {"q5g16", true}, {"mixed", false}};
    int turn = 0; // 1, 2 and 3 threads in turns: each with every shape, and with every format
    for (const Shape& shape : kShapes) {
        for (const auto& [encoding, has_kn] : formats) {
            const int threads = 1 + turn++ % 3;
            const Config config = config_of(shape);
            const bool kn = has_kn && shape.version != Version::k4;
            ModelWriter writer(config, encoding, kn);
            writer.write(temporary());
            Model plain(temporary(), config, writer.specs, 1, "scalar");
            const Expected expected(plain);
            for (const cpu::KernelTable* level : levels()) {
                const std::string name = std::string(level->name) + "!";
                Model model(temporary(), config, writer.specs, threads, name);
                char what[100];
                std::snprintf(what, sizeof(what), "%s %s%s version %d width %d head %d threads %d",
                              level->name, encoding, kn ? " kn" : "", int(shape.version), shape.n_embd,
                              shape.head_size, threads);
                compare(model, expected, what);
            }
        }
        ++turn;
    }
}

TEST(models_refuse_what_was_not_looked_ahead) {
    const Config config = config_of({Version::k7, 72, 8, 104});
    ModelWriter writer(config, "q8g32", false);
    writer.write(temporary());
    Model model(temporary(), config, writer.specs, 2, "");
    Config other = config;
    other.n_ffn = 96;
    State state(config), foreign(other);
    Lookahead ahead(config, 2), room(other, 2), narrow(config, 1);
    std::vector<float> logits(size_t(kMost + 1) * kVocab);
    const std::span<const int32_t> nine(kTokens.data(), 9), two(kTokens.data(), 2);
    const std::vector<int32_t> high = {1, kVocab}, low = {-1};
    const auto look = [&](std::span<const int32_t> tokens, const State& of, Lookahead& in) {
        model.look_ahead(tokens, of, in, logits.data(), {});
    };
    const auto keep = [&](State& of, Lookahead& in, int count) { model.keep(of, in, count, {}); };

    CHECK(refused([&] { keep(state, ahead, 1); })); // there is nothing yet
    CHECK(refused([&] { look(nine, state, ahead); }));
    CHECK(refused([&] { look({}, state, ahead); }));
    CHECK(refused([&] { look(high, state, ahead); }));
    CHECK(refused([&] { look(low, state, ahead); }));
    CHECK(refused([&] { look(two, foreign, ahead); }));
    CHECK(refused([&] { look(two, state, room); }));
    CHECK(refused([&] { look(two, state, narrow); })); // made for a model with fewer threads
    CHECK(refused([&] { keep(state, ahead, 1); }));
    CHECK(same(values_of(state), values_of(State(config))));

    look(two, state, ahead);
    for (const int count : {-1, 3})
        CHECK(refused([&] { keep(state, ahead, count); }), "%d", count);
    CHECK(refused([&] { keep(foreign, ahead, 1); }));
    CHECK(refused([&] { keep(state, room, 0); }));
    CHECK(same(values_of(state), values_of(State(config))));
    keep(state, ahead, 2);
    State expected(config);
    model.forward(two, expected, logits.data(), false, {});
    for (const int count : {0, 1, 3})
        CHECK(refused([&] { keep(state, ahead, count); }), "%d", count);
    CHECK(same(values_of(state), values_of(expected)));
}

TEST(states_take_over_the_values_of_their_kind_alone) {
    const Config config = config_of({Version::k6, 72, 9, 104});
    ModelWriter writer(config, "f32", false);
    writer.write(temporary());
    Model model(temporary(), config, writer.specs, 1, "");
    std::vector<float> logits(kVocab);
    State seen(config), taken(config);
    model.forward(kTokens, seen, logits.data(), false, {});
    taken.assign(seen);
    CHECK(same(values_of(taken), values_of(seen)));
    taken.assign(taken);
    CHECK(same(values_of(taken), values_of(seen)));
    for (const Shape& shape :
         {Shape{Version::k6, 72, 8, 104}, {Version::k5_2, 72, 9, 104}, {Version::k4, 72, 0, 104}})
        CHECK(refused([&] { taken.assign(State(config_of(shape))); }));
    CHECK(same(values_of(taken), values_of(seen)));
}
