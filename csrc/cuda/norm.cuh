// Embedding, layer norm, token shift, and the hand-over of activations to integer products.
#pragma once

#include "cuda/math.cuh"

namespace rwkv::cuda {

constexpr int kMostRowThreads = 1024; ///< a warp for each 32 channels of a row, as far as they reach
constexpr float kNormEps = 1e-5f;

inline int row_threads(int channels) {
    const int threads = (channels + 31) / 32 * 32;
    return threads < kMostRowThreads ? threads : kMostRowThreads;
}

__device__ __forceinline__ float embedding_value(const DeviceMatrix& m, size_t row, int i) {
    const size_t k = size_t(m.k), at = size_t(i);
    if (m.encoding == Encoding::kF32)
        return reinterpret_cast<const float*>(m.q)[row * k + at];
    if (m.encoding == Encoding::kF16)
        return f16_value(reinterpret_cast<const uint16_t*>(m.q)[row * k + at]);
    if (m.encoding == Encoding::kBf16)
        return bf16_value(reinterpret_cast<const uint16_t*>(m.q)[row * k + at]);
    const bool q4 = m.encoding == Encoding::kQ4;
    const uint8_t* codes = m.q + row * size_t(m.k_pad) / (q4 ? 2 : 1);
    const int s = m.s[row * size_t(m.k_pad / m.group) + size_t(i / m.group)];
    int code;
    if (q4) {
        const int byte = codes[i / 32 * 16 + i % 16], entry = i % 32 < 16 ? byte & 15 : byte >> 4;
        code = signed_byte(entry < 8 ? (entry < 4 ? m.codebook[0] : m.codebook[1])
                                     : (entry < 12 ? m.codebook[2] : m.codebook[3]),
                           entry % 4);
    } else {
        code = int(codes[i]) - kQ8Zero;
    }
    return (m.d[row] * square_law(s)) * float(code);
}

/// Grid: rows. x[t] = the token's embedding, normed if there is a ln0.
__global__ void __launch_bounds__(kMostRowThreads)
    embed(DeviceMatrix emb, Batch batch, DeviceNorm ln0, Rows x) {
    const int t = int(blockIdx.x), c = emb.k;
    float* row = x.data + size_t(t) * size_t(x.stride);
    const size_t token = size_t(batch.tokens[t]);
    for (int i = int(threadIdx.x); i < c; i += int(blockDim.x))
        row[i] = embedding_value(emb, token, i);
    if (!ln0.weight)
        return;
    __syncthreads();
    const Moments m = block_moments(row, kNormEps, c, shared_memory<Moments>());
    for (int i = int(threadIdx.x); i < c; i += int(blockDim.x))
        row[i] = fmaf((row[i] - m.mean) * m.scale, ln0.weight[i], ln0.bias[i]);
}

/// Grid: rows. normed[t] = LN(x[t]).
__global__ void __launch_bounds__(kMostRowThreads) norm_rows(Rows x, DeviceNorm norm, Rows normed, int c) {
    const float* row = x.data + size_t(blockIdx.x) * size_t(x.stride);
    float* out = normed.data + size_t(blockIdx.x) * size_t(normed.stride);
    const Moments m = block_moments(row, kNormEps, c, shared_memory<Moments>());
    for (int i = int(threadIdx.x); i < c; i += int(blockDim.x))
        out[i] = fmaf((row[i] - m.mean) * m.scale, norm.weight[i], norm.bias[i]);
}

/// Token shifts of one row: into[i] = now + (previous - now) * (mix[i] + delta[i]). Without a mix it is now.
struct MixList {
    const float* mix[6];
    Rows delta[6]; ///< null: none (RWKV-6 only)
    Acts into[6];
    int count;
};

/// Grid: mixes, rows. Where every row begins a sequence, `x` and `norm` are given and each block norms the
/// row itself (the first keeps it in `normed`); else `normed` is done already. The previous row of a
/// sequence's first is in its state, at `offset`.
__global__ void __launch_bounds__(kMostRowThreads)
    mix_rows(const __grid_constant__ MixList list, Rows x, DeviceNorm norm, Rows normed, Batch batch,
             size_t offset, int c) {
    const int which = int(blockIdx.x), t = int(blockIdx.y);
    float* normed_row = normed.data + size_t(t) * size_t(normed.stride);
    const float* now = normed_row;
    if (norm.weight) {
        Moments* shared = shared_memory<Moments>();
        float* staged = reinterpret_cast<float*>(shared + 1); // [c]
        const float* row = x.data + size_t(t) * size_t(x.stride);
        for (int i = int(threadIdx.x); i < c; i += int(blockDim.x))
            staged[i] = row[i];
        __syncthreads();
        const Moments m = block_moments(staged, kNormEps, c, shared);
        for (int i = int(threadIdx.x); i < c; i += int(blockDim.x)) {
            staged[i] = fmaf((staged[i] - m.mean) * m.scale, norm.weight[i], norm.bias[i]);
            if (which == 0)
                normed_row[i] = staged[i];
        }
        __syncthreads();
        now = staged;
    }
    const float* mix = list.mix[which];
    const float* previous = nullptr;
    if (mix) {
        const float* state = batch.first[t];
        previous = state ? state + offset : normed_row - normed.stride;
    }
    const Rows delta = list.delta[which];
    const Acts& into = list.into[which];
    const int lane = int(threadIdx.x % 32);
    for (int g = int(threadIdx.x / 32); g < into.k_pad / kActGroup; g += int(blockDim.x) / 32) {
        const int i = g * kActGroup + lane;
        float value = 0.0f;
        if (i < c) {
            value = now[i];
            if (mix) {
                float weight = mix[i];
                if (delta.data)
                    weight = weight + delta.data[size_t(t) * size_t(delta.stride) + size_t(i)];
                value = fmaf(previous[i] - value, weight, value);
            }
        }
        set_group(into, t, g, value);
    }
}

/// Slices of rows that become activations: slice i is from[t][i * k .. (i + 1) * k).
struct SliceList {
    Rows from;
    Acts into[5];
};

/// Grid: slices, rows.
__global__ void __launch_bounds__(kMostRowThreads) quantize_slices(const __grid_constant__ SliceList list) {
    const int which = int(blockIdx.x), t = int(blockIdx.y), lane = int(threadIdx.x % 32);
    const Acts& into = list.into[which];
    const float* from =
        list.from.data + size_t(t) * size_t(list.from.stride) + size_t(which) * size_t(into.k);
    for (int g = int(threadIdx.x / 32); g < into.k_pad / kActGroup; g += int(blockDim.x) / 32) {
        const int i = g * kActGroup + lane;
        set_group(into, t, g, i < into.k ? from[i] : 0.0f);
    }
}

} // namespace rwkv::cuda
