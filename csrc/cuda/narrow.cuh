// Products of integer tiles with some tens of columns: a batch. A block takes one unit and 16 to 64
// columns. Some of its warps, the bringers, share the groups of weights out, unpack them and leave them in
// shared memory: once for all columns, in one of two buffers, while the other is used. The others, the
// multipliers, have 16 or 32 outputs of eight columns each, and every output's chain of sums in a register
// as in wide.cuh. What comes after is asked for some stages ahead, so that enough is under way.
#pragma once

#include "cuda/fragments.cuh"

namespace rwkv::cuda {

constexpr int kNarrowStage = 16; ///< groups of a buffer
constexpr int kNarrowAhead = 4;  ///< stages of weights that are asked for ahead of the one that is loaded

/// What bringers leave for multipliers: kNarrowStage groups.
template <int kTiles, int kTerms>
struct NarrowBuffer {
    uint4 codes[kNarrowStage][kPairs][32]; ///< a lane's weights of a pair, as multiply_32 wants them
    float scales[kNarrowStage][kTerms][kUnitRows];
    float x_scales[kNarrowStage / 4][8 * kTiles][4]; ///< of four groups, by columns
};

/// Blocks of 8 * kTiles columns.
template <int kTiles>
struct NarrowPlan {
    static constexpr int kColumns = 8 * kTiles;
    static constexpr int kBringers = kTiles <= 2 ? 8 : 4;  ///< warps
    static constexpr int kPairsEach = kTiles <= 4 ? 1 : 2; ///< of a multiplier
    static constexpr int kMultipliers = kTiles * kPairs / kPairsEach;
    static constexpr int kWarps = kBringers + kMultipliers, kThreads = 32 * kWarps;
    static constexpr int kBlocks = 2; ///< of a multiprocessor
    static constexpr size_t kShared = 2 * sizeof(NarrowBuffer<kTiles, 2>);
    static_assert(kShared <= kSharedLimit);
    static_assert(sizeof(float) * kColumns * kOutputStride <= 2 * sizeof(NarrowBuffer<kTiles, 1>));
};

/// Asks for the groups of a unit's tiles, which lie side by side, before they are loaded: one lane of each of
/// the first two warps a tile.
template <int kForm, int kGroup>
class UnitAhead {
    static constexpr unsigned kBytes = kTileRows * kActGroup / 8 * kCodeBits<kForm>,
                              kScales = kActGroup / kGroup * kTileRows;

  public:
    __device__ __forceinline__ UnitAhead(const DeviceMatrix& w, int unit, int warp)
        : w_(w), groups_(w.k_pad / kActGroup), tile_(2 * unit + warp),
          asks_(threadIdx.x % 32 == 0 && warp < 2 && tile_ < w.n_pad / kTileRows) {}
    /// `count` groups from `begin` on, as far as there are so many.
    __device__ __forceinline__ void ask(int begin, int count) const {
        if (!asks_ || begin >= groups_)
            return;
        const unsigned size = unsigned(least(count, groups_ - begin));
        const size_t at = size_t(tile_) * size_t(groups_) + size_t(begin);
        prefetch_range(w_.q + at * kBytes, size * kBytes);
        prefetch_range(w_.s + at * kScales, size * kScales);
    }

