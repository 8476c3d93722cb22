// Products of integer tiles with many columns: a prompt. A block takes 32 or 64 columns and four units, a
// warp each. Weights come once per block, some groups ahead; the columns' activations through shared memory,
// in two buffers: one is filled while the other is used. Every output has its chain of sums in one register:
// an exact integer sum per group, then one fused multiply-add, in ascending order.
#pragma once

#include "cuda/fragments.cuh"

namespace rwkv::cuda {

constexpr int kWideWarps = 4, kWideThreads = 32 * kWideWarps; ///< a unit each

/// Blocks of 8 * kTiles columns.
template <int kTiles>
struct WidePlan {
    static constexpr int kColumns = 8 * kTiles;
    static constexpr int kBlocks = kTiles == 8 ? 2 : 3; ///< of a multiprocessor; more would spill registers
    static constexpr int kStep =
        kWideThreads / kColumns;             ///< groups that the block fetches at once, 32 bytes a thread
    static constexpr int kStage = 2 * kStep; ///< groups of a buffer
    /// Bytes and floats from group to group in shared memory: what a warp stores at once, some columns of
    /// kStep groups, lies on banks of its own.
    static constexpr int kCodes = kColumns * kActGroup + 128 / kStep, kScales = kColumns + 32 / kStep;
    static constexpr int kBuffer = kStage * (kCodes + kScales * int(sizeof(float)));
    static constexpr int kFinished = 4; ///< tiles of columns that are finished at once
    static constexpr size_t kOutputs = sizeof(float) * size_t(kWideWarps * kFinished * 8 * kOutputStride);
    /// Bytes of shared memory for products whose weights take `ahead` a warp.
    static constexpr size_t shared(int ahead) {
        const size_t all = size_t(2 * kBuffer + kWideWarps * ahead);
        return kOutputs > all ? kOutputs : all;
    }
};

/// Groups of weights that are on their way: more than two where they are small.
constexpr int groups_ahead(int code_bits, int group) { return code_loads(code_bits, group) == 1 ? 4 : 2; }
/// Bytes of shared memory that a warp's take of one group, of all.
constexpr int group_bytes(int code_bits, int group) {
    return 32 * (16 * code_loads(code_bits, group) + 4 * (kActGroup / group));
}
constexpr int bytes_ahead(const DeviceMatrix& w) {
    const int bits = code_bits(w.encoding);
    return groups_ahead(bits, w.group) * group_bytes(bits, w.group);
}
static_assert(WidePlan<8>::shared(groups_ahead(6, 16) * group_bytes(6, 16)) <= kSharedLimit); // the most

/// The weights of a warp's unit, kAhead groups ahead of their use, each in a place of its own. A lane brings
/// what it needs itself and waits for nobody else. They wait in shared memory: registers that loads are on
/// their way to wait for each other. Where copies are not asynchronous, in registers.
template <int kForm, int kGroup>
class WeightsAhead {
    using F = Fragments<kForm, kGroup>;
    static constexpr bool kCopies = copies_are_asynchronous();

  public:
    static constexpr int kAhead = kCopies ? groups_ahead(kCodeBits<kForm>, kGroup) : 2,
                         kPlace = group_bytes(kCodeBits<kForm>, kGroup),
                         kBytes = groups_ahead(kCodeBits<kForm>, kGroup) * kPlace;

    /// shared: kBytes, the warp's own
    __device__ __forceinline__ WeightsAhead(const DeviceMatrix& w, int unit, uint8_t* shared)
        : weights_(w, unit), groups_(w.k_pad / kActGroup), places_(shared) {
#pragma unroll
        for (int g = 0; g < kAhead; ++g)
            bring(g, g);
    }
    /// Waits for the two groups that were asked for first. kLater groups of other copies were started since.
    template <int kLater>
    __device__ __forceinline__ void wait_for_pair() {
        if constexpr (kCopies)
            finish_copy_groups<kAhead - 2 + kLater>();
    }
    __device__ __forceinline__ F at(int place) const {
        if constexpr (!kCopies)
            return held_[place];
        const int lane = int(threadIdx.x % 32);
        const uint8_t* from = places_ + place * kPlace;
        F f;
#pragma unroll
        for (int i = 0; i < F::kLoads; ++i)
            f.codes[i] = reinterpret_cast<const uint4*>(from)[32 * i + lane];
#pragma unroll
        for (int term = 0; term < F::kTerms; ++term)
            f.scales[term] = reinterpret_cast<const unsigned*>(from + F::kLoads * 512)[32 * term + lane];
        return f;
    }
    /// Starts to bring group g to a place that is free. Nothing past the last.
    __device__ __forceinline__ void bring(int g, int place) {
        if constexpr (kCopies) {
            uint8_t* to = places_ + place * kPlace + threadIdx.x % 32 * 16;
            uint8_t* scale = places_ + place * kPlace + F::kLoads * 512 + threadIdx.x % 32 * 4;
            if (g < groups_)
                weights_.each_of(
                    g, [&](int i, const uint8_t* codes) { copy_later(to + 512 * i, codes); },
                    [&](int term, const int8_t* scales) { copy_later<4>(scale + 128 * term, scales); });
            end_copy_group();
        } else {
            weights_.load(least(g, groups_ - 1), held_[place]);
        }
    }

