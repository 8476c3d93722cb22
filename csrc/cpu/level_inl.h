// Everything of one CPU level, in the including file's anonymous namespace: no function here may be shared
// with code compiled for another level (the linker would keep one copy and older processors would meet it).
#pragma once

#include "cpu/math_inl.h"
//
#include "cpu/norm_inl.h"
//
#include "cpu/matmat_inl.h"
//
#include "cpu/panel_inl.h"
//
#include "cpu/softmax_inl.h"
//
#include "cpu/sparse_inl.h"
//
#include "cpu/stream_inl.h"
//
#include "cpu/wkv_inl.h"

namespace rwkv::cpu {
namespace {

void product(const Product& p, int begin, int end, int rows, uint8_t* scratch) {
    const Matrix& w = *p.w;
    if (begin >= end)
        return;
    if (w.layout == Layout::kKn)
        return sparse_product(p, begin, end, rows, scratch);
    float* y = reinterpret_cast<float*>(scratch);
    uint8_t* decoded = scratch + size_t(rows + kWidestBlock) * kUnitRows * sizeof(float);
    for (int unit = begin; unit < end; ++unit) {
        const int n = unit * kUnitRows, count = w.n - n < kUnitRows ? w.n - n : kUnitRows;
        if (w.layout == Layout::kTile) {
            with_codes(w, [&]<Encoding E, int kGroup>() {
                if constexpr (kTakesPanels)
                    if (takes_panel(rows) && count > kTileRows)
                        return panel_times_rows<E, kGroup>(w, unit, *p.x, rows, y, decoded);
                for (int tile = 2 * unit; tile < 2 * unit + 2 && tile * kTileRows < w.n; ++tile)
                    tile_times_rows<E, kGroup>(w, tile, *p.x, rows, y + (tile & 1) * kTileRows, kUnitRows,
                                               decoded);
            });
        } else if (w.encoding == Encoding::kF32) {
            float_unit<Encoding::kF32>(w, n, count, *p.x, rows, y);
        } else if (w.encoding == Encoding::kF16) {
            float_unit<Encoding::kF16>(w, n, count, *p.x, rows, y);
        } else {
            float_unit<Encoding::kBf16>(w, n, count, *p.x, rows, y);
        }
        finish_rows(p, 0, rows, n, count, y, kUnitRows);
    }
}

/// Code i, without its zero point, of a quantized row.
inline int code_of_row(const Matrix& m, const uint8_t* codes, int i) {
    if (m.encoding == Encoding::kQ8)
        return int(codes[i]) - kQ8Zero;
    const int shift = i % 32 / 16 * 4;
    if (m.encoding == Encoding::kQ4)
        return int(m.cb[codes[i / 32 * 16 + i % 16] >> shift & 15]) - kQ4Zero;
    if (m.encoding == Encoding::kQ5) {
        const uint8_t* block = codes + i / 32 * 20; // nibbles, then the bits above them
        const int entry = m.cb[block[i % 16] >> shift & 15];
        return ((block[16 + i % 4] >> (i % 32 / 4) & 1) != 0 ? 127 - entry : entry) - kQ4Zero;
    }
    const uint8_t* block = codes + i / 32 * 24; // likewise
    return ((block[i % 16] >> shift & 15) | (block[16 + i % 8] >> (i % 32 / 8 * 2) & 3) << 4) - kQ6Zero;
}

void embedding_row(const Matrix& m, int row, float* out) {
    const size_t r = size_t(row);
    if (m.is_float()) {
        const uint8_t* data = m.q + r * size_t(m.k) * (m.encoding == Encoding::kF32 ? 4 : 2);
        for (int i = 0; i < m.k; i += 16) {
            const int count = lanes(i, m.k);
            const vf v = m.encoding == Encoding::kF32   ? load_weights<Encoding::kF32>(data, i, count)
                         : m.encoding == Encoding::kF16 ? load_weights<Encoding::kF16>(data, i, count)
                                                        : load_weights<Encoding::kBf16>(data, i, count);
            store_n(out + i, v, count);
        }
        return;
    }
    const uint8_t* codes = m.q + r * m.code_bytes(size_t(m.k_pad));
    const int8_t* scales = m.s + r * size_t(m.k_pad / m.group);
    for (int i = 0; i < m.k; ++i) {
        const int s = scales[i / m.group];
        out[i] = (m.d[r] * float(s * (s < 0 ? -s : s))) * float(code_of_row(m, codes, i));
    }
}

constexpr KernelTable make_table(const char* name) {
    return {name,
            kMaxTokens,
            kSplitsSigns,
            product,
            layer_norm,
            shift_acts,
            shift_mix_delta,
            set_acts,
            embedding_row,
            exp_neg_exp_array,
            exp_array,
            wkv4,
            wkv5,
            wkv7,
            prepare7,
            finish7,
            finish5,
            largest,
            softmax_weights,
            softmax_surprise,
            read_lines};
}

} // namespace
} // namespace rwkv::cpu
