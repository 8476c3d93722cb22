// A model's first blocks on the CPU and its last ones on a GPU, or its emulator, against the CPU engine
// alone: the same bits.
#include "core/check.h"
#include "device/cuda_model.h"
#include "model/model.h"
#include "tests/model_writer.h"
#include "tests/test.h"

using namespace rwkv;
using namespace rwkv::test;

namespace {

constexpr int kBlocks = 3, kVocab = 50;
constexpr Version kVersions[] = {Version::k4,   Version::k5_0, Version::k5_1,
                                 Version::k5_2, Version::k6,   Version::k7};
const std::vector<int32_t> kTokens = {5, 0, 49, 7, 7, 31, 2, 18, 40, 3, 11};

struct Case {
    Case(Version version, const char* encoding, bool kn, int blocks = kBlocks) {
        config.version = version;
        config.n_layer = blocks;
        config.n_embd = 72;
        config.n_head = version == Version::k4 ? 0 : 9;
        config.head_size = version == Version::k4 ? 0 : 8;
        config.n_ffn = 104;
        config.vocab_size = kVocab;
        ModelWriter writer(config, encoding, kn);
        writer.write(temporary());
        specs = writer.specs;
    }
    Model alone() const { return Model(temporary(), config, specs, 1, ""); }
    CudaModel split(int layers) const {
        return CudaModel({CUDA_LIBRARY, 0, layers, 2, ""}, temporary(), config, specs);
    }
    Config config;
    TensorSpecs specs;
};

std::vector<float> row(const std::vector<float>& logits, size_t t) {
    return {logits.begin() + long(t * kVocab), logits.begin() + long((t + 1) * kVocab)};
}

void compare(const Case& c, int layers) {
    char label[64];
    std::snprintf(label, sizeof label, "version %d, %d of %d layers", int(c.config.version), layers, kBlocks);
    const size_t count = kTokens.size();
    Model alone = c.alone();
    State whole(c.config), part(c.config);
    std::vector<float> expected(count * kVocab), got(expected.size()), one(kVocab);
    alone.forward(kTokens, whole, expected.data(), true, {});
    alone.forward(std::span(kTokens).first(4), part, one.data(), false, {});
    const auto after = values_of(whole), after_part = values_of(part);

    CudaModel split = c.split(layers);
    CHECK(split.layers() == layers, "%s", label);
    const auto prompt = split.new_state(), steps = split.new_state(), pieces = split.new_state();
    CHECK(same(values_of(*prompt), values_of(State(c.config))), "%s: the state before all", label);
    split.forward(kTokens, *prompt, got.data(), true, [] { return false; });
    CHECK(same(got, expected) && same(values_of(*prompt), after), "%s: a prompt", label);
    for (size_t t = 0; t < count; ++t) {
        split.forward(std::span(&kTokens[t], 1), *steps, one.data(), false, {});
        CHECK(same(one, row(expected, t)), "%s: token %zu alone", label, t);
    }
    CHECK(same(values_of(*steps), after), "%s: the state after single tokens", label);
    split.forward(std::span(kTokens).first(4), *pieces, one.data(), false, {});
    CHECK(same(one, row(expected, 3)) && same(values_of(*pieces), after_part), "%s: four tokens", label);

    const auto branch = pieces->copy(), fresh = split.new_state(), written = split.new_state();
    StateArrays arrays; // of the CPU's state
    const auto entries = part.export_entries();
    for (const State::Entry& entry : entries)
        arrays[entry.name] = {entry.values.data(), entry.values.size()};
    written->import_entries(arrays);
    CHECK(same(values_of(*written), after_part), "%s: a state that was written", label);
    split.forward(std::span(kTokens).subspan(4), *pieces, one.data(), false, {});
    CHECK(same(one, row(expected, count - 1)) && same(values_of(*pieces), after), "%s: the rest", label);
    CHECK(same(values_of(*branch), after_part), "%s: a copy is independent", label);
    CudaState* batch[3] = {branch.get(), fresh.get(), written.get()};
    const int32_t next[3] = {kTokens[4], kTokens[0], kTokens[4]};
    std::vector<float> rows(3 * kVocab);
    split.forward_batch(next, batch, rows.data(), {});
    CHECK(same(row(rows, 0), row(expected, 4)) && same(row(rows, 1), row(expected, 0)) &&
              same(row(rows, 2), row(expected, 4)),
          "%s: a batch", label);
    CHECK(same(values_of(*branch), values_of(*written)), "%s: states after a batch", label);
}

} // namespace

