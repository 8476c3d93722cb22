// The CUDA library through its C interface against the CPU engine: the same bits. Both sum in the same order
// (docs/cuda.md), so there are no tolerances. Built twice: with the emulator, and for a GPU.
#include <cmath>
#include <optional>

#include "tests/cuda_fixtures.h"

using namespace rwkv;
using namespace rwkv::test;

namespace {

/// A prompt, single tokens, splits, a batch, copies: all against the CPU engine.
void compare(const Config& config, const char* encoding, bool kn) {
    const size_t v = size_t(config.vocab_size), count = kTokens.size();
    Reference reference(config, encoding, kn);
    Model& cpu = *reference.cpu;
    std::vector<float> expected(count * v), one(v), all(count * v);
    State whole(config), part(config);
    cpu.forward(kTokens, whole, expected.data(), true, {});
    cpu.forward(std::span(kTokens).first(4), part, one.data(), false, {});
    const auto after = values_of(whole), after_part = values_of(part);
    for (const float logit : expected)
        CHECK(std::isfinite(logit));

    char label[96];
    std::snprintf(label, sizeof label, "version %d, %s%s, C %d, N %d", int(config.version), encoding,
                  kn ? " kn" : "", config.n_embd, config.head_size);
    Gpu gpu(reference);
    GpuState prompt(gpu), steps(gpu), split(gpu);
    feed(gpu, kTokens, prompt, all.data(), true);
    CHECK(same(all, expected), "%s: a prompt", label);
    CHECK(same(prompt.values(), after), "%s: the state after a prompt", label);
    for (size_t t = 0; t < count; ++t) {
        feed(gpu, std::span(&kTokens[t], 1), steps, one.data(), false);
        CHECK(same(one.data(), &expected[t * v], v), "%s: token %zu alone", label, t);
    }
    CHECK(same(steps.values(), after), "%s: the state after single tokens", label);
    feed(gpu, std::span(kTokens).first(4), split, one.data(), false);
    CHECK(same(one.data(), &expected[3 * v], v), "%s: four tokens", label);
    CHECK(same(split.values(), after_part), "%s: the state after four tokens", label);

    char reason[256] = "";
    GpuState branch(gpu), written(gpu), fresh(gpu);
    CHECK(rwkv_cuda_copy_state(branch.state, split.state, reason, sizeof reason) == RWKV_CUDA_OK, "%s",
          reason);
    CHECK(rwkv_cuda_write_state(written.state, after_part.data(), reason, sizeof reason) == RWKV_CUDA_OK,
          "%s", reason);
    CHECK(same(written.values(), after_part), "%s: a state that was written", label);
    feed(gpu, std::span(kTokens).subspan(4), split, one.data(), false);
    CHECK(same(one.data(), &expected[(count - 1) * v], v), "%s: the rest", label);
    CHECK(same(split.values(), after), "%s: the state after the rest", label);
    rwkv_cuda_state* batch[3] = {branch.state, fresh.state, written.state};
    const int32_t next[3] = {kTokens[4], kTokens[0], kTokens[4]};
    std::vector<float> rows(3 * v);
    CHECK(rwkv_cuda_forward_batch(gpu.model, next, batch, 3, rows.data(), reason, sizeof reason) ==
              RWKV_CUDA_OK,
          "%s", reason);
    CHECK(same(&rows[0], &expected[4 * v], v) && same(&rows[v], &expected[0], v) &&
              same(&rows[2 * v], &expected[4 * v], v),
          "%s: a batch", label);
    feed(gpu, std::span(&kTokens[5], 1), branch, one.data(), false);
    CHECK(same(one.data(), &expected[5 * v], v), "%s: after a batch", label);
}

} // namespace

TEST(odd_models_give_the_bits_of_the_cpu_engine) {
    for (const Version version : kVersions)
        for (const char* encoding :
             {"f32", "bf16", "q8g32", "q6g32", "q6g16", "q5g32", "q5g16", "q4g32", "q4g16"}) {
            const bool q = encoding[0] == 'q';
            std::optional<Setting> order; // every other model the other way round: races would show
            if (std::strcmp(encoding, "q8g32") == 0 || std::strcmp(encoding, "q6g16") == 0 ||
                std::strcmp(encoding, "q5g16") == 0 || std::strcmp(encoding, "bf16") == 0)
                order.emplace("RWKV_CUDA_EMULATED_ORDER", "reverse");
            compare(config_of(version, 2, 72, 8, 104, 50), encoding, q && version != Version::k4);
        }
}

