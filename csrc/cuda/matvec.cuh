// Matrix products with one column: integer tiles and float rows. A block takes rounds of one or two tiles.
// Each lane takes four rows of a tile and a group of inputs; the exact integer sums of all groups meet in
// shared memory, and a warp of its own adds them up, a lane an output, in ascending order, as the CPU does.
// The first weights are loaded and unpacked before the inputs are there, later ones asked for in time.
#pragma once

#include "cuda/products.cuh"

namespace rwkv::cuda {

constexpr int kVectorThreads = kProductThreads<1>;
constexpr int kVectorWarps = kVectorThreads / 32 - 1; ///< that multiply; one adds up
constexpr int kVectorBlocks = 3; ///< of a multiprocessor: 72 registers are enough for a lane's weights
/// Floats of two terms, each a sum and a scale, of sixteen rows, and what keeps those side by side on banks
/// of their own.
constexpr int kTermPair = 4 * kTileRows + 16;
constexpr int kPrefetchChunks = 3; ///< that are asked for ahead of the one that is loaded

/// How a block that takes kTiles at once works through groups of `kGroup` weights.
template <int kTiles, int kGroup>
struct VectorPlan {
    static constexpr int kTerms = kActGroup / kGroup;    ///< integer sums per group of activations
    static constexpr int kWarps = kVectorWarps / kTiles; ///< of a tile
    static constexpr int kChunk = 8 * kWarps;            ///< groups of activations
    static constexpr int kTileFloats = kChunk * kTerms / 2 * kTermPair;
    static constexpr int kBuffers = kTerms == 1 ? 2 : 1;
    static constexpr int kFloats = kBuffers * kTiles * kTileFloats;
    static constexpr size_t kShared = sizeof(float) * size_t(kFloats + 3 * 32);
    static_assert(kShared <= kSharedLimit);
};

/// Where a row's terms are among those of a pair, and which row is at a place: four rows of a lane lie apart,
/// so that lanes side by side write to different banks.
__device__ __forceinline__ int term_place(int row) { return (row % 4 * 4 + row / 4) * 4; }
__device__ __forceinline__ int row_at(int place) { return place % 4 * 4 + place / 4; }

/// One lane's weights: four rows, one group of inputs.
template <int kForm, int kGroup>
struct LaneWeights {
    static constexpr int kTerms = kActGroup / kGroup, kPieces = kCodeBits<kForm>;
    static constexpr unsigned kGroupBytes = kPieces * 4 * kTileRows;
    uint4 stored[kPieces];
    unsigned scales[kTerms];
    int codes[kForm == kForm8 ? 1 : 8][4]; ///< by fours, row: of eight inputs 0 4 1 5, 2 6 3 7, each with
                                           ///< kQ4Zero too much; q6: in order

    /// group: of all groups of the matrix, tile after tile
    __device__ __forceinline__ void load(const DeviceMatrix& w, unsigned group, int lane_rows) {
        const uint8_t* q = w.q + size_t(group) * kGroupBytes + unsigned(lane_rows) * 4;
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
            stored[i] = load16_early(q + i * 4 * kTileRows);
        const int8_t* s = w.s + size_t(group) * (kTerms * kTileRows) + lane_rows;
#pragma unroll
        for (int i = 0; i < kTerms; ++i)
            scales[i] = load4_early(s + i * kTileRows);
    }

    /// In place of a load, where there is nothing more to load: registers that are written on some ways only
    /// are kept all the while.
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (uint4& piece : stored)
            piece = {};
#pragma unroll
        for (unsigned& scale : scales)
            scale = 0;
    }

