// Scores, sampler, penalties and World tokenizer, at sizes that leave tails, for the sanitizers and for every
// level; the Python tests compare each of them with twins in more depth.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "core/check.h"
#include "tests/test.h"
#include "text/penalties.h"
#include "text/philox.h"
#include "text/sampler.h"
#include "text/score.h"
#include "text/world_tokenizer.h"

using namespace rwkv;
using namespace rwkv::test;

namespace {

constexpr size_t kVocabularies[] = {1, 2, 7, 8, 9, 255, 256, 1000, 50277};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class F>
bool throws(Fault fault, F&& f) {
    try {
        f();
    } catch (const Error& error) {
        return error.fault() == fault;
    }
    return false;
}

/// ln softmax(row), in the widest type there is.
std::vector<long double> log_softmax(std::span<const float> row) {
    const long double top = *std::max_element(row.begin(), row.end());
    long double sum = 0;
    for (const float x : row)
        sum += std::exp((long double)x - top);
    std::vector<long double> result;
    for (const float x : row)
        result.push_back((long double)x - top - std::log(sum));
    return result;
}

/// The World vocabulary's layout, of all single bytes and `longer`.
std::string vocabulary(const std::vector<std::string>& longer) {
    std::string lengths, bytes;
    for (int byte = 0; byte < 256; byte++) {
        lengths += '\1';
        bytes += char(byte);
    }
    for (const std::string& entry : longer) {
        lengths += char(entry.size());
        bytes += entry;
    }
    const auto little = [](uint64_t value, int size) {
        std::string text;
        for (int i = 0; i < size; i++)
            text += char(value >> (8 * i) & 255);
        return text;
    };
    uint64_t hash = 0xcbf29ce484222325;
    for (const char c : lengths + bytes)
        hash = (hash ^ uint8_t(c)) * 0x100000001b3;
    return "RWKVVOC\1" + little(lengths.size(), 4) + little(bytes.size(), 4) + little(hash, 8) + lengths +
           bytes;
}

} // namespace

TEST(scores_are_logarithms_of_the_softmax) {
    for (const size_t vocab : kVocabularies) {
        const size_t rows = 3;
        const std::vector<float> logits = gaussian(rows * vocab, unsigned(vocab), 4);
        const std::vector<int32_t> targets = {0, int32_t(vocab / 2), int32_t(vocab - 1)};
        std::vector<double> log_probs(rows);
        std::vector<int32_t> tops(rows);
        score(logits, targets, log_probs, tops);
        for (size_t t = 0; t < rows; t++) {
            const auto row = std::span(logits).subspan(t * vocab, vocab);
            const double want = double(log_softmax(row)[size_t(targets[t])]);
            CHECK(std::abs(log_probs[t] - want) <= 1e-13 * std::max(1.0, std::abs(want)),
                  "vocab %zu: %.17g, %.17g", vocab, log_probs[t], want);
            CHECK(tops[t] == std::max_element(row.begin(), row.end()) - row.begin());
        }
    }
    std::vector<double> one(1);
    std::vector<int32_t> top(1);
    const auto scored = [&](std::vector<float> row, int32_t target) {
        score(row, std::vector<int32_t>{target}, one, top);
    };
    CHECK(throws(Fault::kArgument, [&] { scored({1, 2}, 2); }));
    CHECK(throws(Fault::kArgument, [&] { scored({1, 2}, -1); }));
    CHECK(throws(Fault::kFormat, [&] { scored({1, std::nanf("")}, 0); }));
    CHECK(throws(Fault::kFormat, [&] { scored({1, kInfinity}, 0); }));
    CHECK(throws(Fault::kFormat, [&] { scored({-kInfinity, -kInfinity}, 0); }));
}

TEST(divergences_are_those_of_the_definition) {
    for (const size_t vocab : kVocabularies) {
        const std::vector<float> base = gaussian(vocab, unsigned(vocab), 3);
        std::vector<float> other = gaussian(vocab, unsigned(vocab) + 1, 0.3f);
        for (size_t i = 0; i < vocab; i++)
            other[i] += base[i];
        const auto p = log_softmax(base), q = log_softmax(other);
        long double want = 0;
        for (size_t i = 0; i < vocab; i++)
            want += std::exp(p[i]) * (p[i] - q[i]);
        std::vector<double> found(1);
        divergence(base, other, found);
        CHECK(std::abs(found[0] - double(want)) <= 1e-13, "vocab %zu: %.17g, %.17g", vocab, found[0],
              double(want));
        divergence(base, base, found);
        CHECK(found[0] == 0);
        other[0] = std::nanf("");
        CHECK(throws(Fault::kFormat, [&] { divergence(base, other, found); }));
    }
}

