// What products of many columns with integer tiles share: a unit's weights on their way into registers, as
// multiply_32 wants them, and its outputs on their way out.
//
// A warp takes 32 outputs, two tiles. Which of them is which row of a multiplication is free: lane 4 i + j
// takes outputs 4 i .. 4 i + 3, so that 16 bytes of the file are four of its words, and 4 bytes their scales.
// Two multiplications (kPairs) cover them, each with two of the four.
#pragma once

#include "cuda/products.cuh"
#include "cuda/tensor.cuh"

namespace rwkv::cuda {

constexpr int kPairs = 2;
/// Floats between columns of outputs in shared memory: neither fragments nor columns meet in a bank.
constexpr int kOutputStride = kUnitRows + 4;

/// Loads of 16 bytes that a lane's codes of a group of 32 inputs take: of nibbles or bytes, then of the bits
/// above them.
constexpr int nibble_loads(int code_bits, int group) { return code_bits != 8 && group == 32 ? 1 : 2; }
constexpr int code_loads(int code_bits, int group) {
    const int nibbles = nibble_loads(code_bits, group);
    return nibbles + (code_bits == 6 ? nibbles : code_bits == 5 ? 1 : 0);
}

/// The weights of a unit and one group of 32 inputs, as one lane needs them.
template <int kForm, int kGroup>
struct Fragments {
    static constexpr int kTerms = kActGroup / kGroup; ///< integer sums that end up in different products
    static constexpr int kNibbles = nibble_loads(kCodeBits<kForm>, kGroup),
                         kLoads = code_loads(kCodeBits<kForm>, kGroup);

    uint4 codes[kLoads];
    unsigned scales[kTerms];
};

/// Where a lane's weights lie.
template <int kForm, int kGroup>
class UnitWeights {
    using F = Fragments<kForm, kGroup>;
    static constexpr int kLine = kTileRows * 4; ///< bytes: a word of every row
    static constexpr int kBytes = kTileRows * kActGroup / 8 * kCodeBits<kForm>;

  public:
    /// A tile that is not there is the one before again.
    __device__ __forceinline__ UnitWeights(const DeviceMatrix& w, int unit) {
        const int lane = int(threadIdx.x % 32), i = lane / 4, j = lane % 4;
        const int tiles = w.n_pad / kTileRows, tile = 2 * unit + i / 4;
        const size_t first = size_t(tile < tiles ? tile : tiles - 1) * size_t(w.k_pad / kActGroup);
        const int line = kForm == kForm8 ? 2 * j : F::kTerms == 1 ? j : j / 2;
        above_ = unsigned((4 + (kForm == kForm6 && F::kTerms == 1 ? j / 2 : 0) - line) * kLine);
        codes_ = w.q + first * kBytes + size_t(line * kLine + i % 4 * 16);
        scales_ = w.s + first * F::kTerms * kTileRows + size_t(i % 4 * 4);
    }
    __device__ __forceinline__ void load(int g, F& to) const {
        each_of(
            g, [&](int i, const uint8_t* codes) { to.codes[i] = load16(codes); },
            [&](int term, const int8_t* scales) {
                to.scales[term] = __ldg(reinterpret_cast<const unsigned*>(scales));
            });
    }
    /// code(i, 16 bytes of codes[i]), scale(term, 4 bytes of scales[term]) of group g.
    template <class Code, class Scale>
    __device__ __forceinline__ void each_of(int g, Code code, Scale scale) const {
        // q8: the next four inputs; groups of 16: the second group
        constexpr int kSecond = kForm == kForm8 ? kLine : 2 * kLine;
        const uint8_t* codes = codes_ + size_t(g) * kBytes;
#pragma unroll
        for (int i = 0; i < F::kNibbles; ++i)
            code(i, codes + i * kSecond);
#pragma unroll
        for (int i = F::kNibbles; i < F::kLoads; ++i) // q6 and q5: the bits above them
            code(i, codes + above_ + (i - F::kNibbles) * kLine);
#pragma unroll
        for (int term = 0; term < F::kTerms; ++term)
            scale(term, scales_ + (size_t(g) * F::kTerms + size_t(term)) * kTileRows);
    }

  private:
    const uint8_t* codes_;
    const int8_t* scales_;
    unsigned above_; ///< q6 and q5: from the nibbles to the bits above them
};

/// A lane's bytes of 32 inputs of a column, as they are stored.
template <int kForm, int kGroup>
struct Inputs32 {
    static constexpr bool kTwoEights = kLookedUp<kForm> && kGroup == 16;
    uint2 loaded[kTwoEights ? 2 : 1] = {};

