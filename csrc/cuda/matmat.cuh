// Matrix products: integer tiles with one column, float rows with 1, 4 or 8. A block takes 32 outputs. Its
// threads share the inputs out, but every output is summed as on the CPU: the exact integer sums of all
// groups meet in shared memory and one thread adds them up in ascending order. So the bits depend neither on
// the number of columns nor on the device.
#pragma once

#include "cuda/math.cuh"

namespace rwkv::cuda {

constexpr int kSharedLimit = 48 * 1024;
constexpr int kWidestBlock = 8; ///< columns, of float rows

template <int T>
constexpr int kProductThreads = T == 1 ? 256 : 128;

/// How a block of T columns works through tiles of groups of `kGroup` weights.
template <int T, int kGroup>
struct TilePlan {
    static constexpr int kWarps = kProductThreads<T> / 32;
    static constexpr int kTiles = T == 1 ? 2 : 1; ///< at once
    static constexpr int kRows = kTiles * kTileRows;
    static constexpr int kWarpsPerTile = kWarps / kTiles;
    static constexpr int kTerms = kActGroup / kGroup; ///< integer sums per group of activations
    static constexpr int kStep = 8 * kWarpsPerTile;   ///< groups of activations that all lanes take at once
    static constexpr int kChunk = T == 1 ? 4 * kStep / kTerms : kStep; ///< before the sums are added up
    static constexpr int kMostTerms = kChunk * kTerms;
};

/// Integer sums that a block wants room for, of a row of tiles that is `k_pad` long.
template <int T>
constexpr int wanted_terms(int k_pad, int group) {
    const int most = group == 16 ? TilePlan<T, 16>::kMostTerms : TilePlan<T, 32>::kMostTerms;
    return k_pad / group < most ? k_pad / group : most;
}

/// Bytes of shared memory with room for `terms` sums of every row.
template <int T>
constexpr size_t product_shared(int terms) {
    return sizeof(float) * size_t(T * kUnitRows + terms * TilePlan<T, 32>::kRows * (T + 1));
}
static_assert(product_shared<1>(TilePlan<1, 16>::kMostTerms) <= kSharedLimit &&
              product_shared<1>(TilePlan<1, 32>::kMostTerms) <= kSharedLimit &&
              product_shared<8>(TilePlan<8, 16>::kMostTerms) <= kSharedLimit);

/// Eight 4-bit codes to signed bytes: of the lower four, from bit 0 up, to `low`.
__device__ __forceinline__ void look_up(const uint32_t* codebook, uint32_t codes, int* low, int* high) {
    const uint32_t three = codes & 0x77777777u; // bit 3 of a selector would ask for a sign
    const uint32_t upper_half = 0x32103210u | (codes & 0x88888888u) >> 1;
    *low = int(__byte_perm(__byte_perm(codebook[0], codebook[1], three),
                           __byte_perm(codebook[2], codebook[3], three), upper_half));
    *high = int(__byte_perm(__byte_perm(codebook[0], codebook[1], three >> 16),
                            __byte_perm(codebook[2], codebook[3], three >> 16), upper_half >> 16));
}

__device__ __forceinline__ uint4 load16(const void* p) { return __ldg(static_cast<const uint4*>(p)); }

/// One lane's share: the dot products of four rows of a tile with one group of T columns. codes: of the
/// lane's rows; dots: [kTerms][T][kRows] at the lane's rows; scales: [kTerms][kRows] likewise.
template <int T, bool kIsQ4, int kGroup>
__device__ __forceinline__ void group_dots(const DeviceMatrix& w, const uint8_t* codes,
                                           const int8_t* group_scales, const int8_t* x, float* dots,
                                           float* scales) {
    using Plan = TilePlan<T, kGroup>;
    int dot[T][4];
#pragma unroll
    for (int t = 0; t < T; ++t)
        dot[t][0] = dot[t][1] = dot[t][2] = dot[t][3] = 0;
    const auto store = [&](int term) {
#pragma unroll
        for (int t = 0; t < T; ++t) {
            *reinterpret_cast<float4*>(dots + (term * T + t) * Plan::kRows) =
                make_float4(float(dot[t][0]), float(dot[t][1]), float(dot[t][2]), float(dot[t][3]));
            dot[t][0] = dot[t][1] = dot[t][2] = dot[t][3] = 0;
        }
        const unsigned s = __ldg(reinterpret_cast<const unsigned*>(group_scales + term * kTileRows));
        *reinterpret_cast<float4*>(scales + term * Plan::kRows) =
            make_float4(square_law(signed_byte(s, 0)), square_law(signed_byte(s, 1)),
                        square_law(signed_byte(s, 2)), square_law(signed_byte(s, 3)));
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) { // sixteen inputs
        if constexpr (kIsQ4) {
            int a[4][4]; // row, word of four inputs: 0 4 1 5, 2 6 3 7, and the same of the next eight
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const uint4 packed = load16(codes + (2 * half + j) * 64);
                look_up(w.codebook, packed.x, &a[0][2 * j], &a[0][2 * j + 1]);
                look_up(w.codebook, packed.y, &a[1][2 * j], &a[1][2 * j + 1]);
                look_up(w.codebook, packed.z, &a[2][2 * j], &a[2][2 * j + 1]);
                look_up(w.codebook, packed.w, &a[3][2 * j], &a[3][2 * j + 1]);
            }
#pragma unroll
            for (int t = 0; t < T; ++t) {
                const uint4 in = load16(x + t * w.k_pad + half * 16);
                const int b[4] = {int(__byte_perm(in.x, in.y, 0x5140)), int(__byte_perm(in.x, in.y, 0x7362)),
                                  int(__byte_perm(in.z, in.w, 0x5140)), int(__byte_perm(in.z, in.w, 0x7362))};
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int row = 0; row < 4; ++row)
                        dot[t][row] = __dp4a(a[row][i], b[i], dot[t][row]);
            }
        } else {
            uint4 a[4]; // four inputs of four rows each; codes around 128 become signed
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                a[j] = load16(codes + (4 * half + j) * 64);
                a[j].x ^= 0x80808080u;
                a[j].y ^= 0x80808080u;
                a[j].z ^= 0x80808080u;
                a[j].w ^= 0x80808080u;
            }
#pragma unroll
            for (int t = 0; t < T; ++t) {
                const uint4 in = load16(x + t * w.k_pad + half * 16);
                const int b[4] = {int(in.x), int(in.y), int(in.z), int(in.w)};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    dot[t][0] = __dp4a(int(a[i].x), b[i], dot[t][0]);
                    dot[t][1] = __dp4a(int(a[i].y), b[i], dot[t][1]);
                    dot[t][2] = __dp4a(int(a[i].z), b[i], dot[t][2]);
                    dot[t][3] = __dp4a(int(a[i].w), b[i], dot[t][3]);
                }
            }
        }
        if (half == 1 || Plan::kTerms == 2)
            store(Plan::kTerms == 2 ? half : 0);
    }
}