  private:
    UnitWeights<kForm, kGroup> weights_;
    int groups_;
    uint8_t* places_;
    F held_[kCopies ? 1 : 2];
};

/// A thread's share of what a block brings to shared memory: half a group of two columns, and the scale of
/// one. Neighbours bring what lies side by side in memory. On its way it takes registers only where copies
/// are not asynchronous.
template <int kTiles, int kForm, int kGroup>
class Bringer {
    using Plan = WidePlan<kTiles>;
    static constexpr bool kCopies = copies_are_asynchronous(),
                          kArranges = kLookedUp<kForm> || (kForm == kForm6 && kGroup == 16);
    static constexpr int kHalves = 2 * Plan::kStep, kApart = kWideThreads / kHalves; ///< columns

  public:
    /// Columns past the last row are that row again.
    __device__ __forceinline__ Bringer(const Acts& x, int t0, int rows) : left_(x.k_pad / kActGroup) {
        const int thread = int(threadIdx.x), last = rows - 1;
        const int group = thread % kHalves / 2, column = thread / kHalves, half = thread % 2 * 16;
        const int of_scale = thread % Plan::kStep, scaled = thread / Plan::kStep;
        for (int i = 0; i < 2; ++i)
            codes_[i] = x.q + size_t(least(t0 + column + i * kApart, last)) * size_t(x.k_pad) +
                        group * kActGroup + half;
        scale_ = x.scale + size_t(least(t0 + scaled, last)) * size_t(left_) + of_scale;
        to_codes_ = group * Plan::kCodes + column * kActGroup + half;
        to_scale_ = Plan::kStage * Plan::kCodes + (of_scale * Plan::kScales + scaled) * int(sizeof(float));
    }
    /// Starts to bring the next kStep groups, a group of copies, to be groups `first` .. of a buffer. Past
    /// the last there is anything.
    __device__ __forceinline__ void fetch(uint8_t* buffer, int first) {
        if (int(threadIdx.x) % kHalves / 2 < left_)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if constexpr (kCopies)
                    copy_later(codes_at(buffer, first, i), codes_[i]);
                else
                    held_[i] = load16(codes_[i]);
            }
        if (int(threadIdx.x) % Plan::kStep < left_) {
            if constexpr (kCopies)
                copy_later<4>(scale_at(buffer, first), scale_);
            else
                held_scale_ = __ldg(scale_);
        }
        end_copy_group();
#pragma unroll
        for (int i = 0; i < 2; ++i)
            codes_[i] += Plan::kStep * kActGroup;
        scale_ += Plan::kStep;
        left_ -= Plan::kStep;
    }
    /// Puts them there as products want them: kLater groups of copies were started after theirs.
    template <int kLater>
    __device__ __forceinline__ void finish(uint8_t* buffer, int first) {
        finish_copy_groups<kLater>();
        if constexpr (!kCopies)
            *scale_at(buffer, first) = held_scale_;
        if constexpr (!kCopies || kArranges)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint4* to = codes_at(buffer, first, i);
                *to = arrange_half<kForm, kGroup>(kCopies ? *to : held_[i]);
            }
    }

  private:
    __device__ __forceinline__ uint4* codes_at(uint8_t* buffer, int first, int i) const {
        return reinterpret_cast<uint4*>(buffer + first * Plan::kCodes + to_codes_ + i * kApart * kActGroup);
    }
    __device__ __forceinline__ float* scale_at(uint8_t* buffer, int first) const {
        return reinterpret_cast<float*>(buffer + first * Plan::kScales * int(sizeof(float)) + to_scale_);
    }

    const int8_t* codes_[2];
    const float* scale_;
    int left_, to_codes_, to_scale_;
    uint4 held_[2] = {};
    float held_scale_ = 0.0f;
};