    /// Where the lane's bytes are among the 32.
    static __device__ __forceinline__ int first_byte() {
        const int j = int(threadIdx.x % 4);
        return kTwoEights ? j / 2 * 8 : kGroup == 16 ? j * 4 : j * 8;
    }
    /// x: the first byte of the lane.
    __device__ __forceinline__ void load(const int8_t* x) {
        const auto eight = [&](int at) { return __ldg(reinterpret_cast<const uint2*>(x + at)); };
        const auto four = [&](int at) { return __ldg(reinterpret_cast<const unsigned*>(x + at)); };
        if constexpr (kTwoEights)
            loaded[0] = eight(0), loaded[1] = eight(16);
        else if constexpr (kGroup == 16)
            loaded[0] = make_uint2(four(0), four(16));
        else
            loaded[0] = eight(0);
    }
    /// In the order of unpacked weights.
    __device__ __forceinline__ uint2 arranged() const {
        const uint2 first = loaded[0];
        if constexpr (kTwoEights) {
            const uint2 second = loaded[1];
            const unsigned order = threadIdx.x % 2 == 0 ? 0x5140u : 0x7362u;
            return make_uint2(__byte_perm(first.x, first.y, order), __byte_perm(second.x, second.y, order));
        } else if constexpr (kLookedUp<kForm>) {
            return make_uint2(__byte_perm(first.x, first.y, 0x5140), __byte_perm(first.x, first.y, 0x7362));
        }
        return first;
    }
};

/// Half of a word of 4-bit codes: the lower four, or the upper ones.
__device__ __forceinline__ uint32_t look_up_half(const uint32_t* codebook, uint32_t codes, int half) {
    const uint32_t mine = codes >> (16 * half), three = mine & 0x7777u;
    return __byte_perm(__byte_perm(codebook[0], codebook[1], three),
                       __byte_perm(codebook[2], codebook[3], three), 0x3210u | (mine & 0x8888u) >> 1);
}

/// Sums of a group begin at the bits of 1.5 x 2^23: as floats they are that plus the sum, exact up to 2^22
/// (here 32 x 128 x 127 at most). Taking it off again is an addition; conversions of integers run at half
/// that rate, where look-ups and shifts of codes run too.
constexpr int kSumBegin = 0x4b400000;
__device__ __forceinline__ float sum_value(int sum) { return __uint_as_float(unsigned(sum)) - 12582912.0f; }

/// The same, decoded.
template <int kForm, int kGroup>
struct Weights32 {
    using F = Fragments<kForm, kGroup>;
    uint32_t a[kPairs][4]; ///< of groups of 16, a[..][2] and a[..][3] belong to the second
    float s[F::kTerms][4];

    __device__ __forceinline__ Weights32(const F& from, const uint32_t* codebook) {
        const auto word = [&](int load, int row) {
            const uint4& all = from.codes[load];
            return row == 0 ? all.x : row == 1 ? all.y : row == 2 ? all.z : all.w;
        };
        const int odd = int(threadIdx.x % 2);
#pragma unroll
        for (int row = 0; row < 4; ++row) {
            uint32_t& low = a[row / 2][row % 2];
            uint32_t& high = a[row / 2][2 + row % 2];
            if constexpr (kForm == kForm6 && F::kTerms == 1) {
                const uint32_t nibbles = word(0, row), above = word(1, row) >> 4 * odd;
                low = six_bits(nibbles, above), high = six_bits(nibbles >> 4, above >> 2);
            } else if constexpr (kForm == kForm6) {
                const int j = int(threadIdx.x % 4);
                low = six_bits(word(0, row) >> 4 * odd, word(2, row) >> 2 * j);
                high = six_bits(word(1, row) >> 4 * odd, word(3, row) >> 2 * j);
            } else if constexpr (kForm == kForm8) { // codes around 128 become signed
                low = word(0, row) ^ 0x80808080u;
                high = word(1, row) ^ 0x80808080u;
            } else if constexpr (kForm == kForm5 && F::kTerms == 1) {
                int both[2];
                look_up5(codebook, word(0, row), word(1, row) >> 2 * int(threadIdx.x % 4), &both[0],
                         &both[1]);
                low = uint32_t(both[0]), high = uint32_t(both[1]);
            } else if constexpr (kForm == kForm5) {
                const uint32_t signs = word(2, row) >> (int(threadIdx.x % 4) / 2 * 2 + 16 * odd);
                low = look_up_half(codebook, word(0, row), odd) ^ low_signs(signs);
                high = look_up_half(codebook, word(1, row), odd) ^ low_signs(signs >> 4);
            } else if constexpr (F::kTerms == 1) {
                int both[2];
                look_up(codebook, word(0, row), &both[0], &both[1]);
                low = uint32_t(both[0]), high = uint32_t(both[1]);
            } else {
                low = look_up_half(codebook, word(0, row), odd);
                high = look_up_half(codebook, word(1, row), odd);
            }
        }
#pragma unroll
        for (int term = 0; term < F::kTerms; ++term)
#pragma unroll
            for (int row = 0; row < 4; ++row)
                s[term][row] = square_law(signed_byte(from.scales[term], row));
    }