    __device__ __forceinline__ void unpack(const DeviceMatrix& w) {
        [[maybe_unused]] const PlainTable table(w.codebook);
        if constexpr (kForm == kForm6)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint4 &nibbles = stored[i], &above = stored[4 + i / 2];
                const auto row = [&](int r, uint32_t four, uint32_t bits) {
                    bits >>= i % 2 * 4;
                    codes[2 * i][r] = int(six_bits(four, bits));
                    codes[2 * i + 1][r] = int(six_bits(four >> 4, bits >> 2));
                    pin(codes[2 * i][r]);
                    pin(codes[2 * i + 1][r]);
                };
                row(0, nibbles.x, above.x);
                row(1, nibbles.y, above.y);
                row(2, nibbles.z, above.z);
                row(3, nibbles.w, above.w);
            }
        if constexpr (kForm == kForm5)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint4 &nibbles = stored[i], &signs = stored[4];
                const auto row = [&](int r, uint32_t eight, uint32_t bits) {
                    int &low = codes[2 * i][r], &high = codes[2 * i + 1][r];
                    table.look_up(eight, &low, &high);
                    low ^= int(low_signs(bits >> 2 * i) & 0x7f7f7f7fu);
                    high ^= int(high_signs(bits >> 2 * i) & 0x7f7f7f7fu);
                    pin(low);
                    pin(high);
                };
                row(0, nibbles.x, signs.x);
                row(1, nibbles.y, signs.y);
                row(2, nibbles.z, signs.z);
                row(3, nibbles.w, signs.w);
            }
        if constexpr (kForm == kForm4)
#pragma unroll
            for (int i = 0; i < kPieces; ++i) {
                table.look_up(stored[i].x, &codes[2 * i][0], &codes[2 * i + 1][0]);
                table.look_up(stored[i].y, &codes[2 * i][1], &codes[2 * i + 1][1]);
                table.look_up(stored[i].z, &codes[2 * i][2], &codes[2 * i + 1][2]);
                table.look_up(stored[i].w, &codes[2 * i][3], &codes[2 * i + 1][3]);
#pragma unroll
                for (int row = 0; row < 4; ++row) {
                    pin(codes[2 * i][row]);
                    pin(codes[2 * i + 1][row]);
                }
            }
    }

    /// Sums of the four rows with the 32 inputs of a group, each beside its scale, for each term. `group`: of
    /// those that `pairs` holds the terms of.
    __device__ __forceinline__ void sum(const int8_t* x, float x_scale, float* pairs, int group,
                                        int lane_rows) const {
        pairs += group * kTerms / 2 * kTermPair;
        float2 terms[kTerms][4];
        int dot[4] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4 in = *reinterpret_cast<const uint4*>(x + half * 16);
            if constexpr (kForm != kForm8) {
                constexpr bool kTurned = kLookedUp<kForm>;
                const int b[4] = {int(kTurned ? __byte_perm(in.x, in.y, 0x5140) : in.x),
                                  int(kTurned ? __byte_perm(in.x, in.y, 0x7362) : in.y),
                                  int(kTurned ? __byte_perm(in.z, in.w, 0x5140) : in.z),
                                  int(kTurned ? __byte_perm(in.z, in.w, 0x7362) : in.w)};
                if constexpr (kLookedUp<kForm>) { // what the codes have too much
                    int sum = 0;
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        sum = __dp4a(int(0xffffffffu), b[i], sum);
#pragma unroll
                    for (int row = 0; row < 4; ++row)
                        dot[row] += sum * kQ4Zero;
                }
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int row = 0; row < 4; ++row)
                        dot[row] = __dp4a(codes[4 * half + i][row], b[i], dot[row]);
            } else { // codes around 128 become signed
                const int b[4] = {int(in.x), int(in.y), int(in.z), int(in.w)};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const uint4& four = stored[4 * half + i];
                    dot[0] = __dp4a(int(four.x ^ 0x80808080u), b[i], dot[0]);
                    dot[1] = __dp4a(int(four.y ^ 0x80808080u), b[i], dot[1]);
                    dot[2] = __dp4a(int(four.z ^ 0x80808080u), b[i], dot[2]);
                    dot[3] = __dp4a(int(four.w ^ 0x80808080u), b[i], dot[3]);
                }
            }
            if (half == 0 && kTerms == 1)
                continue;
            const int term = kTerms == 2 ? half : 0;
#pragma unroll
            for (int row = 0; row < 4; ++row) {
                terms[term][row] = {float(dot[row]), square_law(signed_byte(scales[term], row)) * x_scale};
                dot[row] = 0;
            }
        }
#pragma unroll
        for (int row = 0; row < 4; ++row) {
            float* to = pairs + term_place(lane_rows + row);
            if constexpr (kTerms == 2)
                *reinterpret_cast<float4*>(to) =
                    make_float4(terms[0][row].x, terms[0][row].y, terms[1][row].x, terms[1][row].y);
            else
                *reinterpret_cast<float2*>(to + group % 2 * 2) = terms[0][row];
        }
    }
};