  private:
    const DeviceMatrix& w_;
    int groups_, tile_;
    bool asks_;
};

/// Unpacks a lane's weights. Codes that are looked up come with kQ4Zero too much, which is shorter.
template <int kForm, int kGroup>
__device__ __forceinline__ void unpack_plain(const Fragments<kForm, kGroup>& from, const DeviceMatrix& w,
                                             [[maybe_unused]] const PlainTable& table, uint4 (&to)[kPairs]) {
    if constexpr (!kLookedUp<kForm>) {
        const Weights32<kForm, kGroup> unpacked(from, w.codebook);
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
            const uint32_t* a = unpacked.a[pair];
            to[pair] = make_uint4(a[0], a[1], a[2], a[3]);
        }
    } else {
        constexpr uint32_t kSeven = 0x7f7f7f7fu;
        const int j = int(threadIdx.x % 4), odd = j % 2;
        const auto row = [&](uint32_t first, uint32_t second, uint32_t signs, uint32_t* low, uint32_t* high) {
            int both[2], unused;
            if constexpr (kGroup == 32) {
                table.look_up(first, &both[0], &both[1]);
                if constexpr (kForm == kForm5) {
                    both[0] ^= int(low_signs(signs >> 2 * j) & kSeven);
                    both[1] ^= int(high_signs(signs >> 2 * j) & kSeven);
                }
            } else {
                table.look_up(first >> 16 * odd, &both[0], &unused);
                table.look_up(second >> 16 * odd, &both[1], &unused);
                if constexpr (kForm == kForm5) {
                    const uint32_t mine = signs >> (j / 2 * 2 + 16 * odd);
                    both[0] ^= int(low_signs(mine) & kSeven);
                    both[1] ^= int(low_signs(mine >> 4) & kSeven);
                }
            }
            *low = uint32_t(both[0]), *high = uint32_t(both[1]);
        };
        using F = Fragments<kForm, kGroup>;
        const uint4 first = from.codes[0], second = from.codes[F::kNibbles - 1],
                    signs = from.codes[F::kLoads - 1];
        row(first.x, second.x, signs.x, &to[0].x, &to[0].z);
        row(first.y, second.y, signs.y, &to[0].y, &to[0].w);
        row(first.z, second.z, signs.z, &to[1].x, &to[1].z);
        row(first.w, second.w, signs.w, &to[1].y, &to[1].w);
    }
}

template <int kTiles, int kForm, int kGroup>
class NarrowUnit {
    using Plan = NarrowPlan<kTiles>;
    using F = Fragments<kForm, kGroup>;
    using Inputs = Inputs32<kForm, kGroup>;
    static constexpr int kTerms = F::kTerms, kStage = kNarrowStage;
    using Buffer = NarrowBuffer<kTiles, kTerms>;

  public:
    __device__ __forceinline__ NarrowUnit(const Product& p, int unit, int t0, int rows, Buffer* buffers)
        : p_(p), unit_(unit), t0_(t0), rows_(rows), groups_(p.w.k_pad / kActGroup), buffers_(buffers) {}

    __device__ __forceinline__ void run() {
        const int warp = int(threadIdx.x / 32);
        if (warp < Plan::kBringers)
            bring();
        else
            multiply(warp - Plan::kBringers);
        __syncthreads();
        for (int first = 4 * warp; first < Plan::kColumns; first += 4 * Plan::kWarps)
            if (const int left = rows_ - t0_ - first; left > 0)
                finish_columns(p_, unit_, t0_ + first, left < 4 ? left : 4,
                               reinterpret_cast<const float*>(buffers_) + first * kOutputStride);
    }

  private:
    /// Columns past the last row are that row again.
    __device__ __forceinline__ size_t row_of(int column) const {
        return size_t(t0_ + column < rows_ ? t0_ + column : rows_ - 1);
    }

    __device__ __forceinline__ void bring() {
        constexpr int kBringers = Plan::kBringers, kEach = 2; // groups of a warp that are loaded at once
        constexpr int kScales = kTerms * kTileRows;
        const DeviceMatrix& w = p_.w;
        const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
        const int tiles = w.n_pad / kTileRows;
        const UnitWeights<kForm, kGroup> weights(w, unit_);
        // A lane makes the scales of one output. A tile that is not there is the one before again.
        const int tile = 2 * unit_ + lane / kTileRows;
        const int8_t* scales =
            w.s + size_t(tile < tiles ? tile : tiles - 1) * size_t(groups_) * kScales + lane % kTileRows;
        F coming[kEach];
        int8_t coming_scales[kEach][kTerms];
        const auto load = [&](int begin) {
#pragma unroll
            for (int each = 0; each < kEach; ++each) {
                const int mine = begin + each * kBringers + warp, g = mine < groups_ ? mine : groups_ - 1;
                weights.load(g, coming[each]);
#pragma unroll
                for (int term = 0; term < kTerms; ++term)
                    coming_scales[each][term] = __ldg(scales + size_t(g) * kScales + term * kTileRows);
            }
        };
        load(0);
        const UnitAhead<kForm, kGroup> ahead(w, unit_, warp);
        ahead.ask(kStage, kNarrowAhead * kStage);
        const PlainTable table(w.codebook);
        Buffer* buffer = buffers_;
#pragma unroll 1
        for (int begin = 0; begin < groups_; begin += kStage) {
            bring_x_scales(*buffer, begin);
#pragma unroll 1
            for (int round = 0; round < kStage; round += kEach * kBringers) {
#pragma unroll
                for (int each = 0; each < kEach; ++each) {
                    const int place = round + each * kBringers + warp;
                    if (begin + place >= groups_)
                        continue;
                    uint4 unpacked[kPairs];
                    unpack_plain(coming[each], w, table, unpacked);
#pragma unroll
                    for (int pair = 0; pair < kPairs; ++pair)
                        buffer->codes[place][pair][lane] = unpacked[pair];
#pragma unroll
                    for (int term = 0; term < kTerms; ++term)
                        buffer->scales[place][term][lane] = square_law(coming_scales[each][term]);
                }
                const int next = begin + round + kEach * kBringers;
                if (next < groups_)
                    load(next);
            }
            ahead.ask(begin + (1 + kNarrowAhead) * kStage, kStage);
            finish_copies();
            __syncthreads();
            buffer = buffer == buffers_ ? buffers_ + 1 : buffers_;
        }
        __syncthreads(); // the last stage is used
    }

