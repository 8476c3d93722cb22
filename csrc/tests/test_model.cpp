// Whole models with random weights: one token at a time, at once, in splits and batches, with 1 to 5 threads,
// on every level: the same bits, on every processor. Here mainly for the sanitizers; agreement with the
// reference is tested from Python.
#include <cmath>

#include "core/check.h"
#include "core/half.h"
#include "model/model.h"
#include "tests/model_writer.h"
#include "tests/test.h"

using namespace rwkv;
using namespace rwkv::test;

TEST(models_are_bitwise_equal_however_they_run) {
    const std::vector<int32_t> tokens = {5, 0, 49, 7, 7, 31, 2, 18, 40, 3, 11, 29, 1, 44, 6, 23, 9, 12};
    for (const Version version : {Version::k4, Version::k5_0, Version::k6, Version::k7}) {
        for (const char* encoding : {"f32", "q8g32", "q6g32", "q6g16", "q5g32", "q5g16", "q4g16", "uneven"}) {
            Config config;
            config.version = version;
            config.n_layer = 2;
            config.n_embd = 72;
            config.n_head = version == Version::k4 ? 0 : 9;
            config.head_size = version == Version::k4 ? 0 : 8;
            config.n_ffn = 104;
            config.vocab_size = 50;
            ModelWriter writer(config, encoding, encoding[0] == 'q' && version != Version::k4);
            writer.write(temporary());
            std::vector<float> expected;
            for (const cpu::KernelTable* level : levels()) {
                const std::string name = std::string(level->name) + "!";
                for (const int threads : {1, 2, 5}) {
                    Model model(temporary(), config, writer.specs, threads, name);
                    const size_t v = 50, count = tokens.size();
                    std::vector<float> all(count * v), one(v), batch(2 * v);
                    State whole(config), steps(config);
                    model.forward(tokens, whole, all.data(), true, {});
                    for (size_t t = 0; t < count; ++t) {
                        model.forward(std::span(&tokens[t], 1), steps, one.data(), false, {});
                        CHECK(std::memcmp(one.data(), all.data() + t * v, v * 4) == 0,
                              "%s %s version %d threads %d token %zu", name.c_str(), encoding, int(version),
                              threads, t);
                    }
                    State split(config), half(config);
                    model.forward(std::span(tokens).first(4), half, one.data(), false, {});
                    State branch(half);
                    model.forward(std::span(tokens).subspan(4), half, one.data(), false,
                                  [] { return false; });
                    CHECK(std::memcmp(one.data(), all.data() + (count - 1) * v, v * 4) == 0);
                    State* pair[2] = {&branch, &split};
                    const int32_t next[2] = {tokens[4], tokens[0]};
                    model.forward_batch(next, pair, batch.data(), {});
                    CHECK(std::memcmp(batch.data(), all.data() + 4 * v, v * 4) == 0);
                    CHECK(std::memcmp(batch.data() + v, all.data(), v * 4) == 0);
                    bool stopped = false;
                    State kept(whole);
                    try {
                        model.forward(tokens, whole, one.data(), false, [] { return true; });
                    } catch (const Cancelled&) {
                        stopped = true;
                    }
                    CHECK(stopped);
                    const auto a = whole.export_entries(), b = kept.export_entries(),
                               c = steps.export_entries();
                    for (size_t i = 0; i < a.size(); ++i) {
                        CHECK(a[i].values == b[i].values, "%s: a cancelled prompt changed the state",
                              a[i].name.c_str());
                        CHECK(a[i].values == c[i].values, "%s: splits change the state", a[i].name.c_str());
                    }
                    for (const float logit : all)
                        CHECK(std::isfinite(logit));
                    if (expected.empty())
                        expected = all;
                    CHECK(std::memcmp(expected.data(), all.data(), all.size() * 4) == 0,
                          "%s %s version %d threads %d differs", name.c_str(), encoding, int(version),
                          threads);
                }
            }
        }
    }
}

/// FNV-1a of the bytes of floats.
uint64_t digest(const std::vector<float>& values) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const float value : values)
        for (int i = 0; i < 4; ++i)
            hash = (hash ^ (float_to_bits(value) >> (8 * i) & 0xff)) * 0x100000001b3u;
    return hash;
}