    /// take(term, row, column, sum): the exact sums, as floats, of the lane's outputs 0 to 3 and columns 0
    /// and 1.
    template <class Take>
    __device__ __forceinline__ void times(uint2 b, const SumsBegin& begin, Take take) const {
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair)
#pragma unroll
            for (int term = 0; term < F::kTerms; ++term) {
                int c[4];
                if constexpr (F::kTerms == 1)
                    multiply_32(c, a[pair], b, begin.value);
                else
                    multiply_16(c, a[pair][2 * term], a[pair][2 * term + 1], term == 0 ? b.x : b.y,
                                begin.value);
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    take(term, 2 * pair + i / 2, i % 2, sum_value(c[i]));
            }
    }
};

/// Half of the 32 inputs of a column, in an order in which lane 4 i + j finds its 8 bytes of all at 8 j. The
/// lanes of an even and the odd number after it have the two halves; the whole warp calls it.
template <int kForm, int kGroup>
__device__ __forceinline__ uint4 arrange_half(uint4 x) {
    if constexpr (kLookedUp<kForm>) // the codebook's bytes come as 0 4 1 5, 2 6 3 7
        x = make_uint4(__byte_perm(x.x, x.y, 0x5140), __byte_perm(x.x, x.y, 0x7362),
                       __byte_perm(x.z, x.w, 0x5140), __byte_perm(x.z, x.w, 0x7362));
    if constexpr (kForm != kForm8 && kGroup == 16) { // words of both halves in turns
        const bool upper = threadIdx.x % 2 != 0;
        const uint32_t first = __shfl_xor_sync(kAllLanes, upper ? x.x : x.z, 1),
                       second = __shfl_xor_sync(kAllLanes, upper ? x.y : x.w, 1);
        x = upper ? make_uint4(first, x.z, second, x.w) : make_uint4(x.x, first, x.y, second);
    }
    return x;
}

/// What becomes of a unit's outputs: a warp takes four columns at a time, eight lanes a column, four
/// neighbouring outputs a lane. y: [count, kOutputStride]; column 0 is row `first` of the activations. As
/// finish_unit.
__device__ __noinline__ void finish_columns(const Product& p, int unit, int first, int count,
                                            const float* y) {
    const int lane = int(threadIdx.x % 32), place = lane % 8 * 4, n = unit * kUnitRows + place;
    const bool adds = p.epilogue == Epilogue::kAdd || p.epilogue == Epilogue::kMulAdd;
    const bool whole = n + 4 <= p.w.n && (!p.out.data || p.out.stride % 4 == 0) &&
                       (p.epilogue != Epilogue::kMulAdd || p.gate.stride % 4 == 0);
    for (int begin = 0; begin < count; begin += 4) {
        const int column = begin + lane / 8, t = first + column;
        const bool present = column < count;
        float v[4] = {}, old[4] = {}, gate[4] = {};
        const auto load = [&](const float* from, float* to) {
            if (whole) {
                const float4 all = *reinterpret_cast<const float4*>(from);
                to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    to[i] = n + i < p.w.n ? from[i] : 0.0f;
            }
        };
        if (present) {
            float* out = p.out.data ? p.out.data + size_t(t) * size_t(p.out.stride) + size_t(n) : nullptr;
            if (adds)
                load(out, old);
            if (p.epilogue == Epilogue::kMulAdd)
                load(p.gate.data + size_t(t) * size_t(p.gate.stride) + size_t(n), gate);
            const float4 all = *reinterpret_cast<const float4*>(y + column * kOutputStride + place);
            const float sums[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
                v[i] = n + i < p.w.n ? apply(p.epilogue, sums[i], old[i], gate[i]) : 0.0f;
            if (out && whole)
                *reinterpret_cast<float4*>(out) = make_float4(v[0], v[1], v[2], v[3]);
            else if (out)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (n + i < p.w.n)
                        out[i] = v[i];
        }
        if (p.quantized.k)
            set_four(p.quantized, t, n, v, present);
    }
}

/// What a block does, of a grid of `columns` (blocks of columns, side by side) times the list's units: leaves
/// states behind, or f(product, unit, block of columns).
template <class F>
__device__ __forceinline__ void with_product(const ProductList& list, int column_blocks, F f) {
    const int position = int(blockIdx.x) / column_blocks;
    if (position >= list.first_unit[list.count]) {
        const int t = int(blockIdx.x) - list.first_unit[list.count] * column_blocks;
        if (float* state = list.last[t])
            for (int i = int(threadIdx.x); i < list.width; i += int(blockDim.x))
                state[list.offset + size_t(i)] = list.normed[size_t(t) * size_t(list.width) + size_t(i)];
        return;
    }
    int which = 0;
    while (position >= list.first_unit[which + 1])
        ++which;
    f(list.item[which], position - list.first_unit[which], int(blockIdx.x) % column_blocks);
}

} // namespace rwkv::cuda
