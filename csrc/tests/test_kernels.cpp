// Every level against float64 on odd shapes, and every level against every other bit for bit.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>

#include "tests/test.h"

using namespace rwkv;
using namespace rwkv::test;
using cpu::Epilogue;
using cpu::KernelTable;
using cpu::Product;

namespace {

constexpr int kRows = 11; // a full register block, and tails of 2 and 1

struct Case {
    const char* encoding;
    const char* layout;
};
constexpr Case kCases[] = {{"f32", "row"},     {"f16", "row"},     {"bf16", "row"},    {"q8g32", "t16x4"},
                           {"q4g32", "t16x4"}, {"q4g16", "t16x4"}, {"q6g32", "t16x4"}, {"q6g16", "t16x4"},
                           {"q8g32", "kn"},    {"q4g32", "kn"},    {"q4g16", "kn"},    {"q6g32", "kn"},
                           {"q6g16", "kn"},    {"q5g32", "t16x4"}, {"q5g16", "t16x4"}, {"q5g32", "kn"},
                           {"q5g16", "kn"}};

/// The product of rows x with m, in `pieces` pieces; with `one_by_one` each row alone.
std::vector<float> run(const KernelTable& op, const Matrix& m, const std::vector<float>& x, int rows,
                       Epilogue epilogue, const std::vector<float>& initial, int pieces, bool one_by_one) {
    std::vector<float> out = initial;
    AlignedBuffer<uint8_t> scratch(cpu::product_scratch_bytes(m, rows));
    const size_t n = size_t(m.n), k = size_t(m.k), together = one_by_one ? 1 : size_t(rows);
    for (size_t t = 0; t < size_t(rows); t += together) {
        const ActsBuffer acts(
            op, std::vector<float>(x.begin() + long(t * k), x.begin() + long((t + together) * k)),
            int(together), m.k);
        const Product p{&m, &acts.acts, epilogue, out.data() + t * n, n, initial.data() + t * n, n, nullptr};
        for (int piece = 0; piece < pieces; ++piece)
            op.product(p, m.units() * piece / pieces, m.units() * (piece + 1) / pieces, int(together),
                       scratch.data());
    }
    return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// How far rounding row x [k] to 16 bits, sixteen active channels at a time, may move output n of a kn
/// product: half a step (the block's largest activation times record scale, at the largest group scale, over
/// kLargestMultiplier) per weight.
double rounding_of_blocks(const RandomMatrix& random, const float* x, int n) {
    const Matrix& m = random.matrix;
    double bound = 0, largest = 0, codes = 0;
    int count = 0;
    for (int k = 0; k <= m.k; ++k) {
        if (count == 16 || k == m.k) {
            bound += 0.5001 * largest * 127 * 127 / double(kLargestMultiplier) * codes;
            largest = codes = count = 0;
        }
        if (k == m.k || x[k] == 0.0f)
            continue;
        float d;
        std::memcpy(&d, m.d + k, 4);
        largest = std::max(largest, std::fabs(double(x[k]) * double(d)));
        codes += std::abs(random.weight(n, k).code);
        ++count;
    }
    return bound;
}

} // namespace

TEST(every_runnable_level_is_tested) {
    int count;
    const char* const* names = cpu::runnable_levels(&count);
    const auto tables = levels();
    for (int i = 0; i < count; ++i) {
        const auto is_it = [&](const KernelTable* op) { return !std::strcmp(op->name, names[i]); };
        CHECK(std::any_of(tables.begin(), tables.end(), is_it), "%s is not", names[i]);
    }
}

TEST(products_match_float64_and_each_other) {
    const auto tables = levels();
    unsigned seed = 1;
    for (const Case& c : kCases)
        for (const int k : {8, 24, 32, 96, 224, 480})
            for (const int n : {1, 16, 47, 128, 200}) {
                const size_t misalign = seed % 2 ? 4 : 0;
                const RandomMatrix random(c.encoding, c.layout, n, k, ++seed, misalign);
                std::vector<float> x = gaussian(size_t(kRows) * size_t(k), ++seed);
                if (std::string(c.layout) == "kn")
                    for (size_t i = 0; i < x.size(); i += 1 + i % 3)
                        x[i] = 0.0f; // like relu^2
                const std::vector<float> initial = gaussian(size_t(kRows) * size_t(n), ++seed);
                std::vector<float> first;
                for (const KernelTable* op : tables) {
                    const ActsBuffer acts(*op, x, kRows, k);
                    const auto y = run(*op, random.matrix, x, kRows, Epilogue::kStore, initial, 1, false);
                    for (int t = 0; t < kRows; ++t)
                        for (int i = 0; i < n; ++i) {
                            double sum = 0, size = 0;
                            for (int j = 0; j < k; ++j) {
                                const double in = random.matrix.wants_quantized()
                                                      ? acts.quantized(t, j)
                                                      : double(x[size_t(t * k + j)]);
                                sum += random.at(i, j) * in;
                                size += std::fabs(random.at(i, j) * in);
                            }
                            // every operation rounds once; at most k / 16 + 8 of them in a chain
                            double bound = (k / 16 + 8) * 6e-8 * size + 1e-30;
                            if (random.matrix.layout == Layout::kKn)
                                bound += rounding_of_blocks(random, &x[size_t(t * k)], i);
                            const double got = y[size_t(t * n + i)];
                            CHECK(std::fabs(got - sum) <= bound, "%s %s %s n=%d k=%d t=%d i=%d: %g, not %g",
                                  op->name, c.encoding, c.layout, n, k, t, i, got, sum);
                        }
                    CHECK(same_bits(y, run(*op, random.matrix, x, kRows, Epilogue::kStore, initial, 3, true)),
                          "%s %s %s n=%d k=%d: one by one differs", op->name, c.encoding, c.layout, n, k);
                    if (first.empty())
                        first = y;
                    CHECK(same_bits(first, y), "%s differs from scalar: %s %s n=%d k=%d", op->name,
                          c.encoding, c.layout, n, k);
                }
            }
}

TEST(many_tokens_meet_chunks_of_channels_as_one_does) {
    unsigned seed = 900;
    for (const char* encoding : {"q8g32", "q4g32", "q4g16", "q6g32", "q6g16", "q5g32", "q5g16"})
        for (const int rows : {2, 11}) {
            const int n = 200, k = 3000; // more channels than a chunk holds
            const RandomMatrix random(encoding, "kn", n, k, ++seed);
            std::vector<float> x = gaussian(size_t(rows) * size_t(k), ++seed);
            for (size_t i = 0; i < x.size(); ++i)
                if (i % 7 != 0 || i / size_t(k) == 1) // the second row uses no channel
                    x[i] = 0.0f;
            const std::vector<float> initial(size_t(rows) * size_t(n), 0.5f);
            for (const KernelTable* op : levels()) {
                const auto alone = run(*op, random.matrix, x, rows, Epilogue::kAdd, initial, 1, true);
                for (const int pieces : {1, 2})
                    CHECK(same_bits(alone,
                                    run(*op, random.matrix, x, rows, Epilogue::kAdd, initial, pieces, false)),
                          "%s %s: %d rows in %d pieces differ", op->name, encoding, rows, pieces);
            }
        }
}

TEST(many_tokens_meet_panels_of_tiles_as_one_does) {
    unsigned seed = 950;
    for (const char* encoding : {"q8g32", "q4g32", "q4g16", "q6g32", "q6g16", "q5g32", "q5g16"})
        for (const int k : {96, 500, 544, 1100})     // one panel, and more with an odd number of groups
            for (int rows = 1; rows <= 24; ++rows) { // all up to two blocks and one more, with little to do
                if (k == 96 ? rows > 17 : rows != 5 && rows != 13 && rows != 24)
                    continue;
                const int n = 112; // the last tile is alone
                const RandomMatrix random(encoding, "t16x4", n, k, ++seed);
                const std::vector<float> x = gaussian(size_t(rows) * size_t(k), ++seed);
                const std::vector<float> initial = gaussian(size_t(rows) * size_t(n), ++seed);
                std::vector<float> first;
                for (const KernelTable* op : levels()) {
                    const auto alone = run(*op, random.matrix, x, rows, Epilogue::kAdd, initial, 1, true);
                    if (first.empty())
                        first = alone;
                    CHECK(same_bits(first, alone), "%s %s k=%d: differs from scalar", op->name, encoding, k);
                    for (const int pieces : {1, 3})
                        CHECK(same_bits(alone, run(*op, random.matrix, x, rows, Epilogue::kAdd, initial,
                                                   pieces, false)),
                              "%s %s k=%d: %d rows in %d pieces differ", op->name, encoding, k, rows, pieces);
                }
            }
}

TEST(epilogues_match_float64) {
    const struct {
        Epilogue epilogue;
        double (*formula)(double y, double old);
    } cases[] = {
        {Epilogue::kTanh, [](double y, double) { return std::tanh(y); }},
        {Epilogue::kSigmoid, [](double y, double) { return 1 / (1 + std::exp(-y)); }},
        {Epilogue::kSilu, [](double y, double) { return y / (1 + std::exp(-y)); }},
        {Epilogue::kRelu2, [](double y, double) { return y > 0 ? y * y : 0; }},
        {Epilogue::kAdd, [](double y, double old) { return old + y; }},
        {Epilogue::kMulAdd, [](double y, double old) { return old + old * y; }},
    };
    const int n = 45, k = 64;
    const RandomMatrix random("f32", "row", n, k, 5);
    const std::vector<float> x = gaussian(size_t(kRows) * k, 6, 0.3f),
                             initial = gaussian(size_t(kRows) * n, 7);
    for (const auto& c : cases) {
        std::vector<float> first;
        for (const KernelTable* op : levels()) {
            const auto plain = run(*op, random.matrix, x, kRows, Epilogue::kStore, initial, 1, false);
            const auto y = run(*op, random.matrix, x, kRows, c.epilogue, initial, 2, false);
            for (size_t i = 0; i < y.size(); ++i) {
                const double want = c.formula(plain[i], initial[i]);
                CHECK(std::fabs(y[i] - want) <= 4e-7 * (std::fabs(want) + 1), "%s %d: %g, not %g", op->name,
                      int(c.epilogue), double(y[i]), want);
            }
            if (first.empty())
                first = y;
            CHECK(same_bits(first, y), "%s differs from scalar in epilogue %d", op->name, int(c.epilogue));
        }
    }
}

TEST(activations_survive_extremes) {
    for (const KernelTable* op : levels()) {
        std::vector<float> x(96, 0.0f);
        x[0] = 1e-38f; // a group whose reciprocal would overflow
        x[33] = 3e38f; // the largest magnitudes
        x[34] = -3e38f;
        for (int i = 64; i < 96; ++i)
            x[size_t(i)] = i % 2 ? 0.5f : -127.0f;
        const ActsBuffer acts(*op, x, 1, 96);
        CHECK(acts.quantized(0, 0) == 0.0, "%s", op->name);
        CHECK(acts.code(0, 33) == 127 && acts.code(0, 34) == -127, "%s", op->name);
        CHECK(acts.quantized(0, 64) == -127.0, "%s", op->name);
        CHECK(acts.code(0, 65) == 0, "%s: ties go to even", op->name); // 0.5 in steps of 1
    }
}

namespace {

bool same_acts(const ActsBuffer& a, const ActsBuffer& b) {
    const auto same = [](const auto& x, const auto& y) {
        return !std::memcmp(x.data(), y.data(), x.size() * sizeof(*x.data()));
    };
    return same(a.f, b.f) && same(a.q, b.q) && same(a.split, b.split) && same(a.scale, b.scale) &&
           same(a.bias_q8, b.bias_q8) && same(a.bias_q4, b.bias_q4);
}

} // namespace

TEST(rows_are_handed_over_at_once_as_one_by_one) {
    constexpr int kAll = 24, kStride = 300; // whole blocks on every level, so that all bytes are settled
    const float nan = std::nanf(""), infinite = std::numeric_limits<float>::infinity();
    for (const KernelTable* op : levels())
        for (const int k : {32, 96, 200})
            for (const float odd : {0.0f, 1e-38f, 3e38f, infinite, nan})
                for (const bool floats : {false, true}) {
                    const std::vector<float> first = gaussian(size_t(kAll) * size_t(k), 3);
                    std::vector<float> x = gaussian(kAll * kStride, 4);
                    const std::vector<float> past = gaussian(kAll * kStride, 5), mix = gaussian(size_t(k), 6);
                    x[9 * kStride + 17] = odd;
                    std::fill_n(x.data() + 12 * kStride, kStride, odd);
                    for (const auto& [begin, count] : {std::pair(0, kAll), {8, 8}, {3, 18}, {5, 1}}) {
                        ActsBuffer once(*op, first, kAll, k), each(*op, first, kAll, k);
                        if (!floats)
                            once.acts.f = each.acts.f = nullptr;
                        const float* rows = x.data() + begin * kStride;
                        op->set_acts(rows, kStride, begin, count, 0, k, once.acts);
                        for (int t = 0; t < count; ++t)
                            op->set_acts(rows + t * kStride, 0, begin + t, 1, 0, k, each.acts);
                        CHECK(same_acts(once, each), "%s k=%d %g: rows %d and %d more", op->name, k,
                              double(odd), begin, count);

                        std::vector<cpu::Shifted> shifted;
                        for (int t = 0; t < count; ++t) {
                            const float *now = rows + t * kStride, *before = past.data() + t * kStride;
                            shifted.push_back({now, before});
                            std::vector<float> mixed(static_cast<size_t>(k));
                            for (size_t i = 0; i < mixed.size(); ++i)
                                mixed[i] = std::fma(before[i] - now[i], mix[i], now[i]);
                            op->set_acts(mixed.data(), 0, begin + t, 1, 0, k, each.acts);
                        }
                        op->shift_acts(shifted.data(), count, mix.data(), k, begin, once.acts);
                        CHECK(same_acts(once, each), "%s k=%d %g: shifted rows %d and %d more", op->name, k,
                              double(odd), begin, count);
                    }
                }
}

TEST(a_number_that_is_none_stays_none) {
    const float nan = std::nanf(""), infinite = std::numeric_limits<float>::infinity();
    const int n = 45, k = 64;
    for (const KernelTable* op : levels()) {
        for (const Case& c : kCases)
            for (const float bad : {nan, infinite})
                for (const size_t at : {size_t(3), size_t(19), size_t(40)}) {
                    const RandomMatrix random(c.encoding, c.layout, n, k, 5);
                    std::vector<float> x = gaussian(k, 6);
                    x[at] = bad;
                    const auto y =
                        run(*op, random.matrix, x, 1, Epilogue::kRelu2, std::vector<float>(n), 1, false);
                    for (const float value : y)
                        CHECK(!(std::fabs(value) < infinite) ||
                                  (c.layout[0] == 'r' && value == 0.0f && bad == infinite),
                              "%s %s %s: %g out of %g", op->name, c.encoding, c.layout, double(value),
                              double(bad));
                }
        std::vector<float> x(20, nan);
        op->exp(x.data(), 20);
        CHECK(x[0] != x[0] && x[19] != x[19], "%s: exp", op->name);
    }
}

TEST(no_group_of_activations_hides_a_nan) {
    // where a level's search for the largest passes a NaN over, it may lose large values with it
    constexpr int k = kActGroup;
    for (const KernelTable* op : levels())
        for (const int rows : {1, 8})
            for (int bad = 0; bad < k; ++bad) {
                std::vector<float> x(size_t(rows) * k, 1e-7f);
                for (size_t i = 0; i < x.size(); i += 4)
                    x[i] = 1.0f;
                x[size_t(bad)] = std::nanf("");
                ActsBuffer acts(*op, x, rows, k);
                acts.acts.f = nullptr; // only integers are handed over at once
                op->set_acts(x.data(), k, 0, rows, 0, k, acts.acts);
                CHECK(std::isnan(acts.acts.scale[0]), "%s: of %d rows, at %d", op->name, rows, bad);
            }
}

TEST(embedding_rows_decode) {
    const Case cases[] = {{"f32", "row"},   {"f16", "row"},   {"bf16", "row"},  {"q8g32", "row"},
                          {"q4g32", "row"}, {"q4g16", "row"}, {"q6g32", "row"}, {"q6g16", "row"},
                          {"q5g32", "row"}, {"q5g16", "row"}};
    for (const Case& c : cases)
        for (const int k : {8, 24, 64, 224}) {
            const RandomMatrix random(c.encoding, c.layout, 5, k, unsigned(k));
            for (const KernelTable* op : levels())
                for (int row = 0; row < 5; ++row) {
                    std::vector<float> out(size_t(k), -1.0f);
                    op->embedding_row(random.matrix, row, out.data());
                    for (int i = 0; i < k; ++i) {
                        const double want = random.at(row, i);
                        CHECK(std::fabs(out[size_t(i)] - want) <= 2e-7 * std::fabs(want), "%s %s", op->name,
                              c.encoding);
                    }
                }
        }
}

TEST(layer_norms_of_whole_rows_are_equal_on_all_levels) {
    for (const int n : {16, 120, 128, 136, 300, 2048}) { // around the 128 chains of their sums
        const auto x = gaussian(size_t(n), 1), weight = gaussian(size_t(n), 2), bias = gaussian(size_t(n), 3);
        std::vector<std::vector<float>> results;
        for (const KernelTable* op : levels()) {
            results.emplace_back(size_t(n), 0.0f);
            op->layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, n, results.back().data());
            CHECK(results.back() == results.front(), "%s: %d values", op->name, n);
        }
        double mean = 0, variance = 0, size = 0;
        for (const float v : x)
            mean += v / n, size += std::fabs(v) / n;
        for (const float v : x)
            variance += (v - mean) * (v - mean) / n;
        // A sum rounds once for each 128 values, in seven folds and a division; so do mean and variance. The
        // root, its reciprocal and the centred square round too, and a wrong mean moves all values.
        const double u = 0x1p-24, sum = (std::ceil(n / 128.0) + 8) * u,
                     deviation = std::sqrt(variance + 1e-5);
        const double moved = sum * size / deviation, scale = (sum + 3 * u) / 2 + moved + 2 * u;
        for (size_t i = 0; i < size_t(n); ++i) {
            const double unit = (x[i] - mean) / deviation, want = unit * weight[i] + bias[i];
            const double bound =
                std::fabs(weight[i]) * (moved + std::fabs(unit) * (scale + 2 * u)) + u * std::fabs(want);
            CHECK(std::fabs(results.front()[i] - want) <= bound, "%d values", n);
        }
    }
}