/// Goes on with the total of the row at a place over `count` terms; the whole warp does. Loads are a step
/// of kAhead pairs ahead of the additions: written together, the compiler would have each wait for its own.
template <int kAhead>
__device__ __forceinline__ float add_terms(float total, const float* pairs, int count) {
    float4 now[kAhead], next[kAhead];
    const auto load = [&](float4(&to)[kAhead], int pair) {
#pragma unroll
        for (int j = 0; j < kAhead; ++j)
            to[j] = *reinterpret_cast<const float4*>(pairs + (pair + j) * kTermPair);
        __syncwarp();
    };
    const auto add = [&](const float4(&those)[kAhead]) {
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
            total = fmaf(those[j].x, those[j].y, total);
            total = fmaf(those[j].z, those[j].w, total);
        }
    };
    const int whole = count / (2 * kAhead) * kAhead; // pairs that are added a step at a time
    if (whole > 0) {
        load(now, 0);
        int pair = kAhead;
#pragma unroll 1
        for (; pair + kAhead < whole; pair += 2 * kAhead) {
            load(next, pair);
            add(now);
            load(now, pair + kAhead);
            add(next);
        }
        if (pair < whole) {
            load(next, pair);
            add(now);
            add(next);
        } else {
            add(now);
        }
    }
#pragma unroll 1
    for (int i = 2 * whole; i < count; ++i) {
        const float2 term = *reinterpret_cast<const float2*>(pairs + i / 2 * kTermPair + i % 2 * 2);
        total = fmaf(term.x, term.y, total);
    }
    return total;
}

