// What all matrix products share, and those with float rows, for 1, 4 or 8 columns: a block takes 32 outputs.
// Every output is summed in the order of the CPU, so the bits depend neither on the number of columns nor on
// the device.
#pragma once

#include "cuda/math.cuh"

namespace rwkv::cuda {

constexpr int kSharedLimit = 48 * 1024;
constexpr int kWidestBlock = 8; ///< columns, of float rows

template <int T>
constexpr int kProductThreads = T == 1 ? 288 : 128;

/// Bytes of shared memory that float rows take.
template <int T>
constexpr size_t product_shared = sizeof(float) * size_t(T * kUnitRows);

/// Eight 4-bit codes to signed bytes: of the lower four, from bit 0 up, to `low`.
__device__ __forceinline__ void look_up(const uint32_t* codebook, uint32_t codes, int* low, int* high) {
    const uint32_t three = codes & 0x77777777u; // bit 3 of a selector would ask for a sign
    const uint32_t upper_half = 0x32103210u | (codes & 0x88888888u) >> 1;
    *low = int(__byte_perm(__byte_perm(codebook[0], codebook[1], three),
                           __byte_perm(codebook[2], codebook[3], three), upper_half));
    *high = int(__byte_perm(__byte_perm(codebook[0], codebook[1], three >> 16),
                            __byte_perm(codebook[2], codebook[3], three >> 16), upper_half >> 16));
}

/// A table of 4-bit codes as the file has it, bytes of 1 to 127: kQ4Zero more than their values.
struct PlainTable {
    uint32_t words[4];
    __device__ __forceinline__ explicit PlainTable(const uint32_t* codebook) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            words[i] = ((codebook[i] & 0x7f7f7f7fu) + kQ4Zero * 0x01010101u) & 0x7f7f7f7fu;
    }
    /// As look_up(), but two instructions shorter: bit 3 of a selector asks for a byte's sign, which is 0
    /// here.
    __device__ __forceinline__ void look_up(uint32_t codes, int* low, int* high) const {
        const uint32_t others = codes ^ 0x88888888u;
        *low = int(bytes_or_signs(words[0], words[1], codes) | bytes_or_signs(words[2], words[3], others));
        *high = int(bytes_or_signs(words[0], words[1], codes >> 16) |
                    bytes_or_signs(words[2], words[3], others >> 16));
    }
};

/// Forms of integer matrices, for templates.
constexpr int kForm8 = 0, kForm4 = 1, kForm6 = 2, kForm5 = 3;
template <int kForm>
constexpr int kCodeBits = kForm == kForm8   ? 8
                          : kForm == kForm6 ? 6
                          : kForm == kForm5 ? 5
                                            : 4;
/// Whether codes are looked up in a table, and come in another order than they are stored in.
template <int kForm>
constexpr bool kLookedUp = kForm == kForm4 || kForm == kForm5;

/// For every form of integer matrices: f<form, group>().
template <class F>
__device__ __forceinline__ void with_format(const DeviceMatrix& w, F f) {
    if (w.encoding == Encoding::kQ8)
        f.template operator()<kForm8, 32>();
    else if (w.encoding == Encoding::kQ6 && w.group == 32)
        f.template operator()<kForm6, 32>();
    else if (w.encoding == Encoding::kQ6)
        f.template operator()<kForm6, 16>();
    else if (w.encoding == Encoding::kQ5 && w.group == 32)
        f.template operator()<kForm5, 32>();
    else if (w.encoding == Encoding::kQ5)
        f.template operator()<kForm5, 16>();
    else if (w.group == 32)
        f.template operator()<kForm4, 32>();
    else
        f.template operator()<kForm4, 16>();
}

/// Four 6-bit codes as signed bytes: the low nibble of each byte, below its two lowest bits of `above`.
__device__ __forceinline__ uint32_t six_bits(uint32_t nibbles, uint32_t above) {
    const uint32_t codes = (nibbles & 0x0f0f0f0fu) | (above & 0x03030303u) << 4;
    return ((codes | 0x80808080u) - 0x20202020u) ^ 0x80808080u; // byte by byte: nothing is borrowed
}

/// Ones in the bytes of the lower four of eight 5-bit codes that have their sign; that of the nibbles of byte
/// i is bits 0 and 1 of byte i of `signs`.
__device__ __forceinline__ uint32_t low_signs(uint32_t signs) {
    return bytes_or_signs(signs << 7, signs << 6, 0xd9c8u);
}
/// The same of the upper four.
__device__ __forceinline__ uint32_t high_signs(uint32_t signs) {
    return bytes_or_signs(signs << 7, signs << 6, 0xfbeau);
}

/// Eight 5-bit codes to signed bytes, as look_up.
__device__ __forceinline__ void look_up5(const uint32_t* codebook, uint32_t nibbles, uint32_t signs, int* low,
                                         int* high) {
    look_up(codebook, nibbles, low, high);
    *low ^= int(low_signs(signs));
    *high ^= int(high_signs(signs));
}

__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }

__device__ __forceinline__ uint4 load16(const void* p) { return __ldg(static_cast<const uint4*>(p)); }

template <Encoding E>
__device__ __forceinline__ float float_weight(const uint8_t* row, int k) {
    if constexpr (E == Encoding::kF32)
        return __ldg(reinterpret_cast<const float*>(row) + k);
    else if constexpr (E == Encoding::kF16)
        return f16_value(__ldg(reinterpret_cast<const uint16_t*>(row) + k));
    else
        return bf16_value(__ldg(reinterpret_cast<const uint16_t*>(row) + k));
}

/// y[t][row] = the products of unit `unit` with columns t0 .. t0 + T - 1: sixteen lanes to a row, each with
/// the inputs of one residue mod 16. Columns past the last may hold anything, but they are there.
template <int T, Encoding E>
__device__ __forceinline__ void float_rows(const Product& p, int unit, int t0, float* y) {
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
#pragma unroll(T == 1 ? 16 : 4)
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

template <int T>
__device__ __forceinline__ void float_unit(const Product& p, int unit, int t0, float* y) {
    if (p.w.encoding == Encoding::kF32)
        float_rows<T, Encoding::kF32>(p, unit, t0, y);
    else if (p.w.encoding == Encoding::kF16)
        float_rows<T, Encoding::kF16>(p, unit, t0, y);
    else
        float_rows<T, Encoding::kBf16>(p, unit, t0, y);
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
    float* y = shared_memory<float>();
    float_unit<T>(p, unit, t0, y);
    finish_unit<T>(p, unit, t0, rows, y);
}

} // namespace rwkv::cuda
