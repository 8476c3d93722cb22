// Embedding, layer norm, token shift, and the hand-over of activations to integer products.
#pragma once

#include "cuda/math.cuh"

namespace rwkv::cuda {

constexpr int kRowThreads = 256;
constexpr int kRowChains = 128; ///< of a whole row's sums: value i belongs to chain i mod 128
constexpr float kNormEps = 1e-5f;

/// The sum of a row's chains, folded by halves; every lane gets it.
__device__ __forceinline__ float fold_chains(const float* chains) {
    const int lane = int(threadIdx.x % 32);
    const float x = (chains[lane] + chains[lane + 64]) + (chains[lane + 32] + chains[lane + 96]);
    return fold16(x + __shfl_xor_sync(kAllLanes, x, 16));
}

/// f(value) for `count` values of a chain in order, with many loads on their way.
template <class F>
__device__ __forceinline__ void each_of_chain(const float* x, int count, F f) {
    constexpr int kAhead = 8;
#pragma unroll 1
    for (; count > 0; count -= kAhead, x += kAhead * kRowChains) {
        float values[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j)
            values[j] = j < count ? x[j * kRowChains] : 0.0f;
#pragma unroll
        for (int j = 0; j < kAhead; ++j)
            if (j < count)
                f(values[j]);
    }
}

struct RowSums {
    float chains[2][2 * kRowChains]; ///< first of values, then of squares
    float mean[2];
};

/// The moments of up to two rows of c floats, by a block of kRowThreads: half of it takes each. All threads
/// get both; those of a null row mean nothing.
__device__ __forceinline__ void row_moments(const float* first, const float* second, int c, RowSums& shared,
                                            Moments (&result)[2]) {
    const int half = int(threadIdx.x) / kRowChains, chain = int(threadIdx.x) % kRowChains;
    const float* x = (half == 1 && second ? second : first) + chain;
    const int count = half == 0 || second ? (c - chain + kRowChains - 1) / kRowChains : 0;
    constexpr int kHeld = 32; // in registers, for both sums
    float held[kHeld];
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
        held[j] = j < count ? x[j * kRowChains] : 0.0f;
    const auto each = [&](auto f) {
#pragma unroll
        for (int j = 0; j < kHeld; ++j)
            if (j < count)
                f(held[j]);
        each_of_chain(x + kHeld * kRowChains, count - kHeld, f);
    };
    float sum = 0.0f;
    each([&](float value) { sum = sum + value; });
    shared.chains[0][threadIdx.x] = sum;
    __syncthreads();
    const float mean = fold_chains(shared.chains[0] + half * kRowChains) / float(c);
    float squares = 0.0f;
    each([&](float value) {
        const float centred = value - mean;
        squares = fmaf(centred, centred, squares);
    });
    shared.chains[1][threadIdx.x] = squares;
    if (chain == 0)
        shared.mean[half] = mean;
    __syncthreads();
    const auto moments_of = [&](int i) -> Moments {
        const float total = fold_chains(shared.chains[1] + i * kRowChains);
        return {shared.mean[i], 1.0f / sqrtf(total / float(c) + kNormEps)};
    };
    result[0] = moments_of(0);
    result[1] = second ? moments_of(1) : Moments{};
}

__device__ __forceinline__ float embedding_value(const DeviceMatrix& m, size_t row, int i) {
    const size_t k = size_t(m.k), at = size_t(i);
    if (m.encoding == Encoding::kF32)
        return reinterpret_cast<const float*>(m.q)[row * k + at];
    if (m.encoding == Encoding::kF16)
        return f16_value(reinterpret_cast<const uint16_t*>(m.q)[row * k + at]);
    if (m.encoding == Encoding::kBf16)
        return bf16_value(reinterpret_cast<const uint16_t*>(m.q)[row * k + at]);
    const int bits = m.encoding == Encoding::kQ8   ? 8
                     : m.encoding == Encoding::kQ6 ? 6
                     : m.encoding == Encoding::kQ5 ? 5
                                                   : 4;
    const uint8_t* codes = m.q + row * size_t(m.k_pad / 8 * bits);
    const int s = m.s[row * size_t(m.k_pad / m.group) + size_t(i / m.group)];
    int code;
    if (m.encoding == Encoding::kQ6) {
        const uint8_t* block = codes + i / 32 * 24; // nibbles, then the bits above them
        const int nibble = block[i % 16] >> i % 32 / 16 * 4 & 15;
        code = nibble + (block[16 + i % 8] >> i % 32 / 8 * 2 & 3) * 16 - kQ6Zero;
    } else if (m.encoding != Encoding::kQ8) {
        const bool five = m.encoding == Encoding::kQ5; // nibbles, then signs
        const uint8_t* block = codes + i / 32 * (five ? 20 : 16);
        const int byte = block[i % 16], entry = i % 32 < 16 ? byte & 15 : byte >> 4;
        code = signed_byte(entry < 8 ? (entry < 4 ? m.codebook[0] : m.codebook[1])
                                     : (entry < 12 ? m.codebook[2] : m.codebook[3]),
                           entry % 4);
        if (five && (block[16 + i % 4] >> i % 32 / 4 & 1) != 0)
            code = -1 - code;
    } else {
        code = int(codes[i]) - kQ8Zero;
    }
    return (m.d[row] * square_law(s)) * float(code);
}

/// Grid: rows. x[t] = the token's embedding, normed if there is a ln0.
__global__ void __launch_bounds__(kRowThreads) embed(DeviceMatrix emb, Batch batch, DeviceNorm ln0, Rows x) {
    RowSums& shared = *shared_memory<RowSums>();
    let_next_start();
    const int t = int(blockIdx.x), c = emb.k;
    float* row = x.data + size_t(t) * size_t(x.stride);
    const size_t token = size_t(batch.tokens[t]);
    for (int i = int(threadIdx.x); i < c; i += kRowThreads)
        row[i] = embedding_value(emb, token, i);
    if (!ln0.weight)
        return;
    __syncthreads();
    Moments m[2];
    row_moments(row, nullptr, c, shared, m);
    __syncthreads(); // before others' values change
    for (int i = int(threadIdx.x); i < c; i += kRowThreads)
        row[i] = fmaf((row[i] - m[0].mean) * m[0].scale, ln0.weight[i], ln0.bias[i]);
}

/// Token shifts of one row: into[i] = now + (previous - now) * (mix[i] + delta[i]). Without a mix it is now.
struct MixList {
    const float* mix[6];
    Rows delta[6]; ///< null: none (RWKV-6 only)
    Acts into[6];
    int count;
    int slices;    ///< blocks that share a row's channels
    int per_block; ///< mixes that a block makes
};

constexpr int kMixChannels = 4 * kRowThreads; ///< that a block of mix_rows takes at once

/// Four channels of a row from i on, 0 past its end. `kQuads`: 4 divides c, and 16 bytes are one load.
template <bool kQuads>
__device__ __forceinline__ void load_four(float (&to)[4], const float* row, int i, int c) {
    if constexpr (kQuads) {
        const float4 quad = i < c ? *reinterpret_cast<const float4*>(row + i) : float4{};
        to[0] = quad.x, to[1] = quad.y, to[2] = quad.z, to[3] = quad.w;
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            to[j] = i + j < c ? row[i + j] : 0.0f;
    }
}

/// Layer-norms rows of x and mixes each with the token before. Grid: slices of mixes, rows. The previous row
/// of a sequence's first is in its state, at `offset`; a row that ends a sequence is left in `normed`.
template <bool kQuads>
__global__ void __launch_bounds__(kRowThreads, 4)
    mix_rows(const __grid_constant__ MixList list, Rows x, DeviceNorm norm, Rows normed, Batch batch,
             size_t offset, int c) {
    RowSums& shared = *shared_memory<RowSums>();
    let_next_start();
    const int t = int(blockIdx.y), slice = int(blockIdx.x) % list.slices;
    const int first = int(blockIdx.x) / list.slices * list.per_block;
    const int end = first + list.per_block < list.count ? first + list.per_block : list.count;
    const int lane = int(threadIdx.x % 32), k_pad = list.into[first].k_pad;
    const int begin = slice * kMixChannels + int(threadIdx.x / 32) * 128, step = list.slices * kMixChannels;
    const bool mixes = list.mix[first] != nullptr;
    const bool keeps = first == 0 && normed.data && batch.last[t];
    const float* const row = x.data + size_t(t) * size_t(x.stride);
    const float* before = mixes && batch.first ? batch.first[t] : nullptr; // in the state
    if (before)
        before += offset;
    float weight[4], bias[4];
    load_four<kQuads>(weight, norm.weight, begin + 4 * lane, c);
    load_four<kQuads>(bias, norm.bias, begin + 4 * lane, c);
    wait_for_previous();
    const bool norms_before = mixes && !before;
    Moments m[2];
    row_moments(row, norms_before ? row - x.stride : nullptr, c, shared, m);
    if (norms_before)
        before = row - x.stride;
    // What a round takes comes with the round before.
    float value[4], earlier[4] = {};
    const auto load_row = [&](int i) {
        load_four<kQuads>(value, row, i, c);
        if (mixes)
            load_four<kQuads>(earlier, before, i, c);
    };
    load_row(begin + 4 * lane);
#pragma unroll 1
    for (int at = begin; at < k_pad; at += step) {
        const int i = at + 4 * lane;
        float share[4] = {}, now[4], gap[4];
        const auto load_share = [&](int which) {
            load_four<kQuads>(share, list.mix[which], i, c);
            const Rows& delta = list.delta[which];
            if (!delta.data)
                return;
            float more[4];
            load_four<kQuads>(more, delta.data + size_t(t) * size_t(delta.stride), i, c);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                share[j] = share[j] + more[j];
        };
        if (mixes)
            load_share(first);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const auto normal = [&](float v, const Moments& moments) {
                return i + j < c ? fmaf((v - moments.mean) * moments.scale, weight[j], bias[j]) : 0.0f;
            };
            now[j] = normal(value[j], m[0]);
            gap[j] = (norms_before ? normal(earlier[j], m[1]) : earlier[j]) - now[j];
        }
        if (at + step < k_pad) {
            load_four<kQuads>(weight, norm.weight, i + step, c);
            load_four<kQuads>(bias, norm.bias, i + step, c);
            load_row(i + step);
        }
#pragma unroll 1
        for (int which = first; which < end; ++which) {
            float mixed[4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
                mixed[j] = mixes ? fmaf(gap[j], share[j], now[j]) : now[j];
            if (which + 1 < end)
                load_share(which + 1);
            set_four(list.into[which], t, i, mixed, i < k_pad);
        }
        if (keeps)
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (i + j < c)
                    normed.data[size_t(t) * size_t(normed.stride) + size_t(i + j)] = now[j];
    }
}

/// f(sum, value) over the values of a chain of a row in shared memory, in order.
template <class F>
__device__ __forceinline__ float over_chain(const float* row, int chain, int c, F f) {
    constexpr int kAhead = 8;
    float sum = 0.0f;
    int i = chain;
#pragma unroll 1
    for (; i + (kAhead - 1) * kRowChains < c; i += kAhead * kRowChains) {
        float values[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j)
            values[j] = row[i + j * kRowChains];
#pragma unroll
        for (int j = 0; j < kAhead; ++j)
            sum = f(sum, values[j]);
    }
#pragma unroll 1
    for (; i < c; i += kRowChains)
        sum = f(sum, row[i]);
    return sum;
}

/// A block copies a row of c floats to shared memory, both aligned to 16 bytes where 4 divides c.
__device__ __forceinline__ void copy_row(float* to, const float* from, int c) {
    if (c % 4 != 0) {
        for (int i = int(threadIdx.x); i < c; i += kRowThreads)
            to[i] = from[i];
        return;
    }
    constexpr int kAhead = 4;
#pragma unroll 1
    for (int begin = int(threadIdx.x); begin < c / 4; begin += kAhead * kRowThreads) {
        float4 quads[kAhead];
        // past the end the first of these stands in: no branch between loads
        const auto place = [&](int j) {
            return begin + j * kRowThreads < c / 4 ? begin + j * kRowThreads : begin;
        };
#pragma unroll
        for (int j = 0; j < kAhead; ++j)
            quads[j] = reinterpret_cast<const float4*>(from)[place(j)];
#pragma unroll
        for (int j = 0; j < kAhead; ++j)
            reinterpret_cast<float4*>(to)[place(j)] = quads[j];
    }
}

constexpr int kWidestRow = (48 * 1024 - 2 * kRowChains * 4) / 4; ///< that mix_row takes

/// What mix_rows makes of the only row of a pass, for rows of up to kWidestRow channels. Grid: slices of 256
/// channels, mixes. All of the next kernel waits for it, and code that runs for the first time comes slowly:
/// so a block rehearses before it waits, with whatever its shared memory holds.
__global__ void __launch_bounds__(kRowThreads)
    mix_row(const __grid_constant__ MixList list, Rows x, DeviceNorm norm, Rows normed, Batch batch,
            size_t offset, int c) {
    float* chains = shared_memory<float>(); // of values, then of squares
    float* row = chains + 2 * kRowChains;
    let_next_start();
    const int thread = int(threadIdx.x), which = int(blockIdx.y), i = int(blockIdx.x) * kRowThreads + thread;
    const int group = i / kActGroup;
    Acts into = list.into[which];
    pin(into.f), pin(into.q), pin(into.scale), pin(into.mask);
    const Rows delta = list.delta[which];
    const float* mix = list.mix[which];
    float weight = 0.0f, bias = 0.0f, share = 0.0f, before = 0.0f;
    if (i < c) {
        weight = norm.weight[i];
        bias = norm.bias[i];
        if (mix) {
            share = mix[i];
            before = batch.first[0][offset + size_t(i)];
        }
    }
    int keeps = which == 0 && i < c && normed.data && batch.last[0];
    pin(weight), pin(bias), pin(share), pin(before), pin(keeps);
#pragma unroll 1
    for (bool live = !kernels_overlap();; live = true) {
        if (live) {
            wait_for_previous();
            copy_row(row, x.data, c);
            if (delta.data && i < c)
                share = share + delta.data[i];
        }
        __syncthreads();
        if (thread < kRowChains)
            chains[thread] = over_chain(row, thread, c, [](float sum, float value) { return sum + value; });
        __syncthreads();
        const float mean = fold_chains(chains) / float(c);
        if (thread < kRowChains)
            chains[kRowChains + thread] = over_chain(row, thread, c, [=](float sum, float value) {
                const float centred = value - mean;
                return fmaf(centred, centred, sum);
            });
        __syncthreads();
        const float scale = 1.0f / sqrtf(fold_chains(chains + kRowChains) / float(c) + kNormEps);
        const float now = i < c ? fmaf((row[i] - mean) * scale, weight, bias) : 0.0f;
        if (group < into.k_pad / kActGroup)
            set_group(into, 0, group, mix ? fmaf(before - now, share, now) : now, live);
        if (!live)
            continue;
        if (keeps)
            normed.data[i] = now;
        return;
    }
}

/// Slices of rows that become activations: slice i is from[t][i * k .. (i + 1) * k).
struct SliceList {
    Rows from;
    Acts into[5];
};

/// Grid: slices, rows.
__global__ void __launch_bounds__(kRowThreads) quantize_slices(const __grid_constant__ SliceList list) {
    const int which = int(blockIdx.x), t = int(blockIdx.y), lane = int(threadIdx.x % 32);
    const Acts& into = list.into[which];
    const float* from =
        list.from.data + size_t(t) * size_t(list.from.stride) + size_t(which) * size_t(into.k);
    for (int g = int(threadIdx.x / 32); g < into.k_pad / kActGroup; g += kRowThreads / 32) {
        const int i = g * kActGroup + lane;
        set_group(into, t, g, i < into.k ? from[i] : 0.0f);
    }
}

} // namespace rwkv::cuda
