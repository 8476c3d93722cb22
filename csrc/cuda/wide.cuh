// Products of integer tiles with many columns: a prompt. A block takes 32 or 64 columns and four units, a
// warp each. Weights go from memory into registers once per block, some groups ahead; the columns'
// activations through shared memory, in two buffers: one is filled while the other is used. Every output has
// its chain of sums in one register: an exact integer sum per group, then one fused multiply-add, in
// ascending order.
#pragma once

#include "cuda/fragments.cuh"

namespace rwkv::cuda {

constexpr int kWideWarps = 4, kWideThreads = 32 * kWideWarps; ///< a unit each

/// Blocks of 8 * kTiles columns.
template <int kTiles>
struct WidePlan {
    static constexpr int kColumns = 8 * kTiles;
    static constexpr int kStep =
        kWideThreads / kColumns;             ///< groups that the block fetches at once, 32 bytes a thread
    static constexpr int kStage = 2 * kStep; ///< groups of a buffer
    static constexpr int kCodes = kStage * kColumns * kActGroup;
    static constexpr int kBuffer = kCodes + kStage * kColumns * int(sizeof(float));
    static constexpr int kFinished = 4; ///< tiles of columns that are finished at once
    static constexpr size_t kOutputs = sizeof(float) * size_t(kWideWarps * kFinished * 8 * kOutputStride);
    static constexpr size_t kShared = kOutputs > 2 * kBuffer ? kOutputs : 2 * kBuffer;
};

/// A thread's share of what a block brings to shared memory: groups of one column.
template <int kTiles, int kForm, int kGroup>
class Bringer {
    using Plan = WidePlan<kTiles>;

  public:
    /// Columns past the last row are that row again.
    __device__ __forceinline__ Bringer(const Acts& x, int t0, int rows)
        : column_(int(threadIdx.x) % Plan::kColumns), mine_(int(threadIdx.x) / Plan::kColumns),
          groups_(x.k_pad / kActGroup) {
        const size_t t = size_t(t0 + column_ < rows ? t0 + column_ : rows - 1);
        codes_ = x.q + t * size_t(x.k_pad);
        scales_ = x.scale + t * size_t(groups_);
    }
    /// Of groups `first` .. + kStep - 1; those past the last are that one again.
    __device__ __forceinline__ void fetch(int first) {
        const int g = first + mine_ < groups_ ? first + mine_ : groups_ - 1;
        low_ = load16(codes_ + size_t(g) * kActGroup);
        high_ = load16(codes_ + size_t(g) * kActGroup + 16);
        scale_ = __ldg(scales_ + g);
    }
    /// As groups `first` .. + kStep - 1 of a buffer.
    __device__ __forceinline__ void store(uint8_t* buffer, int first) {
        arrange<kForm, kGroup>(low_, high_);
        const int at = (first + mine_) * Plan::kColumns + column_;
        reinterpret_cast<uint4*>(buffer)[2 * at] = low_;
        reinterpret_cast<uint4*>(buffer)[2 * at + 1] = high_;
        reinterpret_cast<float*>(buffer + Plan::kCodes)[at] = scale_;
    }

  private:
    int column_, mine_, groups_;
    const int8_t* codes_;
    const float* scales_;
    uint4 low_, high_;
    float scale_;
};

template <int kTiles, int kForm, int kGroup>
__device__ __forceinline__ void wide_units(const Product& p, int first_unit, int t0, int rows,
                                           uint8_t* shared) {
    using Plan = WidePlan<kTiles>;
    using F = Fragments<kForm, kGroup>;
    constexpr int kAhead = 2; ///< groups of weights that are under way
    const int lane = int(threadIdx.x % 32), i = lane / 4, j = lane % 4;
    const int unit = first_unit + int(threadIdx.x / 32), groups = p.w.k_pad / kActGroup;
    const bool works = unit * kUnitRows < p.w.n;
    const UnitWeights<kForm, kGroup> weights(p.w, unit);
    Bringer<kTiles, kForm, kGroup> bringer(p.x, t0, rows);
    float total[kTiles][4][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int row = 0; row < 4; ++row)
            total[tile][row][0] = total[tile][row][1] = 0.0f;

    const auto multiply = [&](const F& fragments, const uint8_t* buffer, int group) {
        const Weights32<kForm, kGroup> w(fragments, p.w.codebook);
        const uint8_t* x = buffer + (group * Plan::kColumns + i) * kActGroup + 8 * j;
        const float* scales =
            reinterpret_cast<const float*>(buffer + Plan::kCodes) + group * Plan::kColumns + 2 * j;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            const uint2 b = *reinterpret_cast<const uint2*>(x + tile * 8 * kActGroup);
            const float2 scale = *reinterpret_cast<const float2*>(scales + tile * 8);
            w.times(b, [&](int term, int row, int column, float sum) {
                float& t = total[tile][row][column];
                t = fmaf(sum, w.s[term][row] * (column == 0 ? scale.x : scale.y), t);
            });
        }
    };