TEST(norms_and_recurrences_are_equal_on_all_levels) {
    const auto tables = levels();
    for (const int n : {8, 24, 64, 80}) {
        const int rows = 5, stride = n + 3;
        std::vector<std::vector<float>> results;
        for (const KernelTable* op : tables) {
            std::vector<float> result;
            const auto x = gaussian(size_t(n), 1), weight = gaussian(size_t(n), 2),
                       bias = gaussian(size_t(n), 3);
            std::vector<float> y(size_t(n), 0.0f);
            op->layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, n, y.data());
            double mean = 0, variance = 0;
            for (const float v : x)
                mean += v / n;
            for (const float v : x)
                variance += (v - mean) * (v - mean) / n;
            for (int i = 0; i < n; ++i) {
                const size_t at = size_t(i);
                const double want = (x[at] - mean) / std::sqrt(variance + 1e-5) * weight[at] + bias[at];
                CHECK(std::fabs(y[at] - want) < 1e-5, "%s layer norm", op->name);
            }
            result.insert(result.end(), y.begin(), y.end());

            const size_t count = size_t(rows * stride);
            const auto r = gaussian(count, 4), v = gaussian(count, 6);
            auto k = gaussian(count, 5), w = gaussian(count, 7), a = gaussian(count, 8);
            std::vector<float> b(count), out(count), vv = v;
            const auto vec = gaussian(size_t(n), 9);
            AlignedBuffer<float> state(size_t(n) * size_t(cpu::state_stride(n)));
            for (int t = 0; t < rows; ++t) {
                const size_t at = size_t(t * stride);
                op->prepare7(&k[at], &w[at], &a[at], &b[at], &vv[at], &r[at], t ? &r[at] : nullptr,
                             vec.data(), vec.data(), vec.data(), weight.data(), bias.data(), n);
            }
            op->wkv7(r.data(), k.data(), vv.data(), w.data(), a.data(), b.data(), state.data(), out.data(),
                     size_t(stride), rows, n);
            for (int t = 0; t < rows; ++t) {
                const size_t at = size_t(t * stride);
                op->finish7(&out[at], &r[at], &k[at], &vv[at], vec.data(), weight.data(), bias.data(), &v[at],
                            64e-5f, n);
            }
            result.insert(result.end(), out.begin(), out.end());
            result.insert(result.end(), state.data(), state.data() + state.size());

            op->exp_neg_exp(w.data(), int(count));
            op->wkv5(r.data(), k.data(), v.data(), w.data(), size_t(stride), vec.data(), state.data(),
                     out.data(), size_t(stride), rows, n);
            for (int t = 0; t < rows; ++t)
                op->finish5(&out[size_t(t * stride)], weight.data(), bias.data(),
                            t % 2 ? &v[size_t(t * stride)] : nullptr, 64e-5f, n);
            result.insert(result.end(), out.begin(), out.end());

            const size_t width = size_t(n);
            std::vector<float> aa(width), bb(width), pp(width, -1e30f), decay(width, -0.3f);
            op->wkv4(r.data(), k.data(), v.data(), decay.data(), vec.data(), aa.data(), bb.data(), pp.data(),
                     out.data(), size_t(stride), rows, 0, n);
            result.insert(result.end(), out.begin(), out.end());
            result.insert(result.end(), aa.begin(), aa.end());
            for (const float value : result)
                CHECK(std::isfinite(value), "%s", op->name);
            results.push_back(result);
        }
        for (size_t i = 1; i < results.size(); ++i)
            CHECK(same_bits(results[0], results[i]), "%s differs from scalar, n=%d", tables[i]->name, n);
    }
}

