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

/// Lines [begin, end) for tokens [t0, t0 + tokens): y[t] has (end - begin) * kOutputs floats.
template <Encoding E, int kGroup>
RWKV_BY_ITSELF void sparse_lines(const Matrix& w, int begin, int end, const Acts& x, int t0, int tokens,
                                 uint8_t* scratch) {
    using S = Sums<E, kGroup>;
    constexpr int kOutputs = line_outputs(E), kGroups = line_groups(E, kGroup);
    constexpr int kWindowLines = window_lines(E, kGroup);
    const int lines = end - begin, width = lines * kOutputs;
    const size_t first_scale = w.code_bytes(size_t(w.n_pad));
    const size_t own_scale = first_scale + size_t(begin) * kGroups;
    const float* inputs = x.f + size_t(t0) * size_t(x.k_pad);
    const size_t stride = listed_channels(w); // of a token's channels and their values
    float* y = reinterpret_cast<float*>(scratch);
    float* values = y + size_t(tokens) * size_t(w.n_pad);
    int32_t* active = reinterpret_cast<int32_t*>(values + size_t(tokens) * stride);
    int32_t* any = active + size_t(tokens) * stride;
    uint16_t* used_bits = reinterpret_cast<uint16_t*>(any + stride);
    for (int i = 0; i < w.k; i += 16) { // the channels' scales
        prefetch_far(reinterpret_cast<const uint8_t*>(w.d + i));
        keep_loop();
    }
    for (int i = 0; i < tokens * width; i += 16)
        store(y + i, zero());
    for (int i = 0; i < w.k; i += 16)
        used_bits[i / 16] = 0;
    int count[kSparseTokens] = {}, done[kSparseTokens] = {};
    for (int t = 0; t < tokens; ++t)
        count[t] = find_active(inputs + size_t(t) * size_t(x.k_pad), w, active + size_t(t) * stride,
                               values + size_t(t) * stride, used_bits);
    const int32_t* used = tokens == 1 ? active : any;
    const int used_count = tokens == 1 ? count[0] : list_used(used_bits, w.k, any);
    Fetcher<E> fetcher(w, begin, end, own_scale, used, used_count, tokens);
    // Tokens take turns on a chunk of channels; each finishes its blocks that begin in it.
    const int chunk = tokens == 1 ? w.k : kChunkBytes / (64 * (lines + 1));
    if (tokens == 1) {
        fetcher.plan(kBlock, 1);
        fetcher.meet();
    } else {
        fetcher.plan_until(chunk, 1);
    }
    fetcher.step();
    for (int64_t until = chunk; until < int64_t(w.k) + chunk; until += chunk) {
        if (tokens > 1) {
            int blocks = 0;
            for (int t = 0; t < tokens; ++t)
                for (int i = done[t]; i < count[t] && active[size_t(t) * stride + size_t(i)] < until;
                     i += kBlock)
                    ++blocks;
            fetcher.plan_until(until + chunk, blocks * lines);
        }
        for (int t = 0; t < tokens; ++t) {
            const int32_t* mine = active + size_t(t) * stride;
            float* out = y + size_t(t) * size_t(width);
            for (; done[t] < count[t] && mine[done[t]] < until; done[t] += kBlock) {
                const int left = count[t] - done[t], here = left < kBlock ? left : kBlock;
                const ChannelBlock block =
                    make_block(w, mine + done[t], values + size_t(t) * stride + size_t(done[t]), here);
                typename S::Multipliers multipliers;
                for (int line = begin; line < end;) {
                    const int place = line % kWindowLines; // in an aligned window of the scales
                    const int lines_here =
                        end - line < kWindowLines - place ? end - line : kWindowLines - place;
                    S::set_multipliers(block, first_scale + size_t(line - place) * kGroups,
                                       place * kGroups / 4 * 4, ((place + lines_here) * kGroups + 3) / 4 * 4,
                                       multipliers);
                    if (tokens == 1 && line == begin) {
                        fetcher.plan(kBlock, lines); // of the next block
                        fetcher.meet();
                    }
                    S::add_lines(w, block, line, lines_here, place, multipliers,
                                 out + size_t(line - begin) * kOutputs, fetcher);
                    line += lines_here;
                }
            }
        }
    }
    for (int i = 0; i < tokens * lines; ++i)
        S::put_in_order(y + size_t(i) * kOutputs);
}

void sparse_product(const Product& p, int begin, int end, int rows, uint8_t* scratch) {
    const Matrix& w = *p.w;
    const int unit = w.unit(), first = begin * unit, last = end * unit < w.n ? end * unit : w.n;
    for (int t0 = 0; t0 < rows; t0 += kSparseTokens) {
        const int tokens = rows - t0 < kSparseTokens ? rows - t0 : kSparseTokens;
        with_codes(w, [&]<Encoding E, int kGroup>() {
            sparse_lines<E, kGroup>(w, begin, end, *p.x, t0, tokens, scratch);
        });
        finish_rows(p, t0, tokens, first, last - first, reinterpret_cast<float*>(scratch),
                    size_t(end - begin) * size_t(unit));
    }
}

} // namespace
} // namespace rwkv::cpu