    /// Those of a stage: a thread brings four groups of a column at a time.
    __device__ __forceinline__ void bring_x_scales(Buffer& buffer, int begin) {
        const int four = int(threadIdx.x) % 4, g = begin + 4 * four;
        if (g >= groups_)
            return;
        const bool whole = groups_ % 4 == 0;
        for (int column = int(threadIdx.x) / 4; column < Plan::kColumns; column += 8 * Plan::kBringers) {
            const float* from = p_.x.scale + row_of(column) * size_t(groups_) + g;
            float* to = buffer.x_scales[four][column];
            if (whole)
                copy_later(to, from);
            else
#pragma unroll 1
                for (int i = 0; i < 4 && g + i < groups_; ++i)
                    to[i] = __ldg(from + i);
        }
    }

    __device__ __forceinline__ void multiply(int multiplier) {
        constexpr int kEach = Plan::kPairsEach, kShares = kPairs / kEach;
        const int lane = int(threadIdx.x % 32), i = lane / 4, j = lane % 4;
        const int tile = multiplier / kShares, first_pair = multiplier % kShares;
        const bool works = t0_ + 8 * tile < rows_;
        const int8_t* x = p_.x.q + row_of(8 * tile + i) * size_t(p_.x.k_pad) + Inputs::first_byte();
        Inputs coming[4];
        const auto load = [&](int first) {
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (first + e < groups_)
                    coming[e].load(x + e * kActGroup);
            x += 4 * kActGroup;
        };
        // Where the sums of a column with all outputs begin.
        const auto begin_sums = [&](int (&c)[4], uint2 b, [[maybe_unused]] int term) {
            constexpr int kNone[4] = {kSumBegin, kSumBegin, kSumBegin, kSumBegin};
            if constexpr (!kLookedUp<kForm>) {
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    c[e] = kSumBegin;
            } else {
                constexpr uint32_t kMinusZero =
                    unsigned(256 - kQ4Zero) * 0x01010101u; // what codes have too much
                if constexpr (kTerms == 1)
                    multiply_32(c, {kMinusZero, kMinusZero, kMinusZero, kMinusZero}, b, kNone);
                else
                    multiply_16(c, kMinusZero, kMinusZero, term == 0 ? b.x : b.y, kNone);
            }
        };
        float total[kEach][2][2] = {}; // row, column
        const auto add = [&](const uint4* codes, const float* scales, uint2 b, float x0, float x1) {
            uint32_t a[kEach][4];
#pragma unroll
            for (int pair = 0; pair < kEach; ++pair) {
                const uint4 all = codes[pair * 32];
                a[pair][0] = all.x, a[pair][1] = all.y, a[pair][2] = all.z, a[pair][3] = all.w;
            }
#pragma unroll
            for (int term = 0; term < kTerms; ++term) {
                int begins[4];
                begin_sums(begins, b, term);
                float s[kEach][2];
                if constexpr (kEach == 2) {
                    const float4 all = *reinterpret_cast<const float4*>(scales + term * kUnitRows);
                    s[0][0] = all.x, s[0][1] = all.y, s[1][0] = all.z, s[1][1] = all.w;
                } else {
                    const float2 all = *reinterpret_cast<const float2*>(scales + term * kUnitRows);
                    s[0][0] = all.x, s[0][1] = all.y;
                }
#pragma unroll
                for (int pair = 0; pair < kEach; ++pair) {
                    int c[4];
                    if constexpr (kTerms == 1)
                        multiply_32(c, a[pair], b, begins);
                    else
                        multiply_16(c, a[pair][2 * term], a[pair][2 * term + 1], term == 0 ? b.x : b.y,
                                    begins);
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        float& t = total[pair][e / 2][e % 2];
                        t = fmaf(sum_value(c[e]), s[pair][e / 2] * (e % 2 == 0 ? x0 : x1), t);
                    }
                }
            }
        };
        if (works)
            load(0);
        __syncthreads(); // the first stage is there
        const Buffer* buffer = buffers_;
#pragma unroll 1
        for (int begin = 0; begin < groups_; begin += kStage) {
            constexpr int kCodes = kPairs * 32, kScales = kTerms * kUnitRows; // of a group
            const uint4* codes = &buffer->codes[0][first_pair][lane];
            const float* scales = &buffer->scales[0][0][4 * i + 2 * first_pair];
            const float* x_scales = buffer->x_scales[0][8 * tile + 2 * j];
            const int count = !works ? 0 : groups_ - begin < kStage ? groups_ - begin : kStage;
            uint2 b[4];
            float4 x0, x1;
            const auto next_four = [&](int first) {
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    b[e] = coming[e].arranged();
                load(begin + first + 4);
                const float* scales_of_four = x_scales + first * Plan::kColumns;
                x0 = *reinterpret_cast<const float4*>(scales_of_four);
                x1 = *reinterpret_cast<const float4*>(scales_of_four + 4);
            };
            int place = 0;
#pragma unroll(kTiles <= 2 ? 2 : 1)
            for (; place + 4 <= count; place += 4) {
                next_four(place);
                add(codes, scales, b[0], x0.x, x1.x);
                add(codes + kCodes, scales + kScales, b[1], x0.y, x1.y);
                add(codes + 2 * kCodes, scales + 2 * kScales, b[2], x0.z, x1.z);
                add(codes + 3 * kCodes, scales + 3 * kScales, b[3], x0.w, x1.w);
                codes += 4 * kCodes, scales += 4 * kScales;
            }
            if (place < count) {
                next_four(place);
                add(codes, scales, b[0], x0.x, x1.x);
                if (place + 1 < count)
                    add(codes + kCodes, scales + kScales, b[1], x0.y, x1.y);
                if (place + 2 < count)
                    add(codes + 2 * kCodes, scales + 2 * kScales, b[2], x0.z, x1.z);
            }
            __syncthreads();
            buffer = buffer == buffers_ ? buffers_ + 1 : buffers_;
        }
        float* y = reinterpret_cast<float*>(buffers_);
#pragma unroll
        for (int pair = 0; pair < kEach; ++pair) {
            const int row = 4 * i + 2 * (first_pair + pair), n = unit_ * kUnitRows + row;
            const float d0 = n < p_.w.n ? p_.w.d[n] : 0.0f, d1 = n + 1 < p_.w.n ? p_.w.d[n + 1] : 0.0f;
#pragma unroll
            for (int column = 0; column < 2; ++column)
                *reinterpret_cast<float2*>(y + (8 * tile + 2 * j + column) * kOutputStride +
                                           row) = {total[pair][0][column] * d0, total[pair][1][column] * d1};
        }
    }

    const Product& p_;
    int unit_, t0_, rows_, groups_;
    Buffer* buffers_;
};

/// Grid: units times blocks of columns, those of the same weights side by side, then a block per row of
/// states that are left behind. All matrices are tiles.
template <int kTiles>
__global__ void __launch_bounds__(NarrowPlan<kTiles>::kThreads, NarrowPlan<kTiles>::kBlocks)
    narrow_products(const __grid_constant__ ProductList list, int rows) {
    constexpr int kColumns = NarrowPlan<kTiles>::kColumns;
    with_product(list, (rows + kColumns - 1) / kColumns, [&](const Product& p, int unit, int columns) {
        with_format(p.w, [&]<int kForm, int kGroup>() {
            using Buffer = NarrowBuffer<kTiles, kActGroup / kGroup>;
            NarrowUnit<kTiles, kForm, kGroup>(p, unit, columns * kColumns, rows, shared_memory<Buffer>())
                .run();
        });
    });
}

} // namespace rwkv::cuda