// A driver compiles old code for new GPUs, where it does not wait for the kernels before.
TEST(kernels_of_code_for_older_gpus_do_not_overlap) {
    const Setting code("RWKV_CUDA_EMULATED_CODE", "86");
    for (const Version version : {Version::k4, Version::k6, Version::k7})
        compare(config_of(version, 2, 64, 64, 128, 50), "q4g32", version == Version::k7);
}

// What kernels do before they wait for those before must not depend on what these do, nor what the host does
// before it waits.
TEST(overlapping_kernels_give_the_bits_of_the_cpu_engine) {
    const Setting overlap("RWKV_CUDA_EMULATED_OVERLAP", "2"), one("RWKV_CUDA_EMULATED_MULTIPROCESSORS", "1"),
        late("RWKV_CUDA_EMULATED_LATE", "1");
    for (const Version version : kVersions) {
        const bool reverse = version == Version::k5_1 || version == Version::k7;
        const Setting order("RWKV_CUDA_EMULATED_ORDER", reverse ? "reverse" : "");
        compare(config_of(version, 2, 64, version == Version::k5_2 ? 32 : 64, 128, 50), "q4g16", reverse);
        compare(config_of(version, 2, 72, 9, 104, 50), reverse ? "f16" : "mixed", !reverse);
    }
}

// What a race checker has the patience for: single tokens, a prompt, a batch, in both layouts.
TEST(few_steps_give_the_bits_of_the_cpu_engine) {
    for (const bool kn : {false, true}) {
        const Config config = config_of(Version::k7, 1, 64, 64, 128, 50);
        Reference reference(config, "q4g32", kn);
        const size_t v = size_t(config.vocab_size), count = 70;
        std::vector<int32_t> tokens(count);
        for (size_t i = 0; i < count; ++i)
            tokens[i] = int32_t(i * 7 % v);
        std::vector<float> expected(count * v), found(count * v);
        State state(config);
        reference.cpu->forward(tokens, state, expected.data(), true, {});
        Gpu gpu(reference);
        GpuState prompt(gpu), step(gpu), other(gpu);
        feed(gpu, tokens, prompt, found.data(), true);
        CHECK(same(found, expected), "a prompt");
        CHECK(same(prompt.values(), values_of(state)), "the state after a prompt");
        for (size_t t = 0; t < 2; ++t) {
            feed(gpu, std::span(&tokens[t], 1), step, found.data(), false);
            CHECK(same(found.data(), &expected[t * v], v), "token %zu", t);
        }
        rwkv_cuda_state* batch[2] = {step.state, other.state};
        const int32_t next[2] = {tokens[2], tokens[0]};
        char reason[256] = "";
        CHECK(rwkv_cuda_forward_batch(gpu.model, next, batch, 2, found.data(), reason, sizeof reason) ==
                  RWKV_CUDA_OK,
              "%s", reason);
        CHECK(same(&found[0], &expected[2 * v], v) && same(&found[v], &expected[0], v), "a batch");
    }
}

TEST(usual_head_sizes_give_the_bits_of_the_cpu_engine) {
    for (const Version version : kVersions) {
        compare(config_of(version, 2, 128, 64, 192, 50), "q4g16", false);
        compare(config_of(version, 1, 128, 64, 192, 50), "q6g16", false);
        compare(config_of(version, 1, 128, 64, 192, 50), "q5g16", false);
        const Setting order("RWKV_CUDA_EMULATED_ORDER", "reverse");
        compare(config_of(version, 2, 128, 64, 192, 50), "mixed", true);
        compare(config_of(version, 1, 96, 32, 130, 50), "f16", false);
        compare(config_of(version, 1, 90, 9, 104, 50), "q8g32", false);
    }
}

// More inputs than are summed at once, more active channels than meet in shared memory.
TEST(long_rows_give_the_bits_of_the_cpu_engine) {
    for (const char* encoding : {"q8g32", "q6g32", "q6g16", "q5g32", "q5g16", "q4g32", "q4g16"})
        for (const bool kn : {false, true})
            compare(config_of(Version::k7, 1, 64, 64, 4200, 50), encoding, kn);
}

