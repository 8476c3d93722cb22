// Products with ffn.value stored by input channel (layout "kn"): channels whose relu^2 activation is zero are
// never read. A token's active channels are taken in ascending order, sixteen at a time: activation times
// record scale times group scale is rounded to 16 bits of the block's largest, the sum over the block is an
// exact int32, and one fused multiply-add brings it to the output. So the order is the same for one token and
// for many.
#pragma once

#include <type_traits>

#include "cpu/sparse_pairs_inl.h"
#ifdef RWKV_VEC_SUMS_BYTES
#include "cpu/sparse_bytes_inl.h"
#endif

namespace rwkv::cpu {
namespace {

#ifdef RWKV_VEC_SUMS_BYTES // codes of 5 and 6 bits, whose parts lie apart, are faster as pairs
template <Encoding E, int kGroup>
using Sums =
    std::conditional_t<E == Encoding::kQ4 || E == Encoding::kQ8, ByteSums<E, kGroup>, PairSums<E, kGroup>>;
#else
template <Encoding E, int kGroup>
using Sums = PairSums<E, kGroup>;
#endif

constexpr int kChunkBytes = 256 * 1024; // weights that several tokens visit while a cache holds them

/// What a product with `tokens` tokens writes on its way (see product_scratch_bytes).
struct SparseScratch {
    size_t stride; ///< of a token's channels and their values
    float *y, *values;
    int32_t *active, *any; ///< channels: each token's, and those of all
    uint16_t* used;        ///< a bit for each channel

    SparseScratch(const Matrix& w, int tokens, uint8_t* scratch)
        : stride(listed_channels(w)), y(reinterpret_cast<float*>(scratch)),
          values(y + size_t(tokens) * size_t(w.n_pad)),
          active(reinterpret_cast<int32_t*>(values + size_t(tokens) * stride)),
          any(active + size_t(tokens) * stride), used(reinterpret_cast<uint16_t*>(any + stride)) {
        for (int i = 0; i < w.k; i += 16) { // the channels' scales
            prefetch_far(reinterpret_cast<const uint8_t*>(w.d + i));
            keep_loop();
        }
        for (int i = 0; i < w.k; i += 16)
            used[i / 16] = 0;
    }
};

/// Lines [begin, end) of a matrix.
template <Encoding E, int kGroup>
struct SparseLines {
    using S = Sums<E, kGroup>;
    static constexpr int kOutputs = line_outputs(E), kGroups = line_groups(E, kGroup);
    static constexpr int kWindowLines = window_lines(E, kGroup);
    const Matrix& w;
    int begin, end;

    int count() const { return end - begin; }
    /// In a record: of the first line of all, and of line `begin`.
    size_t first_scale() const { return w.code_bytes(size_t(w.n_pad)); }
    size_t own_scale() const { return first_scale() + size_t(begin) * kGroups; }