TEST(models_on_two_devices_give_the_bits_of_one) {
    for (const Version version : kVersions)
        for (int layers = 1; layers <= kBlocks; ++layers)
            compare(Case(version, layers == 2 ? "bf16" : "mixed", layers == 1), layers);
    compare(Case(Version::k7, "q4g16", true), 2);
}

TEST(long_prompts_and_batches_pass_from_device_to_device) {
    const Case c(Version::k7, "q8g32", false, 2);
    Model alone = c.alone();
    CudaModel split = c.split(1);
    std::vector<int32_t> tokens(600);
    for (size_t i = 0; i < tokens.size(); ++i)
        tokens[i] = int32_t(i * i % kVocab);
    State state(c.config);
    std::vector<float> expected(tokens.size() * kVocab), got(expected.size()), last(kVocab);
    alone.forward(tokens, state, expected.data(), true, {});
    const auto all = split.new_state(), ends = split.new_state();
    split.forward(tokens, *all, got.data(), true, {});
    CHECK(same(got, expected) && same(values_of(*all), values_of(state)));
    split.forward(tokens, *ends, last.data(), false, {});
    CHECK(same(last, row(expected, tokens.size() - 1)) && same(values_of(*ends), values_of(state)));

    constexpr size_t kMany = 300; // more states than a chunk has rows
    std::vector<std::unique_ptr<CudaState>> states;
    std::vector<CudaState*> batch;
    for (size_t i = 0; i < kMany; ++i) {
        states.push_back(split.new_state());
        batch.push_back(states.back().get());
    }
    std::vector<float> rows(kMany * kVocab);
    split.forward_batch(std::span(tokens).first(kMany), batch, rows.data(), {});
    for (const size_t i : {size_t(0), size_t(255), size_t(256), kMany - 1}) {
        State lone(c.config);
        alone.forward(std::span(&tokens[i], 1), lone, last.data(), false, {});
        CHECK(same(row(rows, i), last) && same(values_of(*states[i]), values_of(lone)), "sequence %zu", i);
    }

    constexpr size_t kFew = 35; // the second time a recorded graph, the third for other states
    for (const size_t begin : {0, 0, 100}) {
        const std::span<const int32_t> next = std::span(tokens).subspan(begin + 200, kFew);
        std::vector<CudaState*> few;
        for (size_t i = 0; i < kFew; ++i) {
            states[begin + i] = split.new_state();
            few.push_back(states[begin + i].get());
        }
        split.forward_batch(next, few, rows.data(), {});
        for (const size_t i : {size_t(0), size_t(31), kFew - 1}) {
            State lone(c.config);
            alone.forward(next.subspan(i, 1), lone, last.data(), false, {});
            CHECK(same(row(rows, i), last) && same(values_of(*few[i]), values_of(lone)), "%zu of few", i);
        }
    }
}

TEST(a_stopped_prompt_leaves_both_parts_as_they_were) {
    for (const Version version : {Version::k4, Version::k7}) {
        const Case c(version, "q8g32", false);
        CudaModel split = c.split(2);
        const auto state = split.new_state();
        std::vector<float> logits(kVocab);
        split.forward(kTokens, *state, logits.data(), false, {});
        const auto before = values_of(*state);
        const std::vector<int32_t> tokens(600, 4);
        // before the CPU's one block of the first chunk, of the second when the GPU has had the first, of the
        // third
        for (int polls = 0; polls < 3; ++polls) {
            int left = polls;
            bool stopped = false;
            try {
                split.forward(tokens, *state, logits.data(), false, [&] { return left-- <= 0; });
            } catch (const Cancelled&) {
                stopped = true;
            }
            CHECK(stopped && same(values_of(*state), before), "version %d, %d polls", int(version), polls);
        }
        std::string thrown;
        try {
            split.forward(tokens, *state, logits.data(), false,
                          []() -> bool { throw std::runtime_error("poll"); });
        } catch (const std::runtime_error& e) {
            thrown = e.what();
        }
        CHECK(thrown == "poll" && same(values_of(*state), before), "%s", thrown.c_str());
    }
}

TEST(what_a_part_takes_is_known_beforehand) {
    for (const Version version : kVersions) {
        const Case c(version, "q4g16", version != Version::k4);
        const CudaRequired required = cuda_required(CUDA_LIBRARY, temporary(), c.config, c.specs);
        CHECK(required.model.size() == size_t(kBlocks) && required.state > 0);
        for (int layers = 1; layers <= kBlocks; ++layers) {
            const size_t held = c.split(layers).device_bytes();
            CHECK(required.model[size_t(layers - 1)] == held, "version %d, %d layers: %zu, not %zu",
                  int(version), layers, required.model[size_t(layers - 1)], held);
        }
        CHECK(required.model[0] < required.model[1] && required.model[1] < required.model[2]);
    }
}
