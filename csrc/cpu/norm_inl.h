// Layer norm, token shift, and the hand-over of activations to integer products.
#pragma once

#include "cpu/kernels.h"

namespace rwkv::cpu {
namespace {

/// The sum of value(i) over vectors of sixteen, in kChains of them taken in turns, folded by halves: short
/// chains for a GPU's lanes, independent ones for a CPU's units.
template <int kChains, class F>
inline float chained_sum(int n, F value) {
    vf sums[kChains];
    for (int j = 0; j < kChains; ++j)
        sums[j] = zero();
    for (int i = 0; i < n; i += 16 * kChains)
        for (int j = 0; j < kChains && i + 16 * j < n; ++j)
            sums[j] = value(sums[j], i + 16 * j);
    for (int width = kChains / 2; width >= 1; width /= 2)
        for (int j = 0; j < width; ++j)
            sums[j] = add(sums[j], sums[j + width]);
    return reduce_add(sums[0]);
}

/// (x - mean) / sqrt(var + eps) over n values, then times weight plus bias. Two passes, population variance.
template <int kChains>
inline void normalize(const float* x, const float* weight, const float* bias, float eps, int n, float* y) {
    const auto total = [=](vf sum, int i) { return add(sum, load_n(x + i, lanes(i, n))); };
    const vf mean = set(chained_sum<kChains>(n, total) / float(n));
    const float ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const auto squares = [&](vf sum, int i) {
        const int count = lanes(i, n);
        const vf centred = mul(sub(load_n(x + i, count), mean), load_n(ones, count));
        return fma(centred, centred, sum);
    };
    const vf scale = set(1.0f / sqrtf(chained_sum<kChains>(n, squares) / float(n) + eps));
    for (int i = 0; i < n; i += 16) {
        const int count = lanes(i, n);
        const vf unit = mul(sub(load_n(x + i, count), mean), scale);
        store_n(y + i, fma(unit, load_n(weight + i, count), load_n(bias + i, count)), count);
    }
}

constexpr int kRowChains = 8; ///< of a whole row; a head has one

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int n, float* y) {
    normalize<kRowChains>(x, weight, bias, eps, n, y);
}

void shift_mix_delta(const float* x, const float* prev, const float* mix, const float* delta, int n,
                     float* out) {
    for (int i = 0; i < n; i += 16) {
        const int count = lanes(i, n);
        const vf now = load_n(x + i, count), weight = add(load_n(mix + i, count), load_n(delta + i, count));
        store_n(out + i, fma(sub(load_n(prev + i, count), now), weight, now), count);
    }
}

/// Below this a group of activations counts as zero (127 / max would overflow long before it matters).
constexpr float kTiny = 1e-30f;

/// The codes of one row's group as they stand in the interleaved form, four side by side.
inline void store_quads(int8_t* to, size_t stride, const int8_t* codes) {
    for (size_t j = 0; j < kActGroup / 4; ++j)
        memcpy(to + j * stride, codes + 4 * j, 4);
}

/// The same in Acts::split. Returns the sum of the magnitudes of what is negative.
inline int32_t store_split(int8_t* to, size_t stride, const int8_t* codes) {
    int8_t magnitudes[kActGroup], turns[kActGroup];
    int32_t negative = 0;
    for (int i = 0; i < kActGroup; ++i) {
        magnitudes[i] = int8_t(codes[i] < 0 ? -codes[i] : codes[i]);
        turns[i] = int8_t(codes[i] < 0 ? 127 : -128);
        negative -= codes[i] < 0 ? codes[i] : 0;
    }
    store_quads(to, stride, magnitudes);
    store_quads(to + 4, stride, turns);
    return negative;
}

/// Channels [c, c + count) of row `t`, at most a group.
inline void set_group(const float* x, int t, int c, int count, Acts& acts) {
    const size_t width = size_t(acts.width), lane = size_t(t) % width;
    const size_t block = size_t(t) / width * width * size_t(acts.k_pad); // first code of this row's block
    const vf low = load_n(x, count < 16 ? count : 16), high = load_n(x + 16, count < 16 ? 0 : count - 16);
    if (acts.f) {
        float* f = acts.f + size_t(t) * size_t(acts.k_pad) + c;
        store(f, low);
        store(f + 16, high);
    }
    if (!acts.q)
        return;
    const float largest = reduce_max(max(abs(low), abs(high)));
    const bool used = largest > kTiny;
    const vf inverse = set(used ? 127.0f / largest : 0.0f);
    const vi a = round_int(mul(low, inverse)), b = round_int(mul(high, inverse));
    const size_t group = block / kActGroup + size_t(c / kActGroup) * width + lane;
    int8_t codes[kActGroup];
    store_i8(codes, a);
    store_i8(codes + 16, b);
    store_quads(acts.q + block + size_t(c) * width + 4 * lane, 4 * width, codes);
    // beside a NaN, which may have hidden the largest, codes mean nothing; an infinity less itself is one
    const bool numbers = nonzero_mask(add(sub(low, low), sub(high, high))) == 0;
    const int32_t sum_a = numbers ? int32_t(reduce_add(to_float(a))) : 0,
                  sum_b = numbers ? int32_t(reduce_add(to_float(b))) : 0;
    acts.scale[group] = !numbers ? NAN : used ? largest / 127.0f : 0.0f;
    const size_t half = block / 16 + size_t(c / 16) * width + lane;
    acts.bias_q4[half] = -kQ4Zero * sum_a;
    acts.bias_q4[half + width] = -kQ4Zero * sum_b;
    acts.bias_q8[group] = -kQ8Zero * (sum_a + sum_b);
    if (kSplitsSigns && acts.split && width > 1)
        acts.bias_q8[group] =
            store_split(acts.split + 2 * (block + size_t(c) * width + 4 * lane), 8 * width, codes);
}

/// The same of `rows` rows, `stride` floats apart, that lie in one block: at once where a level can.
inline void set_groups(const float* x, size_t stride, int t, int rows, int c, int count, Acts& acts) {
    const size_t code = size_t(t) * size_t(acts.k_pad) + size_t(c) * kMaxTokens, group = code / kActGroup;
    if (rows == kMaxTokens && acts.width == kMaxTokens && count == kActGroup && acts.q && !acts.f &&
        quantize_block(x, stride, kTiny, acts.q + code, acts.scale + group, acts.bias_q8 + group,
                       acts.bias_q4 + 2 * group))
        return;
    for (int row = 0; row < rows; ++row)
        set_group(x + size_t(row) * stride, t + row, c, count, acts);
}

/// f(t, rows) for [t, t + rows) of [begin, begin + count), cut where blocks begin.
template <class F>
inline void each_block(int begin, int count, F f) {
    for (int t = begin, end = begin + count; t < end;) {
        const int left = kMaxTokens - t % kMaxTokens, rows = end - t < left ? end - t : left;
        f(t, rows);
        t += rows;
    }
}

void set_acts(const float* x, size_t stride, int t0, int count, int begin, int end, Acts& acts) {
    each_block(t0, count, [&](int t, int rows) {
        const float* first = x + size_t(t - t0) * stride;
        for (int c = begin; c < end; c += kActGroup)
            set_groups(first + (c - begin), stride, t, rows, c, end - c < kActGroup ? end - c : kActGroup,
                       acts);
    });
}

void shift_acts(const Shifted* shifted, int count, const float* mix, int n, int t0, Acts& acts) {
    each_block(t0, count, [&](int t, int rows) {
        const Shifted* block = shifted + (t - t0);
        for (int c = 0; c < n; c += kActGroup) {
            const int low = lanes(c, n), high = low < 16 ? 0 : lanes(c + 16, n);
            const vf first = load_n(mix + c, low), second = load_n(mix + c + 16, high);
            float mixed[kMaxTokens * kActGroup];
            for (int row = 0; row < rows; ++row) {
                const float *now = block[row].now + c, *previous = block[row].previous + c;
                const auto blend = [&](int i, vf weight, int lanes) {
                    const vf x = load_n(now + i, lanes);
                    store(mixed + row * kActGroup + i, fma(sub(load_n(previous + i, lanes), x), weight, x));
                };
                blend(0, first, low);
                blend(16, second, high);
            }
            set_groups(mixed, kActGroup, t, rows, c, low + high, acts);
        }
    });
}

} // namespace
} // namespace rwkv::cpu