/// y[t][row] = the products of unit `unit` with columns t0 .. t0 + T - 1. Those past the last row may hold
/// anything, but they are there: buffers hold whole blocks of kWidestBlock rows.
template <int T, bool kIsQ4, int kGroup>
__device__ __forceinline__ void tile_unit(const Product& p, int unit, int t0, int terms, float* y,
                                          float* shared) {
    using Plan = TilePlan<T, kGroup>;
    constexpr int kGroupBytes = kTileRows * kActGroup / (kIsQ4 ? 2 : 1);
    const DeviceMatrix& w = p.w;
    const int groups = w.k_pad / kActGroup, tiles = w.n_pad / kTileRows;
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
    const int lane_rows = lane % 4 * 4, lane_group = warp % Plan::kWarpsPerTile * 8 + lane / 4;
    const int tile_here = warp / Plan::kWarpsPerTile;
    const int chunk = terms / Plan::kTerms < Plan::kChunk ? terms / Plan::kTerms : Plan::kChunk;
    float *dots = shared, *scales = shared + terms * T * Plan::kRows;
    const int row = int(threadIdx.x) % Plan::kRows,
              column = int(threadIdx.x) / Plan::kRows; // that a thread sums
    for (int first = 0; first < kUnitRows / kTileRows; first += Plan::kTiles) {
        const int tile = 2 * unit + first + tile_here;
        const bool sums = column < T && 2 * unit + first + row / kTileRows < tiles;
        float total = 0.0f;
        for (int begin = 0; begin < groups; begin += chunk) {
            const int end = begin + chunk < groups ? begin + chunk : groups;
            if (tile < tiles)
                for (int g = begin + lane_group; g < end; g += Plan::kStep) {
                    const size_t at = size_t(tile) * size_t(groups) + size_t(g);
                    const int8_t* x = p.x.q + size_t(t0) * size_t(w.k_pad) + size_t(g) * kActGroup;
                    const int place = tile_here * kTileRows + lane_rows;
                    group_dots<T, kIsQ4, kGroup>(w, w.q + at * kGroupBytes + size_t(lane_rows) * 4,
                                                 w.s + at * Plan::kTerms * kTileRows + lane_rows, x,
                                                 dots + (g - begin) * Plan::kTerms * T * Plan::kRows + place,
                                                 scales + (g - begin) * Plan::kTerms * Plan::kRows + place);
                }
            __syncthreads();
            if (sums) {
                const float* x_scale = p.x.scale + size_t(t0 + column) * size_t(groups) + size_t(begin);
                const float *d = dots + column * Plan::kRows + row, *s = scales + row;
#pragma unroll 8
                for (int g = 0; g < end - begin; ++g)
#pragma unroll
                    for (int term = 0; term < Plan::kTerms; ++term, d += T * Plan::kRows, s += Plan::kRows)
                        total = fmaf(*d, *s * __ldg(x_scale + g), total);
            }
            __syncthreads();
        }
        if (sums)
            y[column * kUnitRows + first * kTileRows + row] =
                total * w.d[(2 * unit + first) * kTileRows + row];
    }
    __syncthreads();
}

