// Products with ffn.value stored by input channel (layout "kn"): channels whose relu^2 activation is zero are
// never read. Every output is summed over the active channels in ascending order.
#pragma once

#include "cpu/kernels.h"

namespace rwkv::cpu {
namespace {

constexpr int kSparseTokens = 16; // tokens that share one pass over the channels
constexpr int kRowsAtOnce = 4;    // channels added per pass over the outputs of one token
constexpr int kRowsAhead = 8;     // channels prefetched ahead

/// scales[g] = s|s| * activation for groups [begin, end) of one record's scale bytes, begin a multiple of 16
inline void record_scales(const uint8_t* s, int begin, int end, float activation, float* scales) {
    s += begin;
    for (int g = 0; g < end - begin;
         g += 16) // scales begin 64-byte aligned and are padded: whole vectors can be read
        store(scales + g, mul(square_law(load_i8(reinterpret_cast<const int8_t*>(s) + g)), set(activation)));
}

/// y[0..kOutputs) += code values of `count` records' lines, each times its scales
template <int kOutputs, int kGroup>
void add_line(const uint8_t* const* lines, int count, vf table, const float* const* scales, float* y) {
    constexpr int kVectors = kOutputs / 16;
    vf sum[kVectors];
    for (int i = 0; i < kVectors; ++i)
        sum[i] = load(y + 16 * i);
    for (int r = 0; r < count; ++r) {
        const vi words = load_words(lines[r]);
        const float* scale = scales[r];
        const auto lane = [&]<int I>() {
            vf value;
            if constexpr (kOutputs == 128)
                value = lookup(table, nibble<I>(words));
            else
                value = to_float(isub(byte<I>(words), iset(kQ8Zero)));
            sum[I] = fma(value, set(scale[16 * I / kGroup]), sum[I]);
        };
        lane.template operator()<0>();
        lane.template operator()<1>();
        lane.template operator()<2>();
        lane.template operator()<3>();
        if constexpr (kVectors == 8) {
            lane.template operator()<4>();
            lane.template operator()<5>();
            lane.template operator()<6>();
            lane.template operator()<7>();
        }
    }
    for (int i = 0; i < kVectors; ++i)
        store(y + 16 * i, sum[i]);
}

/// Lines [begin, end) for tokens [t0, t0 + tokens): y[t] has (end - begin) * kOutputs floats.
template <int kOutputs, int kGroup>
void sparse_lines(const Matrix& w, int begin, int end, const Acts& x, int t0, int tokens, uint8_t* scratch) {
    const int width = (end - begin) * kOutputs, line_groups = kOutputs / kGroup;
    float* y = reinterpret_cast<float*>(scratch);
    const int group_room = (w.n_pad / kGroup + 31) / 16 * 16;
    float* scales = y + size_t(kSparseTokens) * size_t(w.n_pad);
    int32_t* active = reinterpret_cast<int32_t*>(scales + size_t(kRowsAtOnce) * size_t(group_room));
    const uint8_t* first_scale = w.q + w.n_pad / (kOutputs == 128 ? 2 : 1);
    const int group_begin = begin * line_groups / 16 * 16, group_end = end * line_groups;
    vf table = zero();
    if constexpr (kOutputs == 128) {
        float entries[16];
        for (int i = 0; i < 16; ++i)
            entries[i] = float(int(w.cb[i]) - kQ4Zero);
        table = load(entries);
    }
    for (int i = 0; i < tokens * width; i += 16)
        store(y + i, zero());

    const auto add_records = [&](const int32_t* channels, int count, const float* f, float* out) {
        const uint8_t* lines[kRowsAtOnce];
        const float* scale_of[kRowsAtOnce];
        for (int r = 0; r < count; ++r) {
            const size_t record = size_t(channels[r]) * size_t(w.stride);
            lines[r] = w.q + record + size_t(begin) * 64;
            float* row_scales = scales + size_t(r) * size_t(group_room);
            record_scales(first_scale + record, group_begin, group_end, f[channels[r]] * w.d[channels[r]],
                          row_scales);
            scale_of[r] = row_scales + (begin * line_groups - group_begin);
        }
        for (int line = begin; line < end; ++line) {
            add_line<kOutputs, kGroup>(lines, count, table, scale_of, out + size_t(line - begin) * kOutputs);
            for (int r = 0; r < count; ++r) {
                lines[r] += 64;
                scale_of[r] += line_groups;
            }
        }
    };

    if (tokens == 1) {
        const float* f = x.f + size_t(t0) * size_t(x.k_pad);
        int count = 0;
        for (int k = 0; k < w.k; ++k) {
            active[count] = k;
            count += f[k] != 0.0f;
        }
        for (int i = 0; i < count; i += kRowsAtOnce) {
            for (int ahead = i + kRowsAhead; ahead < i + kRowsAhead + kRowsAtOnce && ahead < count; ++ahead) {
                const uint8_t* record = w.q + size_t(active[ahead]) * size_t(w.stride);
                for (int line = begin; line < end; ++line)
                    prefetch(record + size_t(line) * 64);
                prefetch(first_scale + size_t(active[ahead]) * size_t(w.stride) + group_begin);
            }
            add_records(active + i, count - i < kRowsAtOnce ? count - i : kRowsAtOnce, f, y);
        }
        return;
    }
    for (int32_t k = 0; k < w.k; ++k)
        for (int t = 0; t < tokens; ++t) {
            const float* f = x.f + size_t(t0 + t) * size_t(x.k_pad);
            if (f[k] != 0.0f)
                add_records(&k, 1, f, y + size_t(t) * size_t(width));
        }
}

void sparse_product(const Product& p, int begin, int end, int rows, uint8_t* scratch) {
    const Matrix& w = *p.w;
    const int unit = w.unit(), first = begin * unit, last = end * unit < w.n ? end * unit : w.n;
    for (int t0 = 0; t0 < rows; t0 += kSparseTokens) {
        const int tokens = rows - t0 < kSparseTokens ? rows - t0 : kSparseTokens;
        if (w.encoding == Encoding::kQ8)
            sparse_lines<64, 32>(w, begin, end, *p.x, t0, tokens, scratch);
        else if (w.group == 32)
            sparse_lines<128, 32>(w, begin, end, *p.x, t0, tokens, scratch);
        else
            sparse_lines<128, 16>(w, begin, end, *p.x, t0, tokens, scratch);
        float* y = reinterpret_cast<float*>(scratch);
        for (int t = 0; t < tokens; ++t, y += size_t(end - begin) * size_t(unit))
            finish_outputs(p, t0 + t, first, last - first, y);
    }
}

} // namespace
} // namespace rwkv::cpu
