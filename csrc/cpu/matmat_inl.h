// Matrix products for one token or many: integer tiles and float rows. One output is always summed in the
// same order (ascending groups, or 16 partial sums by input index mod 16), whatever the number of tokens or
// threads.
#pragma once

#include "cpu/blocks_inl.h"
//
#include "cpu/codes_inl.h"

namespace rwkv::cpu {
namespace {

/// Outputs of one 16-row tile for the first T tokens of block `block` of kWidth interleaved ones:
/// y[t * y_stride + row].
template <int T, int kWidth, Encoding E, int kGroup, bool kFetch>
RWKV_BY_ITSELF void tile_times_tokens(const Matrix& w, int tile, const Acts& x, int block, float* y,
                                      int y_stride) {
    const int groups = w.k_pad / kActGroup;
    constexpr int kGroupBytes = kTileRows * kActGroup / 8 * code_bits(E); // codes of 32 inputs
    constexpr int kScales = kActGroup / kGroup;                           // scale lines in them
    constexpr int kAhead = T == 1 ? kPrefetchBytes : T <= 4 ? kFewPrefetchBytes : kBatchPrefetchBytes;
    constexpr int kQuad = 4 * kWidth; // bytes of 4 inputs of all tokens
    const uint8_t* codes = w.q + size_t(tile) * size_t(groups) * kGroupBytes;
    const int8_t* scales = w.s + size_t(tile) * size_t(groups) * kScales * kTileRows;
    const size_t first_group = size_t(block) * size_t(groups) * kWidth;
    const int8_t* xq = x.q + first_group * kActGroup;
    const float* x_scale = x.scale + first_group;
    // levels that take panels can take any byte for a code: q4's get the zero point that the bias of a whole
    // group is for
    constexpr bool kLifted = kTakesPanels && E == Encoding::kQ4 && kGroup == kActGroup;
    constexpr bool kWholeBias = E == Encoding::kQ8 || kLifted;
    const int32_t* bias = kWholeBias ? x.bias_q8 + first_group : x.bias_q4 + 2 * first_group;
    vf total[T];
    for (int t = 0; t < T; ++t)
        total[t] = zero();
    vc codebook{};
    if constexpr (kLifted)
        codebook = load_lifted_codebook(w.cb, kQ8Zero - kQ4Zero);
    else if constexpr (has_codebook(E))
        codebook = load_codebook(w.cb);
    for (int g = 0; g < groups; ++g, x_scale += kWidth) {
        if constexpr (kFetch) {
            meet_page(codes, kGroupBytes);
            meet_page(scales, kScales * kTileRows, kPageBytes); // as early: they are a fraction of the codes
        }
        vi dot[T];
        if constexpr (E == Encoding::kQ6) {
            const uint8_t* high_codes = codes + 4 * 64; // of which a line has the bits of 16 inputs
            for (int half = 0; half < 2; ++half, codes += 2 * 64, xq += 4 * kQuad) {
                if (half == 0 || kScales == 2) {
                    for (int t = 0; t < T; ++t)
                        dot[t] = dot_start_q6(kScales == 2 ? bias[t] : bias[t] + bias[kWidth + t]);
                    bias += kScales == 2 ? kWidth : 2 * kWidth;
                }
                if constexpr (kFetch)
                    for (int line = 0; line < 3; ++line)
                        prefetch(codes + half * 64 + line * 64 + kAhead);
                const vc high = load_codes(high_codes + half * 64), a = load_codes(codes),
                         b = load_codes(codes + 64);
                const auto add = [&]<int V>(vc packed) {
                    const vc quads = six_bits<V>(packed, high);
                    for (int t = 0; t < T; ++t)
                        dot[t] = dot_q4(dot[t], quads, xq + V * kQuad + 4 * t);
                };
                add.template operator()<0>(a);
                add.template operator()<1>(a);
                add.template operator()<2>(b);
                add.template operator()<3>(b);
                if (half == 0 && kScales == 1)
                    continue;
                const vf scale = square_law(load_i8(scales));
                scales += kTileRows;
                for (int t = 0; t < T; ++t)
                    total[t] = fma(to_float(dot[t]), mul(scale, set(x_scale[t])), total[t]);
            }
            codes += 2 * 64;
        } else if constexpr (E == Encoding::kQ5) {
            vc high = load_codes(codes + 4 * 64); // a line has the bits of all 32 inputs
            for (int half = 0; half < 2; ++half, codes += 2 * 64, xq += 4 * kQuad) {
                if (half == 0 || kScales == 2) {
                    for (int t = 0; t < T; ++t)
                        dot[t] = dot_start(kScales == 2 ? bias[t] : bias[t] + bias[kWidth + t]);
                    bias += kScales == 2 ? kWidth : 2 * kWidth;
                }
                if constexpr (kFetch)
                    for (int line = 0; line < 3 - half; ++line)
                        prefetch(codes + half * 64 + line * 64 + kAhead);
                const vc a = load_codes(codes), b = load_codes(codes + 64);
                const auto add = [&]<int V>(vc packed) {
                    const vc quads = five_bits<V>(codebook, packed, high);
                    for (int t = 0; t < T; ++t)
                        dot[t] = dot_q4(dot[t], quads, xq + V * kQuad + 4 * t);
                };
                add.template operator()<0>(a);
                add.template operator()<1>(a);
                add.template operator()<2>(b);
                add.template operator()<3>(b);
                high = upper_bits(high);
                if (half == 0 && kScales == 1)
                    continue;
                const vf scale = square_law(load_i8(scales));
                scales += kTileRows;
                for (int t = 0; t < T; ++t)
                    total[t] = fma(to_float(dot[t]), mul(scale, set(x_scale[t])), total[t]);
            }
            codes += 64;
        } else if constexpr (E == Encoding::kQ4) {
            constexpr int kLoads = kGroup / 8; // 64 bytes hold 8 inputs of 16 rows
            for (int half = 0; half < kScales; ++half) {
                for (int t = 0; t < T; ++t)
                    dot[t] = dot_start(kScales == 2 || kLifted ? bias[t] : bias[t] + bias[kWidth + t]);
                bias += kScales == 2 || kLifted ? kWidth : 2 * kWidth;
                for (int j = 0; j < kLoads; ++j, codes += 64, xq += 2 * kQuad) {
                    if constexpr (kFetch)
                        prefetch(codes + kAhead);
                    const vc packed = load_codes(codes);
                    const vc low = low_codes(codebook, packed), high = high_codes(codebook, packed);
                    const auto add = [&](vc quads, const int8_t* inputs) {
                        for (int t = 0; t < T; ++t)
                            dot[t] = kLifted ? dot_q8(dot[t], quads, inputs + 4 * t)
                                             : dot_q4(dot[t], quads, inputs + 4 * t);
                    };
                    add(low, xq);
                    add(high, xq + kQuad);
                }
                const vf scale = square_law(load_i8(scales));
                scales += kTileRows;
                for (int t = 0; t < T; ++t)
                    total[t] = fma(to_float(dot[t]), mul(scale, set(x_scale[t])), total[t]);
            }
        } else {
            for (int t = 0; t < T; ++t)
                dot[t] = dot_start_q8(bias[t]);
            bias += kWidth;
            for (int j = 0; j < 8; ++j, codes += 64, xq += kQuad) {
                if constexpr (kFetch)
                    prefetch(codes + kAhead);
                const vc quads = load_codes(codes);
                for (int t = 0; t < T; ++t)
                    dot[t] = dot_q8(dot[t], quads, xq + 4 * t);
            }
            const vf scale = square_law(load_i8(scales));
            scales += kTileRows;
            for (int t = 0; t < T; ++t)
                total[t] = fma(to_float(dot[t]), mul(scale, set(x_scale[t])), total[t]);
        }
    }
    const vf row_scale = load(w.d + size_t(tile) * kTileRows);
    for (int t = 0; t < T; ++t)
        store(y + t * y_stride, mul(total[t], row_scale));
}

/// Outputs of a decoded tile for the first T tokens of block `block`. The sums of the groups go to memory, so
/// that the registers hold those of more tokens. For every group `lines` lines are fetched from `fetch` on.
template <int T, Encoding E, int kGroup>
RWKV_BY_ITSELF void decoded_times_tokens(const Matrix& w, int tile, const uint8_t* codes, const float* scales,
                                         const Acts& x, int block, float* y, int y_stride,
                                         const uint8_t* fetch, int lines) {
    constexpr int kHalf = E == Encoding::kQ8 ? 32 : 16; // inputs per bias
    constexpr int kBiases = kGroup / kHalf;
    constexpr bool kSplit = E == Encoding::kQ8 && kSplitsSigns;
    constexpr size_t kQuad = kSplit ? 8 : 4; // bytes of four inputs of a token
    const size_t first_group = size_t(block) * size_t(w.k_pad / kActGroup) * kMaxTokens;
    const int8_t* xq = (kSplit ? x.split : x.q) + first_group * (kActGroup / 4) * kQuad;
    const float* x_scale = x.scale + first_group;
    const int32_t* bias = E == Encoding::kQ8 ? x.bias_q8 + first_group : x.bias_q4 + 2 * first_group;
    for (int t = 0; t < T; ++t)
        store(y + t * y_stride, zero());
    for (int k = 0; k < w.k_pad; k += kGroup, scales += kTileRows) {
        for (int i = 0; i < lines; ++i, fetch += 64) {
            prefetch_far(fetch);
            keep_loop();
        }
        vi dot[T];
        for (int t = 0; t < T; ++t) {
            const int32_t start = kBiases == 2 ? bias[t] + bias[kMaxTokens + t] : bias[t];
            dot[t] = has_codebook(E) || kSplit ? dot_start(start)
                     : E == Encoding::kQ6      ? dot_start_q6(start)
                                               : dot_start_q8(start);
        }
        bias += kBiases * kMaxTokens;
        constexpr int kLines = E == Encoding::kQ6 && kAddsSixBits ? 2 : 1; // of four inputs each
        for (int j = 0; j < kGroup / 4;
             j += kLines, codes += kLines * 64, xq += kLines * kQuad * kMaxTokens) {
            const vc quads = load_codes(codes), next = kLines == 2 ? load_codes(codes + 64) : quads;
            for (int t = 0; t < T; ++t) {
                const int8_t* in = xq + kQuad * size_t(t);
                if constexpr (kLines == 2)
                    dot[t] = dot_eight_q6(dot[t], quads, next, in, in + kQuad * kMaxTokens);
                else if constexpr (kSplit)
                    dot[t] = dot_split(dot[t], quads, in);
                else
                    dot[t] = E == Encoding::kQ8 ? dot_q8(dot[t], quads, in) : dot_q4(dot[t], quads, in);
                stay_in_registers(dot[t]);
            }
        }
        const vf scale = load(scales);
        const float* token_scale = x_scale + k / kActGroup * kMaxTokens;
        for (int t = 0; t < T; ++t) {
            float* out = y + t * y_stride;
            store(out, fma(to_float(dot[t]), mul(scale, set(token_scale[t])), load(out)));
        }
    }
    const vf row_scale = load(w.d + size_t(tile) * kTileRows);
    for (int t = 0; t < T; ++t)
        store(y + t * y_stride, mul(load(y + t * y_stride), row_scale));
}

/// `scratch`: what product_scratch_bytes counts for a decoded tile.
template <Encoding E, int kGroup>
void tile_times_rows(const Matrix& w, int tile, const Acts& x, int rows, float* y, int y_stride,
                     uint8_t* scratch) {
    if (x.width == 1) {
        for (int t = 0; t < rows; ++t)
            tile_times_tokens<1, 1, E, kGroup, true>(w, tile, x, t, y + t * y_stride, y_stride);
        return;
    }
    if constexpr (kDecodesTiles) {
        float* scales = reinterpret_cast<float*>(scratch + size_t(w.k_pad) * kTileRows);
        const uint8_t* codes = decode_tile<E, kGroup>(w, tile, scratch, scales);
        if constexpr (kTakesBlocks)
            if (takes_blocks(rows))
                codes = order_blocks<E>(w, codes, scratch, scales, w.k_pad / kGroup);
        // the next tile's codes, spread over all groups of all blocks
        const size_t tile_bytes = w.code_bytes(size_t(w.k_pad) * kTileRows);
        const size_t groups = size_t(w.k_pad / kGroup);
        const size_t all_groups = groups * size_t((rows + kMaxTokens - 1) / kMaxTokens);
        const int lines = int((tile_bytes / 64 + all_groups - 1) / all_groups);
        const uint8_t* fetch = w.q + size_t(tile + 1) * tile_bytes;
        const uint8_t* fetch_end = fetch + ((tile + 1) * kTileRows < w.n ? tile_bytes : 0);
        for (int t = 0; t < rows; t += kMaxTokens, y += kMaxTokens * y_stride) {
            const int block = t / kMaxTokens, each = fetch < fetch_end ? lines : 0;
            const auto meet = [&]<int T>() {
                if constexpr (kTakesBlocks)
                    if (takes_blocks(rows))
                        return blocks_times_tokens<T, E, kGroup>(w, tile, codes, scales, x, block, y,
                                                                 y_stride, fetch, each);
                decoded_times_tokens<T, E, kGroup>(w, tile, codes, scales, x, block, y, y_stride, fetch,
                                                   each);
            };
            if (rows - t <= kMaxTokens / 2)
                meet.template operator()<kMaxTokens / 2>();
            else
                meet.template operator()<kMaxTokens>();
            fetch += groups * size_t(each) * 64;
        }
    } else {
        const auto few = [&]<int T>() {
            tile_times_tokens<T, kMaxTokens, E, kGroup, true>(w, tile, x, 0, y, y_stride);
        };
        if (rows == 2)
            few.template operator()<2>();
        else if (rows == 3)
            few.template operator()<3>();
        else if (rows == 4)
            few.template operator()<4>();
        else if (rows == 5 || rows == 6)
            few.template operator()<6>();
        else
            few.template operator()<kMaxTokens>();
        for (int block = 1; block * kMaxTokens < rows; ++block)
            tile_times_tokens<kMaxTokens, kMaxTokens, E, kGroup, false>(
                w, tile, x, block, y + block * kMaxTokens * y_stride, y_stride);
    }
}

/// One vector of row-major float weights.
template <Encoding E>
vf load_weights(const uint8_t* row, int k, int count) {
    if constexpr (E == Encoding::kF32)
        return load_n(reinterpret_cast<const float*>(row) + k, count);
    else if constexpr (E == Encoding::kF16)
        return load_f16_n(reinterpret_cast<const uint16_t*>(row) + k, count);
    else
        return load_bf16_n(reinterpret_cast<const uint16_t*>(row) + k, count);
}
template <Encoding E>
vf load_weights(const uint8_t* row, int k) {
    if constexpr (E == Encoding::kF32)
        return load(reinterpret_cast<const float*>(row) + k);
    else if constexpr (E == Encoding::kF16)
        return load_f16(reinterpret_cast<const uint16_t*>(row) + k);
    else
        return load_bf16(reinterpret_cast<const uint16_t*>(row) + k);
}

template <Encoding E, int R, int T>
void rows_times_tokens(const Matrix& w, int row, const Acts& x, int t0, float* y, int y_stride) {
    const size_t row_bytes = size_t(w.k) * (E == Encoding::kF32 ? 4 : 2);
    const uint8_t* weights = w.q + size_t(row) * row_bytes;
    const float* inputs = x.f + size_t(t0) * size_t(x.k_pad);
    vf total[R][T];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t)
            total[r][t] = zero();
    int k = 0;
    const auto meet = [&] { // 16 inputs
        vf in[T];
        for (int t = 0; t < T; ++t)
            in[t] = load(inputs + size_t(t) * size_t(x.k_pad) + k);
        for (int r = 0; r < R; ++r) {
            const vf weight = load_weights<E>(weights + size_t(r) * row_bytes, k);
            for (int t = 0; t < T; ++t)
                total[r][t] = fma(weight, in[t], total[r][t]);
        }
        k += 16;
    };
    if constexpr (T == 1) {
        for (size_t at = 0; at < R * row_bytes; at += kPageBytes) { // see meet_page
            prefetch(weights + at + kPageAhead);
            keep_loop();
        }
        constexpr int kLine = E == Encoding::kF32 ? 16 : 32; // inputs whose weights fill a line of the cache
        while (k + kLine <= w.k) {
            for (int r = 0; r < R; ++r) // the same place of the rows that come next
                prefetch(weights + size_t(r + R) * row_bytes + size_t(k) * (64 / kLine));
            for (int i = 0; i < kLine; i += 16)
                meet();
        }
    }
    while (k + 16 <= w.k)
        meet();
    if (k < w.k) { // the inputs are padded with zeros, the weights are not
        for (int r = 0; r < R; ++r) {
            const vf weight = load_weights<E>(weights + size_t(r) * row_bytes, k, w.k - k);
            for (int t = 0; t < T; ++t)
                total[r][t] = fma(weight, load(inputs + size_t(t) * size_t(x.k_pad) + k), total[r][t]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t)
            y[t * y_stride + r] = reduce_add(total[r][t]);
}

template <Encoding E>
void float_unit(const Matrix& w, int first_row, int count, const Acts& x, int rows, float* y) {
    constexpr int kTokens = kMaxTokens / 2;
    int t = 0;
    const auto all_rows = [&]<int T>() {
        int r = 0;
        constexpr int R = T == 1 ? 4 : kFloatRows;
        for (; r + R <= count; r += R)
            rows_times_tokens<E, R, T>(w, first_row + r, x, t, y + t * kUnitRows + r, kUnitRows);
        for (; r < count; ++r)
            rows_times_tokens<E, 1, T>(w, first_row + r, x, t, y + t * kUnitRows + r, kUnitRows);
    };
    if constexpr (kTokens > 1)
        for (; t + kTokens <= rows; t += kTokens)
            all_rows.template operator()<kTokens>();
    for (; t < rows; ++t)
        all_rows.template operator()<1>();
}

/// What becomes of `count` outputs y from output `n` of token t.
inline void finish_outputs(const Product& p, int t, int n, int count, float* y) {
    float* out = p.out ? p.out + size_t(t) * p.out_stride + n : nullptr;
    const float* gate = p.gate ? p.gate + size_t(t) * p.gate_stride + n : nullptr;
    for (int i = 0; i < count; i += 16) {
        const int part = lanes(i, count);
        vf v = load_n(y + i, part);
        switch (p.epilogue) {
        case Epilogue::kStore:
            break;
        case Epilogue::kTanh:
            v = tanh(v);
            break;
        case Epilogue::kSigmoid:
            v = sigmoid(v);
            break;
        case Epilogue::kSilu:
            v = mul(v, sigmoid(v));
            break;
        case Epilogue::kRelu2:
            v = max(zero(), v); // in this order a NaN stays one
            v = mul(v, v);
            break;
        case Epilogue::kAdd:
            v = add(load_n(out + i, part), v);
            break;
        case Epilogue::kMulAdd:
            v = fma(load_n(gate + i, part), v, load_n(out + i, part));
            break;
        }
        if (out)
            store_n(out + i, v, part);
        if (p.quantized)
            store_n(y + i, v, part);
    }
}

/// The same of tokens [t0, t0 + rows), whose outputs stand y_stride floats apart. What they change is fetched
/// ahead.
inline void finish_rows(const Product& p, int t0, int rows, int n, int count, float* y, size_t y_stride) {
    constexpr int kAhead = 16; // rows
    for (int done = 0; done < rows; done += kMaxTokens) {
        const int here = rows - done < kMaxTokens ? rows - done : kMaxTokens;
        float* block = y + size_t(done) * y_stride;
        for (int t = 0; t < here; ++t) {
            if (p.out && done + t + kAhead < rows)
                for (int i = 0; i < count; i += 16)
                    prefetch(reinterpret_cast<const uint8_t*>(
                        p.out + size_t(t0 + done + t + kAhead) * p.out_stride + n + i));
            finish_outputs(p, t0 + done + t, n, count, block + size_t(t) * y_stride);
        }
        if (p.quantized)
            set_acts(block, y_stride, t0 + done, here, n, n + count, *p.quantized);
    }
}

} // namespace
} // namespace rwkv::cpu