    /// y [count() * kOutputs] += the products of active channel `i` of `all` and those after it, kBlock at
    /// most. Before each line a step is taken by `fetcher`.
    template <class F>
    void add_block(const int32_t* channels, const float* values, int i, int all, float* y, F& fetcher) const {
        const int here = all - i < kBlock ? all - i : kBlock;
        const ChannelBlock block = make_block(w, channels + i, values + i, here);
        typename S::Multipliers multipliers;
        for (int line = begin; line < end;) {
            const int place = line % kWindowLines; // in an aligned window of the scales
            const int lines = end - line < kWindowLines - place ? end - line : kWindowLines - place;
            S::set_multipliers(block, first_scale() + size_t(line - place) * kGroups, place * kGroups / 4 * 4,
                               ((place + lines) * kGroups + 3) / 4 * 4, multipliers);
            S::add_lines(w, block, line, lines, place, multipliers, y + size_t(line - begin) * kOutputs,
                         fetcher);
            line += lines;
        }
    }
};

/// y of `scratch`: outputs of lines [begin, end) for one token.
template <Encoding E, int kGroup>
RWKV_BY_ITSELF void sparse_token(const SparseLines<E, kGroup>& lines, const float* x, uint8_t* scratch) {
    using L = SparseLines<E, kGroup>;
    const SparseScratch s(lines.w, 1, scratch);
    const int width = lines.count() * L::kOutputs;
    for (int i = 0; i < width; i += 16)
        store(s.y + i, zero());
    const int count = find_active(x, lines.w, s.active, s.values, s.used);
    RowFetcher<E> fetcher(lines.w, lines.begin, lines.end, lines.own_scale(), s.active, count);
    for (int i = 0; i < count; i += kBlock)
        lines.add_block(s.active, s.values, i, count, s.y, fetcher);
    for (int i = 0; i < width; i += L::kOutputs)
        L::S::put_in_order(s.y + i);
}

/// The same for up to kSparseTokens tokens, x [tokens, x_stride]: y [tokens, outputs of the lines]. They take
/// turns on a chunk of channels; each finishes its blocks that begin in it.
template <Encoding E, int kGroup>
RWKV_BY_ITSELF void sparse_tokens(const SparseLines<E, kGroup>& lines, const float* x, size_t x_stride,
                                  int tokens, uint8_t* scratch) {
    using L = SparseLines<E, kGroup>;
    const Matrix& w = lines.w;
    const SparseScratch s(w, tokens, scratch);
    const int width = lines.count() * L::kOutputs;
    for (int i = 0; i < tokens * width; i += 16)
        store(s.y + i, zero());
    int count[kSparseTokens] = {}, done[kSparseTokens] = {};
    for (int t = 0; t < tokens; ++t)
        count[t] = find_active(x + size_t(t) * x_stride, w, s.active + size_t(t) * s.stride,
                               s.values + size_t(t) * s.stride, s.used);
    RecordFetcher<E> fetcher(w, lines.begin, lines.end, lines.own_scale(), s.any,
                             list_used(s.used, w.k, s.any));
    const int chunk = kChunkBytes / (64 * (lines.count() + 1));
    fetcher.plan_until(chunk, 1);
    fetcher.step();
    for (int64_t until = chunk; until < int64_t(w.k) + chunk; until += chunk) {
        int blocks = 0;
        for (int t = 0; t < tokens; ++t)
            for (int i = done[t]; i < count[t] && s.active[size_t(t) * s.stride + size_t(i)] < until;
                 i += kBlock)
                ++blocks;
        fetcher.plan_until(until + chunk, blocks * lines.count());
        for (int t = 0; t < tokens; ++t) {
            const int32_t* mine = s.active + size_t(t) * s.stride;
            for (; done[t] < count[t] && mine[done[t]] < until; done[t] += kBlock)
                lines.add_block(mine, s.values + size_t(t) * s.stride, done[t], count[t],
                                s.y + size_t(t) * size_t(width), fetcher);
        }
    }
    for (int i = 0; i < tokens * width; i += L::kOutputs)
        L::S::put_in_order(s.y + i);
}

void sparse_product(const Product& p, int begin, int end, int rows, uint8_t* scratch) {
    const Matrix& w = *p.w;
    const int unit = w.unit(), first = begin * unit, last = end * unit < w.n ? end * unit : w.n;
    for (int t0 = 0; t0 < rows; t0 += kSparseTokens) {
        const int tokens = rows - t0 < kSparseTokens ? rows - t0 : kSparseTokens;
        const float* x = p.x->f + size_t(t0) * size_t(p.x->k_pad);
        with_codes(w, [&]<Encoding E, int kGroup>() {
            const SparseLines<E, kGroup> lines{w, begin, end};
            if (tokens == 1)
                sparse_token(lines, x, scratch);
            else
                sparse_tokens(lines, x, size_t(p.x->k_pad), tokens, scratch);
        });
        finish_rows(p, t0, tokens, first, last - first, reinterpret_cast<float*>(scratch),
                    size_t(end - begin) * size_t(unit));
    }
}

} // namespace
} // namespace rwkv::cpu