template <Encoding E>
__device__ __forceinline__ float float_weight(const uint8_t* row, int k) {
    if constexpr (E == Encoding::kF32)
        return __ldg(reinterpret_cast<const float*>(row) + k);
    else if constexpr (E == Encoding::kF16)
        return f16_value(__ldg(reinterpret_cast<const uint16_t*>(row) + k));
    else
        return bf16_value(__ldg(reinterpret_cast<const uint16_t*>(row) + k));
}

/// The same for rows of floats: sixteen lanes to a row, each with the inputs of one residue mod 16.
template <int T, Encoding E>
__device__ __forceinline__ void float_unit(const Product& p, int unit, int t0, float* y) {
    const DeviceMatrix& w = p.w;
    const int lane = int(threadIdx.x % 16);
    const size_t row_bytes = size_t(w.k) * (E == Encoding::kF32 ? 4 : 2);
    for (int row = int(threadIdx.x) / 16; row < kUnitRows; row += kProductThreads<T> / 16) {
        const int n = unit * kUnitRows + row;
        float total[T] = {};
        if (n < w.n) {
            const uint8_t* weights = w.q + size_t(n) * row_bytes;
            const float* x = p.x.f + size_t(t0) * size_t(p.x.k_pad);
            const int whole = w.k / 16 * 16;
#pragma unroll 4
            for (int k = lane; k < whole; k += 16) {
                const float weight = float_weight<E>(weights, k);
#pragma unroll
                for (int t = 0; t < T; ++t)
                    total[t] = fmaf(weight, x[t * p.x.k_pad + k], total[t]);
            }
            if (whole < w.k) { // the inputs are padded with zeros, the weights are not
                const int k = whole + lane;
                const float weight = k < w.k ? float_weight<E>(weights, k) : 0.0f;
#pragma unroll
                for (int t = 0; t < T; ++t)
                    total[t] = fmaf(weight, x[t * p.x.k_pad + k], total[t]);
            }
        }
#pragma unroll
        for (int t = 0; t < T; ++t) {
            const float sum = fold16(total[t]);
            if (lane == 0)
                y[t * kUnitRows + row] = sum;
        }
    }
    __syncthreads();
}