template <int kTiles, int kForm, int kGroup>
__device__ __forceinline__ void wide_units(const Product& p, int first_unit, int t0, int rows,
                                           uint8_t* shared) {
    using Plan = WidePlan<kTiles>;
    using Weights = WeightsAhead<kForm, kGroup>;
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), i = lane / 4, j = lane % 4;
    const int unit = first_unit + warp, groups = p.w.k_pad / kActGroup;
    const bool works = unit * kUnitRows < p.w.n;
    Weights weights(p.w, unit, shared + 2 * Plan::kBuffer + warp * Weights::kBytes);
    Bringer<kTiles, kForm, kGroup> bringer(p.x, t0, rows);
    const SumsBegin sums_begin(kSumBegin);
    float total[kTiles][4][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int row = 0; row < 4; ++row)
            total[tile][row][0] = total[tile][row][1] = 0.0f;

    // Group `group` of a buffer, which is g of all: its weights' place is taken by those kAhead groups
    /// later.
    const auto multiply = [&](const uint8_t* buffer, int group, int g, int place) {
        const Weights32<kForm, kGroup> w(weights.at(place), p.w.codebook);
        weights.bring(g + Weights::kAhead, place);
        const uint8_t* x = buffer + group * Plan::kCodes + i * kActGroup + 8 * j;
        const float* scales = reinterpret_cast<const float*>(buffer + Plan::kStage * Plan::kCodes) +
                              group * Plan::kScales + 2 * j;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            const uint2 b = *reinterpret_cast<const uint2*>(x + tile * 8 * kActGroup);
            const float2 scale = *reinterpret_cast<const float2*>(scales + tile * 8);
            w.times(b, sums_begin, [&](int term, int row, int column, float sum) {
                float& t = total[tile][row][column];
                t = fmaf(sum, w.s[term][row] * (column == 0 ? scale.x : scale.y), t);
            });
        }
    };

#pragma unroll 1
    for (int step = 0; step < Plan::kStage; step += Plan::kStep) {
        bringer.fetch(shared, step);
        bringer.template finish<0>(shared, step);
    }
    __syncthreads();
    uint8_t *now = shared, *coming = shared + Plan::kBuffer;
    // Two groups without a branch between them: codes of the second are looked up while the sums of the first
    // are added.
    static_assert(Plan::kStep % 2 == 0 && Weights::kAhead % 2 == 0);
#pragma unroll 1
    for (int begin = 0; begin < groups; begin += Plan::kStage) {
#pragma unroll 1
        for (int step = 0; step < Plan::kStage; step += Plan::kStep) {
            bringer.fetch(coming, step);
            const int left = works ? groups - begin : 0, end = least(left, step + Plan::kStep);
            int group = step;
#pragma unroll 1
            for (; group + 2 <= end; group += 2) {
                const int g = begin + group, place = g % Weights::kAhead;
                if (group == step)
                    weights.template wait_for_pair<1>();
                else
                    weights.template wait_for_pair<0>();
                multiply(now, group, g, place);
                multiply(now, group + 1, g + 1, place + 1);
            }
            if (group < end) {
                weights.template wait_for_pair<0>();
                multiply(now, group, begin + group, (begin + group) % Weights::kAhead);
                ++group;
            }
            for (; group < step + Plan::kStep; ++group)
                end_copy_group(); // as many as of a whole step
            bringer.template finish<Plan::kStep>(coming, step);
        }
        __syncthreads();
        uint8_t* const used = now;
        now = coming, coming = used;
    }
    finish_copies(); // those of a warp without outputs

    float d[4];
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        const int n = unit * kUnitRows + 4 * i + row;
        d[row] = n < p.w.n ? p.w.d[n] : 0.0f;
    }
    float* y = reinterpret_cast<float*>(shared) + warp * Plan::kFinished * 8 * kOutputStride;
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
__global__ void __launch_bounds__(kWideThreads, WidePlan<kTiles>::kBlocks)
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