TEST(models_have_the_bits_of_every_other_processor) {
    // As computed on x86-64, where the engine is held to the reference package (from Python). Whoever changes
    // the arithmetic on purpose takes the new numbers from the failure.
    struct Known {
        Version version;
        const char* encoding;
        uint64_t logits, state;
    };
    const Known known[] = {
        {Version::k4, "f32", 0x06f55a93831ae3db, 0x625a52c601cfba21},
        {Version::k4, "mixed", 0x554ec84059c34246, 0x7e283206c7f9e6ec},
        {Version::k5_0, "mixed", 0x0dfbbc48480db608, 0x7cdf6bcc3aa192d5},
        {Version::k5_1, "mixed", 0x3363fa34861cfd3d, 0x2f63a14c87ada924},
        {Version::k5_2, "mixed", 0x3e08e30965f799f9, 0x429ab7696d1336c9},
        {Version::k6, "f32", 0xe0db41e18088c728, 0x8642fd873f1f179c},
        {Version::k6, "mixed", 0xb101a55a9b35e309, 0xf4d709f49d45cf62},
        {Version::k7, "f32", 0x54cb50457607c5d4, 0x9372409a3d8b7947},
        {Version::k7, "q8g32", 0x30c5fa786bda1219, 0x662c08d9869760dd},
        {Version::k7, "q5g16", 0x07c5237d40e5ca04, 0xd5d96cb51a6efdc2},
        {Version::k7, "mixed", 0xadadd41fea5c60fe, 0x138d33a9e8266d00},
    };
    for (const Known& k : known) {
        Config config;
        config.version = k.version;
        config.n_layer = 2;
        config.n_embd = 96;
        config.n_head = k.version == Version::k4 ? 0 : 3;
        config.head_size = k.version == Version::k4 ? 0 : 32;
        config.n_ffn = 160;
        config.vocab_size = 50;
        ModelWriter writer(config, k.encoding, k.encoding[0] != 'f' && k.version != Version::k4, 2);
        writer.write(temporary());
        std::vector<int32_t> tokens(40);
        for (size_t i = 0; i < tokens.size(); ++i)
            tokens[i] = int32_t(i * 7 % 50);
        for (const cpu::KernelTable* level : levels()) {
            Model model(temporary(), config, writer.specs, 2, std::string(level->name) + "!");
            State state(config);
            std::vector<float> logits(tokens.size() * 50);
            model.forward(tokens, state, logits.data(), true, {});
            for (const float logit : logits)
                CHECK(std::isfinite(logit));
            const uint64_t of_logits = digest(logits), of_state = digest(values_of(state));
            CHECK(of_logits == k.logits && of_state == k.state, "%s version %d %s has 0x%016llx, 0x%016llx",
                  level->name, int(k.version), k.encoding, static_cast<unsigned long long>(of_logits),
                  static_cast<unsigned long long>(of_state));
        }
    }
}

TEST(bad_requests_change_nothing) {
    Config config;
    config.version = Version::k4;
    config.n_layer = 1;
    config.n_embd = 32;
    config.n_ffn = 64;
    config.vocab_size = 50;
    ModelWriter writer(config, "q8g32", false);
    writer.write(temporary());
    Model model(temporary(), config, writer.specs, 2, "");
    State state(config);
    std::vector<float> logits(100);
    const auto refused = [&](auto call) {
        try {
            call();
        } catch (const Error&) {
            return true;
        }
        return false;
    };
    const std::vector<int32_t> high = {1, 50}, low = {-1}, two = {1, 2};
    CHECK(refused([&] { model.forward(high, state, logits.data(), false, {}); }));
    CHECK(refused([&] { model.forward(low, state, logits.data(), false, {}); }));
    CHECK(refused([&] { model.forward({}, state, logits.data(), false, {}); }));
    State* same[2] = {&state, &state};
    CHECK(refused([&] { model.forward_batch(two, same, logits.data(), {}); }));
    Config other = config;
    other.n_ffn = 96;
    State foreign(other);
    CHECK(refused([&] { model.forward(two, foreign, logits.data(), false, {}); }));
    const auto after = state.export_entries(), fresh = State(config).export_entries();
    for (size_t i = 0; i < after.size(); ++i)
        CHECK(after[i].values == fresh[i].values);
    TensorSpecs cut = writer.specs;
    cut.at("head.weight").parts[0].offset += size_t(1) << 30;
    CHECK(refused([&] { Model(temporary(), config, cut, 1, ""); }));
    cut = writer.specs;
    cut.erase("ln_out.bias");
    CHECK(refused([&] { Model(temporary(), config, cut, 1, ""); }));
}
