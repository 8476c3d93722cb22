// Products of integer tiles with up to eight columns: a small batch. Weights are all that takes time, so a
// block takes one unit, and its warps share the groups out; the integer sums meet in shared memory, and one
// thread per output adds them up in ascending order.
#pragma once

#include "cuda/fragments.cuh"

namespace rwkv::cuda {

constexpr int kFewColumns = 8, kFewWarps = 8, kFewThreads = 32 * kFewWarps;
constexpr int kFewTerms = 16; ///< sums of an output that meet at once

struct FewShared {
    float sums[kFewTerms][kFewColumns][kOutputStride];
    float scales[kFewTerms][kUnitRows];
    float x_scales[kFewColumns][kFewTerms];
    float outputs[kFewColumns][kOutputStride];
};
static_assert(sizeof(FewShared) <= kSharedLimit);

template <int kForm, int kGroup>
__device__ __forceinline__ void few_unit(const Product& p, int unit, int t0, int rows, FewShared& shared) {
    using F = Fragments<kForm, kGroup>;
    using Inputs = Inputs32<kForm, kGroup>;
    constexpr int kChunk = kFewTerms / F::kTerms, kEach = kChunk / kFewWarps; ///< groups; of a warp
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), i = lane / 4, j = lane % 4;
    const int groups = p.w.k_pad / kActGroup;
    const auto row_of = [&](int column) { return size_t(least(t0 + column, rows - 1)); };
    const UnitWeights<kForm, kGroup> weights(p.w, unit);
    const int8_t* x = p.x.q + row_of(i) * size_t(p.x.k_pad) + Inputs::first_byte();
    // A thread adds up output `lane` of column `warp`.
    const float* x_scales = p.x.scale + row_of(warp) * size_t(groups);
    const SumsBegin sums_begin(kSumBegin);
    float total = 0.0f;

    F coming[kEach];
    Inputs inputs[kEach];
    const auto load = [&](int begin) {
#pragma unroll
        for (int each = 0; each < kEach; ++each) {
            const int g = least(begin + each * kFewWarps + warp, groups - 1);
            weights.load(g, coming[each]);
            inputs[each].load(x + size_t(g) * kActGroup);
        }
    };
    load(0);
    for (int begin = 0; begin < groups; begin += kChunk) {
        const int count = least(groups - begin, kChunk);
        if (lane < count)
            shared.x_scales[warp][lane] = __ldg(x_scales + begin + lane);
#pragma unroll
        for (int each = 0; each < kEach; ++each) {
            const int g = each * kFewWarps + warp;
            if (g >= count)
                continue;
            const Weights32<kForm, kGroup> w(coming[each], p.w.codebook);
            float sums[F::kTerms][2][4];
            w.times(inputs[each].arranged(), sums_begin,
                    [&](int term, int row, int column, float sum) { sums[term][column][row] = sum; });
#pragma unroll
            for (int term = 0; term < F::kTerms; ++term) {
                const int place = g * F::kTerms + term;
#pragma unroll
                for (int column = 0; column < 2; ++column) {
                    const float* s = sums[term][column];
                    *reinterpret_cast<float4*>(&shared.sums[place][2 * j + column][4 * i]) =
                        make_float4(s[0], s[1], s[2], s[3]);
                }
                if (j == 0)
                    *reinterpret_cast<float4*>(&shared.scales[place][4 * i]) =
                        make_float4(w.s[term][0], w.s[term][1], w.s[term][2], w.s[term][3]);
            }
        }
        if (begin + kChunk < groups)
            load(begin + kChunk);
        __syncthreads();
#pragma unroll 8
        for (int term = 0; term < count * F::kTerms; ++term)
            total = fmaf(shared.sums[term][warp][lane],
                         shared.scales[term][lane] * shared.x_scales[warp][term / F::kTerms], total);
        __syncthreads();
    }
    const int n = unit * kUnitRows + lane;
    shared.outputs[warp][lane] = n < p.w.n ? total * p.w.d[n] : 0.0f;
    __syncthreads();
    const int first = 4 * warp, left = rows - t0 - first;
    if (first < kFewColumns && left > 0)
        finish_columns(p, unit, t0 + first, least(left, 4), shared.outputs[first]);
}

/// Grid: units times blocks of columns, those of the same weights side by side, then a block per row of
/// states that are left behind. All matrices are tiles.
__global__ void __launch_bounds__(kFewThreads, 2)
    few_products(const __grid_constant__ ProductList list, int rows) {
    with_product(list, (rows + kFewColumns - 1) / kFewColumns, [&](const Product& p, int unit, int columns) {
        with_format(p.w, [&]<int kForm, int kGroup>() {
            few_unit<kForm, kGroup>(p, unit, columns * kFewColumns, rows, *shared_memory<FewShared>());
        });
    });
}

} // namespace rwkv::cuda
