// RWKV-7's recurrence for a single token together with the second low-rank factors that it waits for: one
// launch instead of two. The arithmetic of vector_products and wkv7, for heads of 64 channels.
#pragma once

#include "cuda/matvec.cuh"
#include "cuda/wkv.cuh"

namespace rwkv::cuda {

constexpr int kStepHead = 64, kStepThreads = 512;

/// Second factors in tiles; without v_gate in the first block. Their outputs go nowhere but into the
/// recurrence.
struct SecondFactors {
    Product w, a, g, v_gate;
};

struct StepShared {
    float outputs[4][kStepHead]; ///< w, a, g, v_gate
    float r[kStepHead], k[kStepHead], kk[kStepHead], r_k[kStepHead], value[kStepHead], y[kStepHead];
    alignas(16) float by_chain[5][kStepHead]; ///< r, k, w, -kk, kk rate: even keys first
    alignas(16) float terms[kStepThreads / 32][8 * 2 * kVectorPitch];
};

/// A tile of a product, by a warp. Its first groups are unpacked before the inputs are there.
template <int kForm, int kGroup>
struct WarpTile {
    static constexpr int kTerms = kActGroup / kGroup;
    LaneWeights<kForm, kGroup> weights;
    float row_scale; ///< of lanes 0 to 15