TEST(long_prompts_give_the_bits_of_the_cpu_engine) {
    const Setting late("RWKV_CUDA_EMULATED_LATE", "1");
    const Config config = config_of(Version::k7, 1, 64, 64, 96, 50);
    Reference reference(config, "q8g32", true);
    std::vector<int32_t> tokens(530); // more than a chunk
    for (size_t i = 0; i < tokens.size(); ++i)
        tokens[i] = int32_t(i * i % 50);
    std::vector<float> expected(tokens.size() * 50), got(expected.size()), last(50);
    State state(config);
    reference.cpu->forward(tokens, state, expected.data(), true, {});
    Gpu gpu(reference);
    GpuState all(gpu), ends(gpu);
    feed(gpu, tokens, all, got.data(), true);
    CHECK(same(got, expected));
    CHECK(same(all.values(), values_of(state)));
    feed(gpu, tokens, ends, last.data(), false);
    CHECK(same(last.data(), &expected[529 * 50], 50));
    CHECK(same(ends.values(), values_of(state)));
}

/// Prompts of `lengths` tokens, then one more token for as many sequences at once as the first is long.
void compare_many_columns(const Config& config, const char* encoding, std::initializer_list<int> lengths,
                          bool kn = false) {
    const size_t v = size_t(config.vocab_size);
    char label[96];
    std::snprintf(label, sizeof label, "version %d, %s%s, C %d, N %d", int(config.version), encoding,
                  kn ? " kn" : "", config.n_embd, config.head_size);
    Reference reference(config, encoding, kn);
    Gpu gpu(reference);
    for (const int length : lengths) {
        std::vector<int32_t> tokens(static_cast<size_t>(length));
        for (size_t i = 0; i < tokens.size(); ++i)
            tokens[i] = int32_t((i * i + 3 * i + 1) % v);
        std::vector<float> expected(tokens.size() * v), got(expected.size());
        State state(config);
        reference.cpu->forward(tokens, state, expected.data(), true, {});
        GpuState whole(gpu);
        feed(gpu, tokens, whole, got.data(), true);
        CHECK(same(got, expected), "%s: a prompt of %d", label, length);
        CHECK(same(whole.values(), values_of(state)), "%s: the state after %d", label, length);
        const int32_t next = tokens[0];
        reference.cpu->forward({&next, 1}, state, expected.data(), true, {});
        std::vector<std::unique_ptr<GpuState>> copies;
        std::vector<rwkv_cuda_state*> states;
        char reason[256] = "";
        for (int i = 0; i < *lengths.begin(); ++i) {
            copies.push_back(std::make_unique<GpuState>(gpu));
            states.push_back(copies.back()->state);
            CHECK(rwkv_cuda_copy_state(states.back(), whole.state, reason, sizeof reason) == RWKV_CUDA_OK,
                  "%s", reason);
        }
        const std::vector<int32_t> same_token(states.size(), next);
        std::vector<float> rows(states.size() * v);
        CHECK(rwkv_cuda_forward_batch(gpu.model, same_token.data(), states.data(), int(states.size()),
                                      rows.data(), reason, sizeof reason) == RWKV_CUDA_OK,
              "%s", reason);
        for (size_t i = 0; i < states.size(); ++i) {
            CHECK(same(&rows[i * v], expected.data(), v), "%s: row %zu of a batch", label, i);
            CHECK(same(copies[i]->values(), values_of(state)), "%s: state %zu of a batch", label, i);
        }
    }
}

// Blocks of 8 to 64 columns, whole and not; units and stages that are not whole; all formats.
TEST(many_columns_give_the_bits_of_the_cpu_engine) {
    for (const char* encoding : {"q8g32", "q6g32", "q6g16", "q5g32", "q5g16", "q4g32", "q4g16", "mixed"}) {
        compare_many_columns(config_of(Version::k7, 1, 136, 8, 420, 70), encoding, {9, 33, 70});
        const Setting order("RWKV_CUDA_EMULATED_ORDER", "reverse");
        compare_many_columns(config_of(Version::k6, 1, 72, 8, 104, 50), encoding, {20, 41});
        compare_many_columns(config_of(Version::k4, 1, 272, 0, 272, 50), encoding, {64});
    }
}

