// Whole models with random weights: one token at a time, at once, in splits and batches, with 1 to 5 threads,
// on every level: the same bits. Here mainly for the sanitizers; agreement with the reference is tested from
// Python.
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "core/check.h"
#include "model/model.h"
#include "tests/test.h"

using namespace rwkv;
using namespace rwkv::test;

namespace {

/// Writes tensors one after the other and remembers where they lie.
class ModelWriter {
  public:
    ModelWriter(const Config& config, std::string encoding, bool kn)
        : config_(config), encoding_(std::move(encoding)), kn_(kn) {}

    void write(const std::string& path) {
        const int c = config_.n_embd, f = config_.n_ffn, v = config_.vocab_size;
        matrix("emb.weight", v, c, "row");
        norm("blocks.0.ln0");
        for (int layer = 0; layer < config_.n_layer; ++layer) {
            const std::string b = "blocks." + std::to_string(layer) + ".", att = b + "att.", ffn = b + "ffn.";
            norm(b + "ln1");
            norm(b + "ln2");
            for (const char* name : {"receptance", "key", "value", "output"})
                matrix(att + name + ".weight", c, c, "");
            matrix(ffn + "key.weight", f, c, "");
            matrix(ffn + "value.weight", c, f, kn_ ? "kn" : "");
            if (config_.version != Version::k4)
                norm(att + "ln_x");
            if (config_.version == Version::k7) {
                for (const char* name :
                     {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "k_k", "k_a", "r_k"})
                    vector(att + name, c);
                vector(ffn + "x_k", c);
                for (const char* name : {"w", "a", "g"})
                    low_rank(att + name, 24);
                if (layer > 0) {
                    vector(att + "v0", c);
                    low_rank(att + "v", 24);
                }
                continue;
            }
            matrix(ffn + "receptance.weight", c, c, "");
            if (config_.version == Version::k6) {
                for (const char* name : {"x", "w", "k", "v", "r", "g"})
                    vector(att + "time_maa_" + name, c);
                matrix(att + "time_maa_w1", 5 * 24, c, "");
                for (const char* name : {"w", "k", "v", "r", "g"})
                    matrix(att + "time_maa_w2." + name, c, 24, "");
                matrix(att + "time_decay_w1", 24, c, "");
                matrix(att + "time_decay_w2", c, 24, "");
                vector(att + "time_decay", c);
                vector(att + "time_faaaa", c);
                matrix(att + "gate.weight", c, c, "");
                vector(ffn + "time_maa_k", c);
                vector(ffn + "time_maa_r", c);
                continue;
            }
            for (const char* name : {"k", "v", "r"})
                vector(att + "time_mix_" + name, c);
            vector(ffn + "time_mix_k", c);
            vector(ffn + "time_mix_r", c);
            vector(att + "time_decay", config_.version == Version::k5_0 ? config_.n_head : c);
            vector(att + "time_first", config_.version == Version::k5_0 ? config_.n_head : c);
        }
        norm("ln_out");
        matrix("head.weight", v, c, "");
        bytes_.resize(bytes_.size() + 64); // qemu's masked loads fault on lanes that are masked out
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes_.data()), std::streamsize(bytes_.size()));
    }

    TensorSpecs specs;

  private:
    void add(const std::string& name, const std::string& encoding, const std::string& layout,
             std::vector<int> shape, const std::vector<std::pair<std::string, std::vector<uint8_t>>>& parts) {
        TensorSpec spec{encoding, layout, std::move(shape), {}};
        for (const auto& [part, data] : parts) {
            spec.parts.push_back({part, bytes_.size(), data.size()});
            bytes_.insert(bytes_.end(), data.begin(), data.end());
            bytes_.resize((bytes_.size() + 63) / 64 * 64);
        }
        specs[name] = spec;
    }
    void vector(const std::string& name, int n) {
        const auto values = gaussian(size_t(n), ++seed_, 0.3f);
        std::vector<uint8_t> data(values.size() * 4);
        std::memcpy(data.data(), values.data(), data.size());
        add(name, "f32", "row", {n}, {{"", data}});
    }
    void norm(const std::string& name) {
        vector(name + ".weight", config_.n_embd);
        vector(name + ".bias", config_.n_embd);
    }
    void low_rank(const std::string& stem, int rank) {
        matrix(stem + "1", rank, config_.n_embd, "");
        matrix(stem + "2", config_.n_embd, rank, "");
    }
    void matrix(const std::string& name, int n, int k, std::string layout) {
        if (layout.empty())
            layout = encoding_[0] == 'q' ? "t16x4" : "row";
        const RandomMatrix random(encoding_, layout, n, k, ++seed_);
        std::vector<std::pair<std::string, std::vector<uint8_t>>> parts;
        for (size_t i = 0; i < random.part_sizes.size(); ++i) {
            const uint8_t* data = random.bytes.data() + random.part_offsets[i];
            parts.push_back(
                {random.part_sizes[i].first, std::vector<uint8_t>(data, data + random.part_sizes[i].second)});
        }
        add(name, encoding_, layout, {n, k}, parts);
    }

    Config config_;
    std::string encoding_;
    bool kn_;
    unsigned seed_ = 0;
    std::vector<uint8_t> bytes_;
};

std::string temporary() {
    const char* folder = std::getenv("TMPDIR");
    return std::string(folder ? folder : "/tmp") + "/rwkv_tests_model.bin";
}

} // namespace

TEST(models_are_bitwise_equal_however_they_run) {
    const std::vector<int32_t> tokens = {5, 0, 49, 7, 7, 31, 2, 18, 40, 3, 11, 29, 1};
    for (const Version version : {Version::k4, Version::k5_0, Version::k6, Version::k7}) {
        for (const char* encoding : {"f32", "q8g32", "q4g16"}) {
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
