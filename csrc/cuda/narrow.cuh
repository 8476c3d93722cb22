// Products of integer tiles with a few columns: a batch. Weights are all that takes time, so a block takes
// one unit and eight columns, and its warps share the groups out; the integer sums meet in shared memory, and
// one thread per output adds them up in ascending order.
#pragma once

#include "cuda/fragments.cuh"

namespace rwkv::cuda {

constexpr int kNarrowColumns = 8, kNarrowWarps = 8, kNarrowThreads = 32 * kNarrowWarps;
constexpr int kNarrowTerms = 16; ///< sums of an output that meet at once

struct NarrowShared {
    float sums[kNarrowTerms][kNarrowColumns][kOutputStride];
    float scales[kNarrowTerms][kUnitRows];
    float x_scales[kNarrowColumns][kNarrowTerms];
    float outputs[kNarrowColumns][kOutputStride];
};
static_assert(sizeof(NarrowShared) <= kSharedLimit);

template <int kForm, int kGroup>
__device__ __forceinline__ void narrow_unit(const Product& p, int unit, int t0, int rows,
                                            NarrowShared& shared) {
    using F = Fragments<kForm, kGroup>;
    constexpr int kChunk = kNarrowTerms / F::kTerms, kEach = kChunk / kNarrowWarps; ///< groups; of a warp
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), i = lane / 4, j = lane % 4;
    const int groups = p.w.k_pad / kActGroup;
    const auto row_of = [&](int column) { return size_t(t0 + column < rows ? t0 + column : rows - 1); };
    const UnitWeights<kForm, kGroup> weights(p.w, unit);
    const int8_t* x = p.x.q + row_of(i) * size_t(p.x.k_pad);
    // A thread adds up output `lane` of column `warp`.
    const float* x_scales = p.x.scale + row_of(warp) * size_t(groups);
    float total = 0.0f;

    F coming[kEach];
    uint2 inputs[kEach];
    const auto load = [&](int begin) {
#pragma unroll
        for (int each = 0; each < kEach; ++each) {
            const int mine = begin + each * kNarrowWarps + warp, g = mine < groups ? mine : groups - 1;
            weights.load(g, coming[each]);
            inputs[each] = arranged<kForm, kGroup>(x + size_t(g) * kActGroup);
        }
    };
    load(0);
    for (int begin = 0; begin < groups; begin += kChunk) {
        const int count = groups - begin < kChunk ? groups - begin : kChunk;
        if (lane < count)
            shared.x_scales[warp][lane] = __ldg(x_scales + begin + lane);
#pragma unroll
        for (int each = 0; each < kEach; ++each) {
            const int g = each * kNarrowWarps + warp;
            if (g >= count)
                continue;
            const Weights32<kForm, kGroup> w(coming[each], p.w.codebook);
            float sums[F::kTerms][2][4];
            w.times(inputs[each],
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
    if (first < kNarrowColumns && left > 0)
        finish_columns(p, unit, t0 + first, left < 4 ? left : 4, shared.outputs[first]);
}

/// Grid: units times blocks of columns, those of the same weights side by side, then a block per row of
/// states that are left behind. All matrices are tiles.
__global__ void __launch_bounds__(kNarrowThreads, 2)
    narrow_products(const __grid_constant__ ProductList list, int rows) {
    with_product(list, (rows + kNarrowColumns - 1) / kNarrowColumns,
                 [&](const Product& p, int unit, int columns) {
                     with_format(p.w, [&]<int kForm, int kGroup>() {
                         narrow_unit<kForm, kGroup>(p, unit, columns * kNarrowColumns, rows,
                                                    *shared_memory<NarrowShared>());
                     });
                 });
}

} // namespace rwkv::cuda