TEST(softmax_passes_are_accurate_and_equal_on_all_levels) {
    constexpr size_t kBlock = cpu::kSoftmaxBlock;
    for (const int n : {1, 15, 16, 17, 79, 127, 128, 129, 300, 1000}) {
        for (const float temperature : {1.0f, 0.3f}) {
            const size_t count = size_t(n), blocks = (count + kBlock - 1) / kBlock;
            std::vector<float> logits = gaussian(count, unsigned(n), 20.0f);
            logits[count / 2] = -INFINITY;
            logits[count - 1] = 70.0f;
            std::vector<std::vector<float>> results;
            for (const KernelTable* op : levels()) {
                const float top = op->largest(logits.data(), n);
                CHECK(top == *std::max_element(logits.begin(), logits.end()), "%s n=%d", op->name, n);
                std::vector<float> weights(blocks * kBlock, 9.0f), maxima(blocks), sums(blocks);
                std::vector<float> surprises(blocks);
                op->softmax_weights(logits.data(), n, top, temperature, weights.data(), maxima.data(),
                                    sums.data());
                op->softmax_surprise(logits.data(), n, top, temperature, weights.data(), surprises.data());
                for (size_t b = 0; b < blocks; ++b) {
                    double sum = 0, surprise = 0;
                    float largest = 0;
                    for (size_t i = b * kBlock; i < (b + 1) * kBlock; ++i) {
                        const float x = i < count ? (logits[i] - top) / temperature : -INFINITY;
                        const double want = x < -87.33f ? 0.0 : std::exp(double(x));
                        CHECK(std::fabs(double(weights[i]) - want) <= 2.5e-7 * want, "%s n=%d weight %zu",
                              op->name, n, i);
                        largest = std::max(largest, weights[i]);
                        sum += double(weights[i]);
                        surprise += double(weights[i]) * std::max(-87.33, double(x));
                    }
                    CHECK(maxima[b] == largest, "%s n=%d", op->name, n);
                    CHECK(std::fabs(double(sums[b]) - sum) <= 1e-6 * sum, "%s n=%d", op->name, n);
                    CHECK(std::fabs(double(surprises[b]) - surprise) <= -1e-6 * surprise, "%s n=%d", op->name,
                          n);
                }
                weights.insert(weights.end(), sums.begin(), sums.end());
                weights.insert(weights.end(), surprises.begin(), surprises.end());
                results.push_back(weights);

                const float before = std::exchange(logits[count / 3], NAN);
                op->softmax_weights(logits.data(), n, 1.0f, temperature, weights.data(), maxima.data(),
                                    sums.data());
                CHECK(std::isnan(sums[count / 3 / kBlock]), "%s n=%d", op->name, n);
                logits[count / 3] = before;
            }
            for (size_t i = 1; i < results.size(); ++i)
                CHECK(same_bits(results[0], results[i]), "%s differs, n=%d", levels()[i]->name, n);
        }
    }
}

TEST(exp_is_accurate_and_ends_in_zero) {
    for (const KernelTable* op : levels()) {
        std::vector<float> x;
        for (float v = -87.0f; v < 88.0f; v += 0.0371f)
            x.push_back(v);
        std::vector<float> y = x;
        op->exp(y.data(), int(y.size()));
        for (size_t i = 0; i < x.size(); ++i) {
            const double want = std::exp(double(x[i]));
            CHECK(std::fabs(y[i] - want) <= 2.5e-7 * want, "%s exp(%g)", op->name, double(x[i]));
        }
        float ends[4] = {-1e30f, -88.0f, 0.0f, 1e4f};
        op->exp(ends, 4);
        CHECK(ends[0] == 0.0f && ends[1] == 0.0f && ends[2] == 1.0f && std::isfinite(ends[3]), "%s",
              op->name);
    }
}