    F ahead[kAhead];
#pragma unroll
    for (int g = 0; g < kAhead; ++g)
        weights.load(g < groups ? g : groups - 1, ahead[g]);
#pragma unroll 1
    for (int step = 0; step < Plan::kStage; step += Plan::kStep) {
        bringer.fetch(step);
        bringer.store(shared, step);
    }
    __syncthreads();
    uint8_t *now = shared, *coming = shared + Plan::kBuffer;
    // The code of a group stands there once: a short loop stays where instructions come from fast.
#pragma unroll 1
    for (int begin = 0; begin < groups; begin += Plan::kStage) {
#pragma unroll 1
        for (int step = 0; step < Plan::kStage; step += Plan::kStep) {
            bringer.fetch(begin + Plan::kStage + step);
            const int left = works ? groups - begin : 0,
                      end = left < step + Plan::kStep ? left : step + Plan::kStep;
#pragma unroll 1
            for (int g = step; g < end; ++g) {
                const F fragments = ahead[0];
#pragma unroll
                for (int i = 0; i + 1 < kAhead; ++i)
                    ahead[i] = ahead[i + 1];
                const int next = begin + g + kAhead;
                weights.load(next < groups ? next : groups - 1, ahead[kAhead - 1]);
                multiply(fragments, now, g);
            }
            bringer.store(coming, step);
        }
        __syncthreads();
        uint8_t* const used = now;
        now = coming, coming = used;
    }

    float d[4];
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        const int n = unit * kUnitRows + 4 * i + row;
        d[row] = n < p.w.n ? p.w.d[n] : 0.0f;
    }
    float* y = reinterpret_cast<float*>(shared) + int(threadIdx.x / 32) * Plan::kFinished * 8 * kOutputStride;
#pragma unroll
    for (int first = 0; first < kTiles; first += Plan::kFinished) {
        if (first == 0)
            __syncthreads(); // what is below was the buffers
        else
            __syncwarp();
#pragma unroll
        for (int tile = 0; tile < Plan::kFinished; ++tile)
#pragma unroll
            for (int column = 0; column < 2; ++column) {
                const auto value = [&](int row) { return total[first + tile][row][column] * d[row]; };
                *reinterpret_cast<float4*>(y + (8 * tile + 2 * j + column) * kOutputStride + 4 * i) =
                    make_float4(value(0), value(1), value(2), value(3));
            }
        __syncwarp();
        const int t = t0 + 8 * first, left = rows - t;
        if (works)
            finish_columns(p, unit, t, left < 8 * Plan::kFinished ? left : 8 * Plan::kFinished, y);
    }
}

/// Grid: blocks of four units times blocks of columns, those of the same weights side by side, then a block
/// per row of states that are left behind. All matrices are tiles.
template <int kTiles>
__global__ void __launch_bounds__(kWideThreads, 3)
    wide_products(const __grid_constant__ ProductList list, int rows) {
    using Plan = WidePlan<kTiles>;
    with_product(list, (rows + Plan::kColumns - 1) / Plan::kColumns,
                 [&](const Product& p, int units, int columns) {
                     with_format(p.w, [&]<int kForm, int kGroup>() {
                         wide_units<kTiles, kForm, kGroup>(p, units * kWideWarps, columns * Plan::kColumns,
                                                           rows, shared_memory<uint8_t>());
                     });
                 });
}

} // namespace rwkv::cuda