/// `count` tiles of a product from `first` on. The last warp adds up and finishes, while the others make the
/// sums of what comes after.
template <int kTiles, int kForm, int kGroup>
__device__ __forceinline__ void vector_tiles(const Product& p, int first, int count, float* shared) {
    using Plan = VectorPlan<kTiles, kGroup>;
    using Weights = LaneWeights<kForm, kGroup>;
    constexpr int kTerms = Plan::kTerms, kChunk = Plan::kChunk;
    const DeviceMatrix& w = p.w;
    const int groups = w.k_pad / kActGroup, end = least(first + count, w.n_pad / kTileRows);
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
    float* terms = shared;
    int tile = first, begin = 0;
    // On to the next chunk, when all warps are done with this one; false after the last.
    const auto next_chunk = [&] {
        begin += kChunk;
        if (begin >= groups) {
            begin = 0;
            tile += kTiles;
        }
        if constexpr (Plan::kBuffers == 1)
            __syncthreads();
        else
            terms = terms == shared ? shared + kTiles * Plan::kTileFloats : shared;
    };
    if (warp < kVectorWarps) {
        const int warp_tile = warp / Plan::kWarps, lane_rows = lane % 4 * 4;
        const int lane_group = warp % Plan::kWarps * 8 + lane / 4;
        Weights weights;
        // Past the last tile and group the last one stands in; nobody reads what becomes of it.
        const auto load = [&](int of_tile, int from) {
            weights.load(
                w,
                unsigned(least(of_tile + warp_tile, end - 1) * groups + least(from + lane_group, groups - 1)),
                lane_rows);
        };
        // One lane of a tile's last warp asks for what comes after: the groups of a chunk lie side by side.
        const bool asks = warp % Plan::kWarps == Plan::kWarps - 1 && lane == 0;
        const auto ask_for = [&](int of_tile, int from) {
            if (of_tile + warp_tile >= end || from >= groups)
                return;
            const unsigned size = unsigned(least(groups - from, kChunk));
            const size_t at = size_t((of_tile + warp_tile) * groups + from);
            prefetch_range(w.q + at * Weights::kGroupBytes, size * Weights::kGroupBytes);
            prefetch_range(w.s + at * (kTerms * kTileRows), size * (kTerms * kTileRows));
        };
        load(first, 0);
        if (asks)
            for (int i = 1; i <= kPrefetchChunks; ++i)
                ask_for(first, i * kChunk);
        weights.unpack(w);
        wait_for_previous();
        while (true) {
            const int g = least(begin + lane_group, groups - 1);
            weights.sum(p.x.q + g * kActGroup, p.x.scale[g], terms + warp_tile * Plan::kTileFloats,
                        lane_group, lane_rows);
            const bool ends_tile = begin + kChunk >= groups, more = !ends_tile || tile + kTiles < end;
            if (more)
                load(ends_tile ? tile + kTiles : tile, ends_tile ? 0 : begin + kChunk);
            else
                weights.clear();
            if (asks) {
                if (!ends_tile)
                    ask_for(tile, begin + (1 + kPrefetchChunks) * kChunk);
                if (begin == 0)
                    ask_for(tile + (groups <= kChunk ? kPrefetchChunks : 1) * kTiles, 0);
            }
            __syncthreads();
            if (!more)
                return;
            next_chunk();
            weights.unpack(w);
        }
    }
    const int half = lane / kTileRows,
              row = row_at(lane % kTileRows); // a lane an output of the tiles at hand
    float* kept = shared + Plan::kFloats;     // row scale, output before, gate
    const auto is_output = [&] { return half < kTiles && (tile + half) * kTileRows + row < w.n; };
    const auto keep_scale = [&] {
        if (tile < end && is_output())
            copy4(kept + lane, w.d + (tile + half) * kTileRows + row);
    };
    const auto keep_outputs = [&] {
        const int n = (tile + half) * kTileRows + row;
        if (tile < end && is_output() && (p.epilogue == Epilogue::kAdd || p.epilogue == Epilogue::kMulAdd))
            copy4(kept + 32 + lane, p.out.data + n);
        if (tile < end && is_output() && p.epilogue == Epilogue::kMulAdd)
            copy4(kept + 64 + lane, p.gate.data + n);
    };
    keep_scale();
    wait_for_previous();
    keep_outputs();
    float total = 0.0f;
    while (true) {
        __syncthreads();
        total = add_terms<4>(total, terms + half % kTiles * Plan::kTileFloats + lane % kTileRows * 4,
                             least(groups - begin, kChunk) * kTerms);
        if (begin + kChunk < groups) {
            next_chunk();
            continue;
        }
        wait_for_copies();
        float v = 0.0f;
        if (is_output()) {
            v = apply(p.epilogue, total * kept[lane], kept[32 + lane], kept[64 + lane]);
            if (p.out.data)
                p.out.data[(tile + half) * kTileRows + row] = v;
        }
        if (kTiles == 2 && p.quantized.k) // lanes in the order of outputs
            set_group(p.quantized, 0, tile / 2,
                      __shfl_sync(kAllLanes, v, lane / kTileRows * kTileRows + row_at(lane % kTileRows)));
        if (tile + kTiles >= end)
            return;
        next_chunk();
        total = 0.0f;
        keep_scale();
        keep_outputs();
    }
}

/// Grid: units of all products, then a block for the state that is left behind. A unit is `list.tiles` tiles,
/// taken kTiles at once, or 32 rows of floats. Quantized outputs need two tiles at once.
template <int kTiles>
__global__ void __launch_bounds__(kVectorThreads, kVectorBlocks)
    vector_products(const __grid_constant__ ProductList list) {
    let_next_start();
    const int position = int(blockIdx.x);
    if (position >= list.first_unit[list.count]) {
        wait_for_previous();
        if (float* state = list.last[0])
            for (int i = int(threadIdx.x); i < list.width; i += kVectorThreads)
                state[list.offset + size_t(i)] = list.normed[i];
        return;
    }
    int which = 0;
    while (position >= list.first_unit[which + 1])
        ++which;
    const Product& p = list.item[which];
    const int unit = position - list.first_unit[which];
    float* shared = shared_memory<float>();
    if (p.w.layout == Layout::kTile) {
        const int count = list.tiles[which];
        with_format(p.w, [&]<int kForm, int kGroup>() {
            vector_tiles<kTiles, kForm, kGroup>(p, unit * count, count, shared);
        });
        return;
    }
    wait_for_previous();
    float_unit<1>(p, unit, 0, shared);
    finish_unit<1>(p, unit, 0, 1, shared);
}

} // namespace rwkv::cuda