    __device__ __forceinline__ void load(const Product& p, int tile, int begin) {
        const int lane = int(threadIdx.x % 32), g = begin + lane / 4;
        const int groups = p.w.k_pad / kActGroup;
        if (g < groups)
            weights.load(p.w, unsigned(tile * groups + g), lane % 4 * 4);
        weights.unpack(p.w);
        row_scale = p.w.d[tile * kTileRows + lane % kTileRows];
    }
    /// Lanes 0 to 15 get their row's output.
    __device__ __forceinline__ float product(const Product& p, int tile, float* terms) {
        const int lane = int(threadIdx.x % 32), groups = p.w.k_pad / kActGroup;
        float total = 0.0f;
        for (int begin = 0; begin < groups; begin += 8) {
            if (begin > 0)
                load(p, tile, begin);
            const int g = begin + lane / 4;
            if (g < groups)
                weights.sum(p.x.q + g * kActGroup, p.x.scale[g],
                            terms + lane / 4 * kTerms * kVectorPitch + lane % 4 * 8);
            __syncwarp();
            total = add_terms(total, terms + lane % kTileRows * 2, least(groups - begin, 8) * kTerms);
            __syncwarp();
        }
        return total * row_scale;
    }
};

/// One warp's tile of the second factors, to `outputs`; waits for the kernels before.
template <int kForm, int kGroup>
__device__ __forceinline__ void second_factor(const Product& p, int tile, float* terms, float* outputs) {
    const int lane = int(threadIdx.x % 32);
    WarpTile<kForm, kGroup> work;
    work.load(p, tile, 0);
    wait_for_previous();
    const float y = work.product(p, tile, terms);
    if (lane < kTileRows)
        outputs[lane] = y;
}

/// Grid: heads. One sequence, one token. Each warp makes a tile of the second factors; then four warps update
/// the state, a lane a chain of keys of a column, and two warps do what is done per channel.
__global__ void __launch_bounds__(kStepThreads)
    step7(const __grid_constant__ SecondFactors factors, const __grid_constant__ Wkv p) {
    constexpr int n = kStepHead, kTiles = n / kTileRows, kKeys = n / 2, kStateWarps = 4;
    static_assert(kStepThreads / 32 == 4 * kTiles);
    StepShared& shared = *shared_memory<StepShared>();
    let_next_start();
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), head = int(blockIdx.x);
    const bool has_state = warp < kStateWarps, has_channel = warp == kStateWarps || warp == kStateWarps + 1;
    const Segment segment = p.batch.segments[0];
    const int column = warp * 16 + lane % 16, chain = lane / 16; // of the state
    float* state = segment.state + p.offset + size_t(head) * n * n + size_t(column);
    float s[kKeys];
    if (has_state) // the token before left it; nobody writes it meanwhile
#pragma unroll
        for (int j = 0; j < kKeys; ++j)
            s[j] = state[(2 * j + chain) * n];
    const int i = (warp - kStateWarps) * 32 + lane, c = head * n + i; // the channel
    float k_k = 0, k_a = 0, a0 = 0, w0 = 0, v0 = 0, ln_weight = 0, ln_bias = 0;
    if (has_channel) {
        k_k = p.k_k[c], k_a = p.k_a[c], a0 = p.a0[c], w0 = p.w0[c];
        v0 = p.v_gate.data ? p.v0[c] : 0.0f;
        ln_weight = p.ln_x.weight[c], ln_bias = p.ln_x.bias[c];
        shared.r_k[i] = p.r_k[c];
    }
    const int which = warp / kTiles, tile = head * kTiles + warp % kTiles;
    const Product& factor = which == 0   ? factors.w
                            : which == 1 ? factors.a
                            : which == 2 ? factors.g
                                         : factors.v_gate;
    float* outputs = shared.outputs[which] + warp % kTiles * kTileRows;
    if (which == 3 && !p.v_gate.data)
        wait_for_previous();
    else
        with_format(factor.w, [&]<int kForm, int kGroup>() {
            second_factor<kForm, kGroup>(factor, tile, shared.terms[warp], outputs);
        });
    float receptance = 0, key = 0, value = 0, first = 0, gate = 0, bonus = 0;
    if (has_channel) {
        receptance = p.r.data[c], key = p.k.data[c], value = p.v.data[c];
        first = p.v_gate.data ? p.v_first.data[c] : 0.0f;
        shared.kk[i] = key * k_k;
    }
    __syncthreads();
    if (has_channel) {
        const float decay = exp_of(-0.606531f * sigmoid_of(w0 + shared.outputs[0][i])); // 0.606531 = e^(-1/2)
        const float rate = sigmoid_of(a0 + shared.outputs[1][i]);
        gate = shared.outputs[2][i];
        if (p.v_gate.data)
            value = fmaf(first - value, sigmoid_of(v0 + shared.outputs[3][i]), value);
        const float* kk = shared.kk;
        const float norm = sqrtf(sum16(n, [=](float sum, int j) { return fmaf(kk[j], kk[j], sum); }));
        const float direction = kk[i] / (norm > 1e-12f ? norm : 1e-12f);
        key = key * fmaf(rate - 1.0f, k_a, 1.0f);
        shared.r[i] = receptance;
        shared.k[i] = key;
        shared.value[i] = value;
        const int at = i % 2 * kKeys + i / 2;
        shared.by_chain[0][at] = receptance;
        shared.by_chain[1][at] = key;
        shared.by_chain[2][at] = decay;
        shared.by_chain[3][at] = 0.0f - direction;
        shared.by_chain[4][at] = direction * rate;
    }
    __syncthreads();
    if (has_state) {
        const float my_value = shared.value[column];
        const auto quad = [&](int vector, int j) {
            return *reinterpret_cast<const float4*>(shared.by_chain[vector] + chain * kKeys + j);
        };
        float removed = 0.0f, sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kKeys; j += 4) {
            const float4 a = quad(3, j);
            removed = fmaf(s[j], a.x, removed);
            removed = fmaf(s[j + 1], a.y, removed);
            removed = fmaf(s[j + 2], a.z, removed);
            removed = fmaf(s[j + 3], a.w, removed);
        }
        const float gone = removed + __shfl_xor_sync(kAllLanes, removed, 16);
#pragma unroll
        for (int j = 0; j < kKeys; j += 4) {
            const float4 r = quad(0, j), k = quad(1, j), w = quad(2, j), b = quad(4, j);
            const auto update = [&](float& x, float r_j, float k_j, float w_j, float b_j) {
                x = fmaf(k_j, my_value, fmaf(b_j, gone, w_j * x));
                sum = fmaf(r_j, x, sum);
            };
            update(s[j], r.x, k.x, w.x, b.x);
            update(s[j + 1], r.y, k.y, w.y, b.y);
            update(s[j + 2], r.z, k.z, w.z, b.z);
            update(s[j + 3], r.w, k.w, w.w, b.w);
        }
        const float y = sum + __shfl_xor_sync(kAllLanes, sum, 16);
        if (chain == 0)
            shared.y[column] = y;
    } else if (has_channel) {
        const float *r = shared.r, *k = shared.k, *r_k = shared.r_k;
        bonus = sum16(n, [=](float sum, int j) { return fmaf(r[j] * k[j], r_k[j], sum); });
    }
    __syncthreads();
    if (has_state) {
#pragma unroll
        for (int j = 0; j < kKeys; ++j)
            state[(2 * j + chain) * n] = s[j];
    } else if (has_channel) {
        const Moments m = moments(shared.y, p.eps, n);
        const float y = fmaf((shared.y[i] - m.mean) * m.scale, ln_weight, ln_bias);
        store_output(p, 0, c, true, fmaf(bonus, value, y) * gate);
    }
}

} // namespace rwkv::cuda