/// What becomes of a unit's outputs: one warp a column, one lane a row.
template <int T>
__device__ __forceinline__ void finish_unit(const Product& p, int unit, int t0, int rows, const float* y) {
    const int lane = int(threadIdx.x % 32), n = unit * kUnitRows + lane;
    for (int t = int(threadIdx.x / 32); t < T && t0 + t < rows; t += kProductThreads<T> / 32) {
        float v = 0.0f;
        if (n < p.w.n) {
            float* out = p.out.data ? p.out.data + size_t(t0 + t) * size_t(p.out.stride) + n : nullptr;
            const float gate = p.epilogue == Epilogue::kMulAdd
                                   ? p.gate.data[size_t(t0 + t) * size_t(p.gate.stride) + n]
                                   : 0.0f;
            const bool adds = p.epilogue == Epilogue::kAdd || p.epilogue == Epilogue::kMulAdd;
            v = apply(p.epilogue, y[t * kUnitRows + lane], adds ? *out : 0.0f, gate);
            if (out)
                *out = v;
        }
        if (p.quantized.k)
            set_group(p.quantized, t0 + t, unit, v);
    }
}

/// Grid: units times columns (columns that share a unit's weights side by side), then a block per row of
/// states that are left behind.
template <int T>
__global__ void __launch_bounds__(kProductThreads<T>)
    products(const __grid_constant__ ProductList list, int rows) {
    const int column_blocks = (rows + T - 1) / T, position = int(blockIdx.x) / column_blocks;
    if (position >= list.first_unit[list.count]) {
        const int t = int(blockIdx.x) - list.first_unit[list.count] * column_blocks;
        if (float* state = list.last[t])
            for (int i = int(threadIdx.x); i < list.width; i += kProductThreads<T>)
                state[list.offset + size_t(i)] = list.normed[size_t(t) * size_t(list.width) + size_t(i)];
        return;
    }
    int which = 0;
    while (position >= list.first_unit[which + 1])
        ++which;
    const Product& p = list.item[which];
    const int unit = position - list.first_unit[which], t0 = int(blockIdx.x) % column_blocks * T;
    float *y = shared_memory<float>(), *shared = y + T * kUnitRows;
    if (p.w.layout == Layout::kTile) {
        if constexpr (T == 1) { // more columns: wide.cuh, narrow.cuh
            if (p.w.encoding == Encoding::kQ8)
                tile_unit<T, false, 32>(p, unit, t0, list.terms, y, shared);
            else if (p.w.group == 32)
                tile_unit<T, true, 32>(p, unit, t0, list.terms, y, shared);
            else
                tile_unit<T, true, 16>(p, unit, t0, list.terms, y, shared);
        }
    } else if (p.w.encoding == Encoding::kF32) {
        float_unit<T, Encoding::kF32>(p, unit, t0, y);
    } else if (p.w.encoding == Encoding::kF16) {
        float_unit<T, Encoding::kF16>(p, unit, t0, y);
    } else {
        float_unit<T, Encoding::kBf16>(p, unit, t0, y);
    }
    finish_unit<T>(p, unit, t0, rows, y);
}

} // namespace rwkv::cuda