TEST(sampling_draws_the_same_token_on_all_levels) {
    const SamplingOptions choices[] = {
        {},
        {.temperature = 0.7f, .top_p = 0.9},
        {.top_k = 3, .min_p = 0.01},
        {.temperature = 1.4f, .top_k = 40, .top_p = 0.8, .typical = 0.9, .temperature_first = true},
    };
    const double draws[] = {0, 0.25, 0.5, 0.999999};
    for (const size_t vocab : kVocabularies)
        for (const float scale : {0.0f, 1.0f, 20.0f}) { // equal, flat, peaked
            std::vector<float> logits = gaussian(vocab, unsigned(vocab) + 7, scale);
            if (vocab > 2)
                logits[vocab / 3] = -kInfinity;
            for (const SamplingOptions& options : choices)
                for (const double draw : draws) {
                    int32_t first = -1;
                    for (const cpu::KernelTable* op : levels()) {
                        const int32_t token = Sampler(*op).sample(logits, options, draw);
                        first = first < 0 ? token : first;
                        CHECK(token == first, "%s, vocab %zu, draw %g: %d, not %d", op->name, vocab, draw,
                              token, first);
                        CHECK(token >= 0 && size_t(token) < vocab && logits[size_t(token)] > -kInfinity);
                    }
                }
        }
}

TEST(sampling_without_cuts_inverts_the_distribution) {
    const size_t vocab = 1000;
    const std::vector<float> logits = gaussian(vocab, 3, 2);
    const auto p = log_softmax(logits);
    for (const cpu::KernelTable* op : levels()) {
        Sampler sampler(*op);
        for (uint64_t index = 0; index < 200; index++) {
            const double draw = uniform(5, index);
            const auto token = size_t(sampler.sample(logits, {}, draw));
            long double below = 0;
            for (size_t i = 0; i < token; i++)
                below += std::exp(p[i]);
            CHECK(below <= draw + 1e-5 && draw - 1e-5 <= below + std::exp(p[token]), "%s, draw %g: %zu",
                  op->name, draw, token);
        }
        CHECK(throws(Fault::kFormat, [&] { sampler.sample({}, {}, 0); }));
        CHECK(throws(Fault::kFormat, [&] { sampler.sample(std::vector<float>{0, std::nanf("")}, {}, 0); }));
        CHECK(throws(Fault::kFormat, [&] { sampler.sample(std::vector<float>{0, kInfinity}, {}, 0); }));
        CHECK(throws(Fault::kFormat, [&] { sampler.sample(std::vector<float>{-kInfinity}, {}, 0); }));
    }
}

TEST(penalties_decay_and_come_back) {
    const PenaltyOptions options{.presence = 0.5f, .frequency = 0.25f, .repetition = 2, .decay = 0.5};
    Penalties penalties(options);
    penalties.observe(4, 1);
    penalties.observe(1, 1);
    penalties.observe(4, 1); // counts: 4: 1.25, 1: 0.5
    Penalties restored(options);
    restored.restore(penalties.counts());
    for (const Penalties* each : {&penalties, &restored}) {
        std::vector<float> logits = {1, 2, 3, 4, -1};
        each->apply(logits);
        CHECK((logits == std::vector<float>{1, 1 - 0.5f - 0.125f, 3, 4, -2 - 0.5f - 0.3125f}));
    }
    CHECK(throws(Fault::kArgument, [&] { restored.restore({{-1, 1.0}}); }));
    CHECK(throws(Fault::kArgument, [&] { restored.restore({{3, 1.0}, {3, 1.0}}); }));
}

TEST(world_tokens_are_the_longest_matches) {
    const std::vector<std::string> longer = {"ab",           "abab", "ababc", "bc", std::string(255, 'x'),
                                             "\xe4\xbd\xa0", "\n\n"};
    const WorldTokenizer tokenizer(vocabulary(longer));
    CHECK(tokenizer.vocab_size() == 257 + longer.size());
    std::map<std::string, int32_t> ids;
    for (int32_t id = 1; id < int32_t(tokenizer.vocab_size()); id++)
        ids[std::string(tokenizer.token_bytes(id))] = id;
    std::mt19937 generator(1);
    const std::string parts[] = {
        "ab", "abab", "c", "x", std::string(254, 'x'), "\xe4\xbd", "\xa0", "\n", std::string(1, '\0')};
    for (int round = 0; round < 300; round++) {
        std::string text;
        for (int i = 0; i < 12; i++)
            text += parts[generator() % std::size(parts)];
        std::vector<int32_t> want;
        for (size_t at = 0; at < text.size();) {
            size_t size = std::min<size_t>(255, text.size() - at);
            while (!ids.count(text.substr(at, size)))
                size--;
            want.push_back(ids[text.substr(at, size)]);
            at += size;
        }
        const std::vector<int32_t> found = tokenizer.encode(text);
        CHECK(found == want);
        CHECK(tokenizer.decode(std::vector<int64_t>(found.begin(), found.end())) == text);
    }
    CHECK(tokenizer.encode("").empty());
    CHECK(throws(Fault::kArgument, [&] { tokenizer.token_bytes(int64_t(tokenizer.vocab_size())); }));
    CHECK(throws(Fault::kArgument, [&] { tokenizer.token_bytes(-1); }));
    const std::string blob = vocabulary(longer);
    for (size_t size = 0; size < blob.size(); size += 13)
        CHECK(throws(Fault::kFormat, [&] { WorldTokenizer{std::string_view(blob).substr(0, size)}; }));
    for (size_t at = 0; at < blob.size(); at += 3) {
        std::string damaged = blob;
        damaged[at] ^= 0x10;
        CHECK(throws(Fault::kFormat, [&] { WorldTokenizer{damaged}; }), "byte %zu", at);
    }
}