// Every number of columns, on a device for which no blocks are too few.
TEST(all_numbers_of_columns_give_the_bits_of_the_cpu_engine) {
    const size_t most = 70, v = 50;
    std::vector<int32_t> tokens(most);
    for (size_t i = 0; i < most; ++i)
        tokens[i] = int32_t((i * i + 5 * i + 2) % v);
    for (const char* encoding : {"q8g32", "q6g32", "q6g16", "q5g32", "q5g16", "q4g32", "q4g16"}) {
        const Config config = config_of(Version::k7, 1, 72, 8, 136, int(v));
        Reference reference(config, encoding, false);
        std::vector<float> expected(most * v), last(v);
        State state(config);
        reference.cpu->forward(tokens, state, expected.data(), true, {});
        const Setting processors("RWKV_CUDA_EMULATED_MULTIPROCESSORS", "1");
        Gpu gpu(reference);
        for (size_t count = 1; count <= most; ++count) {
            GpuState prompt(gpu);
            feed(gpu, std::span(tokens).first(count), prompt, last.data(), false);
            CHECK(same(last.data(), &expected[(count - 1) * v], v), "%s: %zu columns", encoding, count);
        }
    }
}

// Sizes around those where other blocks are taken, each twice: the second time is a recorded graph, for other
// states.
TEST(batches_of_many_sizes_give_the_bits_of_the_cpu_engine) {
    const Setting late("RWKV_CUDA_EMULATED_LATE", "1");
    const size_t most = 64;
    int models = 0;
    for (const char* encoding : {"q8g32", "q6g32", "q6g16", "q5g32", "q5g16", "q4g32", "q4g16", "mixed"}) {
        const Setting processors("RWKV_CUDA_EMULATED_MULTIPROCESSORS", models % 2 == 0 ? "1" : "132"),
            order("RWKV_CUDA_EMULATED_ORDER", models % 4 < 2 ? "" : "reverse");
        const Config config = config_of(models++ % 3 == 0 ? Version::k6 : Version::k7, 1, 136, 8, 264, 70);
        Reference reference(config, encoding, false);
        Gpu gpu(reference);
        const size_t v = size_t(config.vocab_size);
        std::vector<State> expected(most, State(config));
        std::vector<std::unique_ptr<GpuState>> states;
        for (size_t i = 0; i < most; ++i)
            states.push_back(std::make_unique<GpuState>(gpu));
        std::vector<float> logits(v), rows(most * v);
        for (const bool again : {false, true})
            for (const size_t size : {2, 8, 9, 16, 17, 31, 32, 33, 48, 64}) {
                std::vector<int32_t> tokens;
                std::vector<rwkv_cuda_state*> batch;
                const auto place = [&](size_t row) { return again ? most - 1 - row : row; };
                for (size_t row = 0; row < size; ++row) {
                    tokens.push_back(int32_t((row * row + 3 * size) % v));
                    batch.push_back(states[place(row)]->state);
                }
                char reason[256] = "";
                CHECK(rwkv_cuda_forward_batch(gpu.model, tokens.data(), batch.data(), int(size), rows.data(),
                                              reason, sizeof reason) == RWKV_CUDA_OK,
                      "%s", reason);
                for (size_t row = 0; row < size; ++row) {
                    reference.cpu->forward({&tokens[row], 1}, expected[place(row)], logits.data(), false, {});
                    CHECK(same(&rows[row * v], logits.data(), v), "%s: row %zu of %zu, %s", encoding, row,
                          size, again ? "again" : "first");
                }
            }
        for (size_t i = 0; i < most; ++i)
            CHECK(same(states[i]->values(), values_of(expected[i])), "%s: state %zu", encoding, i);
    }
}

