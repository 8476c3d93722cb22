// Products of many tokens with both tiles of a unit at once: an activation that is read meets 32 rows. Every
// sum has the order that it has in matmat_inl.h. Four tokens and two groups are sixteen integer sums and
// eight of floats in registers; what is left is bound by the ports of dot products, which also multiply
// scales.
#pragma once

#include "cpu/codes_inl.h"

namespace rwkv::cpu {
namespace {

constexpr int kPanelTokens = 4;
constexpr int kPanelInputs = 512; // of 32 rows, that stay in the first-level cache beside the activations

/// A unit's two tiles as the dot products take them (see decode_tile).
struct Panel {
    const uint8_t* codes[2];
    const float* scales[2];
};

/// Whether it pays for so many tokens to decode both tiles before.
constexpr bool takes_panel(int rows) { return rows > kMaxTokens; }

/// The zero point that the biases of a group's activations are for.
constexpr int bias_zero(int group) { return group == kActGroup ? kQ8Zero : kQ4Zero; }
/// What is added to q4 codes, so that the bias is right as it stands.
constexpr int lift_of(Encoding e, int group) { return e == Encoding::kQ4 ? bias_zero(group) - kQ4Zero : 0; }
constexpr int log2(int n) { return n <= 1 ? 0 : 1 + log2(n / 2); }

/// `steps` times kGroups groups from input k on, for all tokens: added to y[t * kUnitRows + row], or put
/// there if k is 0. The groups of a step take turns, so that their sums do not wait for each other, and what
/// becomes of a sum follows its last product at once, while others are still being made. In every step
/// `lines` lines are fetched from `fetch` on.
template <int kGroups, Encoding E, int kGroup>
RWKV_BY_ITSELF void panel_times_tokens(const Matrix& w, const Panel& panel, int k, int steps, const Acts& x,
                                       int rows, float* y, const uint8_t* fetch, int lines) {
    constexpr int T = kPanelTokens, kQuads = kGroup / 4;
    constexpr int kZero = zero_point(E) + lift_of(E, kGroup), kShift = log2(bias_zero(kGroup) / kZero);
    static_assert(kZero << kShift == bias_zero(kGroup));
    const size_t block = size_t(w.k_pad) * kMaxTokens;
    const int8_t* block_q = x.q + size_t(k) * kMaxTokens;
    const float* block_scale = x.scale + k / kActGroup * kMaxTokens;
    const int32_t* block_bias = (kGroup == kActGroup ? x.bias_q8 : x.bias_q4) + k / kGroup * kMaxTokens;
    for (int token = 0; token < rows; token += T, y += T * kUnitRows) {
        vf total[2][T];
        for (int t = 0; t < T; ++t)
            for (int r = 0; r < 2; ++r)
                total[r][t] = k == 0 ? zero() : load(y + t * kUnitRows + r * kTileRows);
        const int8_t* xq = block_q;
        const float* x_scale = block_scale;
        const int32_t* bias = block_bias;
        const uint8_t *first = panel.codes[0] + k * kTileRows, *second = panel.codes[1] + k * kTileRows;
        const float *first_scales = panel.scales[0] + k / kGroup * kTileRows,
                    *second_scales = panel.scales[1] + k / kGroup * kTileRows;
        for (int step = 0; step < steps; ++step) {
            for (int i = 0; i < lines; ++i, fetch += 64)
                prefetch_far(fetch);
            vi sum[kGroups][2][T];
            for (int g = 0; g < kGroups; ++g)
                for (int t = 0; t < T; ++t)
                    sum[g][0][t] = sum[g][1][t] = shift_right<kShift>(iset(bias[g * kMaxTokens + t]));
            const auto meet = [&](int g, int j) { // quad j of group g
                const int quad = g * kQuads + j;
                const vc a = load_codes(first + quad * 64), b = load_codes(second + quad * 64);
                RWKV_UNROLL
                for (int t = 0; t < T; ++t) {
                    const int8_t* four = xq + (quad * kMaxTokens + t) * 4;
                    sum[g][0][t] = dot_q8(sum[g][0][t], a, four);
                    sum[g][1][t] = dot_q8(sum[g][1][t], b, four);
                    if (j + 1 < kQuads)
                        continue;
                    const vf factor = set(x_scale[g * kGroup / kActGroup * kMaxTokens + t]);
                    const auto add = [&](int r, const float* scales) {
                        total[r][t] = fma(to_float(sum[g][r][t]), mul(load(scales + g * kTileRows), factor),
                                          total[r][t]);
                    };
                    add(0, first_scales);
                    add(1, second_scales);
                }
            };
            RWKV_UNROLL
            for (int j = 0; j < kQuads; ++j) {
                RWKV_UNROLL
                for (int g = 0; g < kGroups; ++g)
                    meet(g, j);
            }
            first += kGroups * kGroup * kTileRows;
            second += kGroups * kGroup * kTileRows;
            first_scales += kGroups * kTileRows;
            second_scales += kGroups * kTileRows;
            xq += kGroups * kGroup * kMaxTokens;
            x_scale += kGroups * kGroup / kActGroup * kMaxTokens;
            bias += kGroups * kMaxTokens;
        }
        for (int t = 0; t < T; ++t)
            for (int r = 0; r < 2; ++r)
                store(y + t * kUnitRows + r * kTileRows, total[r][t]);
        const bool half = token % kMaxTokens + T < kMaxTokens; // of a block
        block_q += half ? 4 * T : block - 4 * T;
        block_scale += half ? T : block / kActGroup - T;
        block_bias += half ? T : block / kGroup - T;
    }
}

/// Outputs y[t * kUnitRows + row] of unit `unit`, which has both tiles. The next unit's codes are fetched
/// meanwhile. `scratch`: what product_scratch_bytes counts for decoded tiles.
template <Encoding E, int kGroup>
void panel_times_rows(const Matrix& w, int unit, const Acts& x, int rows, float* y, uint8_t* scratch) {
    const size_t tile_bytes = size_t(w.k_pad) * kTileRows, tile_scales = tile_bytes / kGroup;
    Panel panel;
    for (size_t i = 0; i < 2; ++i) {
        float* scales = reinterpret_cast<float*>(scratch + 2 * tile_bytes) + i * tile_scales;
        panel.codes[i] = decode_tile<E, kGroup, lift_of(E, kGroup)>(w, 2 * unit + int(i),
                                                                    scratch + i * tile_bytes, scales);
        panel.scales[i] = scales;
    }
    const int turns = (rows + kPanelTokens - 1) / kPanelTokens; // of tokens
    const size_t unit_bytes = w.code_bytes(2 * tile_bytes),
                 all_steps = size_t(turns) * size_t(w.k_pad / kGroup / 2);
    const uint8_t* fetch = w.q + size_t(unit + 1) * unit_bytes;
    const uint8_t* fetch_end = fetch + (unit + 1 < w.units() ? unit_bytes : 0);
    const int lines = all_steps == 0 ? 0 : int((unit_bytes / 64 + all_steps - 1) / all_steps);
    for (int k = 0; k < w.k_pad; k += kPanelInputs) {
        const int k_end = w.k_pad - k < kPanelInputs ? w.k_pad : k + kPanelInputs;
        const int groups = (k_end - k) / kGroup, steps = groups / 2;
        if (steps > 0) {
            const int each = fetch < fetch_end ? lines : 0;
            panel_times_tokens<2, E, kGroup>(w, panel, k, steps, x, rows, y, fetch, each);
            fetch += size_t(turns) * size_t(steps) * size_t(each) * 64;
        }
        if (groups % 2)
            panel_times_tokens<1, E, kGroup>(w, panel, k_end - kGroup, 1, x, rows, y, fetch, 0);
    }
    const vf first = load(w.d + unit * kUnitRows), second = load(w.d + unit * kUnitRows + kTileRows);
    for (int t = 0; t < rows; ++t, y += kUnitRows) {
        store(y, mul(load(y), first));
        store(y + kTileRows, mul(load(y + kTileRows), second));
    }
}

} // namespace
} // namespace rwkv::cpu