// More sizes than graphs are kept for.
TEST(batches_of_all_sizes_take_turns) {
    const Config config = config_of(Version::k7, 1, 64, 64, 64, 50);
    Reference reference(config, "q4g32", false);
    Gpu gpu(reference);
    const size_t most = 20, v = 50;
    std::vector<State> expected(most, State(config));
    std::vector<std::unique_ptr<GpuState>> states;
    std::vector<rwkv_cuda_state*> batch;
    for (size_t i = 0; i < most; ++i) {
        states.push_back(std::make_unique<GpuState>(gpu));
        batch.push_back(states.back()->state);
    }
    std::vector<float> logits(v), rows(most * v);
    for (int turn = 0; turn < 6; ++turn)
        for (size_t size = 1; size <= most; ++size) {
            std::vector<int32_t> tokens(size, int32_t(size) + turn);
            char reason[256] = "";
            CHECK(rwkv_cuda_forward_batch(gpu.model, tokens.data(), batch.data(), int(size), rows.data(),
                                          reason, sizeof reason) == RWKV_CUDA_OK,
                  "%s", reason);
            for (size_t row = 0; row < size; ++row) {
                reference.cpu->forward({&tokens[row], 1}, expected[row], logits.data(), false, {});
                CHECK(same(&rows[row * v], logits.data(), v), "row %zu of %zu, turn %d", row, size, turn);
            }
        }
}

// Stripes of 256 outputs of which lines are missing: of 4-bit codes the second of two; of 8-bit codes two,
// the last, three and none. More rows than a block has warps, and too few for a device.
TEST(many_rows_of_gathered_products_give_the_bits_of_the_cpu_engine) {
    for (const char* encoding : {"q8g32", "q6g32", "q6g16", "q5g32", "q5g16", "q4g32", "q4g16"}) {
        compare_many_columns(config_of(Version::k7, 1, 72, 8, 200, 50), encoding, {4, 1}, true);
        compare_many_columns(config_of(Version::k7, 1, 272, 8, 420, 50), encoding, {3, 14}, true);
        const Setting order("RWKV_CUDA_EMULATED_ORDER", "reverse");
        compare_many_columns(config_of(Version::k6, 1, 136, 8, 200, 50), encoding, {13}, true);
        const Setting processors("RWKV_CUDA_EMULATED_MULTIPROCESSORS", "64");
        compare_many_columns(config_of(Version::k6, 1, 200, 8, 104, 50), encoding, {5}, true);
    }
}

// As many blocks of 64 columns as a large device asks for before it takes these.
TEST(large_products_give_the_bits_of_the_cpu_engine) {
    const Config config = config_of(Version::k7, 1, 64, 64, 5600, 50);
    std::vector<int32_t> tokens(512);
    for (size_t i = 0; i < tokens.size(); ++i)
        tokens[i] = int32_t(i * i % 50);
    for (const char* encoding : {"q8g32", "q6g32", "q5g32", "q4g32", "q4g16"}) {
        Reference reference(config, encoding, false);
        std::vector<float> expected(50), got(50);
        State state(config);
        reference.cpu->forward(tokens, state, expected.data(), false, {});
        Gpu gpu(reference);
        GpuState whole(gpu);
        feed(gpu, tokens, whole, got.data(), false);
        CHECK(same(got, expected), "%s", encoding);
        CHECK(same(whole.values(), values_of(state)), "%s", encoding);
    }
}

// Rows of which a block norms more than its threads hold, and mixes a part; not in quads either.
TEST(wide_rows_give_the_bits_of_the_cpu_engine) {
    compare_many_columns(config_of(Version::k4, 1, 4224, 0, 32, 20), "q4g32", {2});
    compare_many_columns(config_of(Version::k6, 1, 1090, 10, 32, 20), "q4g32", {3});
}

// The recurrence of a prompt: whole and broken blocks of tokens, both orders, a split.
TEST(scans_give_the_bits_of_the_cpu_engine) {
    for (const Version version : {Version::k5_0, Version::k5_1, Version::k5_2, Version::k6, Version::k7})
        for (const bool reverse : {false, true}) {
            std::optional<Setting> order, processors; // one block a head, or four
            if (reverse) {
                order.emplace("RWKV_CUDA_EMULATED_ORDER", "reverse");
                processors.emplace("RWKV_CUDA_EMULATED_MULTIPROCESSORS", "16");
            }
            compare_many_columns(config_of(version, 2, 192, 64, 192, 50), reverse ? "f32" : "q8g32",
                                 {2, 8, 17});
        }
}
