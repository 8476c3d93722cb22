// RWKV-7's recurrence for a single token together with the second low-rank factors that it waits for: one
// launch instead of two. The arithmetic of vector_products and wkv7, for heads of 64 channels.
#pragma once

#include "cuda/matvec.cuh"
#include "cuda/wkv.cuh"

namespace rwkv::cuda {

constexpr int kStepHead = 64;
constexpr int kFactorTiles = kStepHead / kTileRows, kFactorWarps = 4 * kFactorTiles; ///< a warp a tile
constexpr int kStateWarps = 4, kChannelWarps = 2;
constexpr int kStepThreads = 32 * (kFactorWarps + kStateWarps + kChannelWarps);

/// Second factors in tiles; without v_gate in the first block. Their outputs go nowhere but into the
/// recurrence.
struct SecondFactors {
    Product w, a, g, v_gate;
};

struct StepShared {
    float outputs[4][kStepHead]; ///< w, a, g, v_gate
    float r[kStepHead], k[kStepHead], kk[kStepHead], r_k[kStepHead], value[kStepHead], y[kStepHead];
    alignas(16) float by_chain[5][kStepHead]; ///< r, k, w, -kk, kk rate: even keys first
    alignas(16) float terms[kFactorWarps][8 * kTermPair];
};
static_assert(sizeof(StepShared) <= kSharedLimit);

/// A tile of a product, by a warp. Its first groups are unpacked before the inputs are there.
template <int kForm, int kGroup>
struct WarpTile {
    static constexpr int kTerms = kActGroup / kGroup;
    LaneWeights<kForm, kGroup> weights;
    float row_scale; ///< of lanes 0 to 15

    __device__ __forceinline__ void load(const Product& p, int tile, int begin) {
        // Past the last group that one stands in; nobody adds its sums.
        const int lane = int(threadIdx.x % 32), groups = p.w.k_pad / kActGroup;
        weights.load(p.w, unsigned(tile * groups + least(begin + lane / 4, groups - 1)), lane % 4 * 4);
        weights.unpack(p.w);
        row_scale = p.w.d[tile * kTileRows + row_at(lane % kTileRows)];
    }
    /// Lanes 0 to 15 get the outputs of the rows at their places.
    __device__ __forceinline__ float product(const Product& p, int tile, float* terms) {
        const int lane = int(threadIdx.x % 32), groups = p.w.k_pad / kActGroup;
        float total = 0.0f;
        for (int begin = 0; begin < groups; begin += 8) {
            if (begin > 0)
                load(p, tile, begin);
            const int g = least(begin + lane / 4, groups - 1);
            weights.sum(p.x.q + g * kActGroup, p.x.scale[g], terms, lane / 4, lane % 4 * 4);
            __syncwarp();
            total = add_terms<2>(total, terms + lane % kTileRows * 4, least(groups - begin, 8) * kTerms);
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
        outputs[row_at(lane)] = y;
}

/// The state of a head, a lane a chain of keys of a column.
__device__ __forceinline__ void step_state(const Wkv& p, int warp, StepShared& shared) {
    constexpr int n = kStepHead, kKeys = n / 2;
    const int lane = int(threadIdx.x % 32), column = warp * 16 + lane % 16, chain = lane / 16;
    float* state = p.batch.segments[0].state + p.offset + size_t(blockIdx.x) * n * n + size_t(column);
    float s[kKeys]; // the token before left it; nobody writes it meanwhile
#pragma unroll
    for (int j = 0; j < kKeys; ++j)
        s[j] = state[(2 * j + chain) * n];
    wait_for_previous();
    __syncthreads(); // the second factors
    __syncthreads(); // the vectors
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
    __syncthreads(); // the outputs
#pragma unroll
    for (int j = 0; j < kKeys; ++j)
        state[(2 * j + chain) * n] = s[j];
}

/// What is done per channel of a head, a lane each.
__device__ __forceinline__ void step_channels(const Wkv& p, int warp, StepShared& shared) {
    constexpr int n = kStepHead, kKeys = n / 2;
    const int i = warp * 32 + int(threadIdx.x % 32), c = int(blockIdx.x) * n + i;
    const bool gated = p.v_gate.data;
    float k_k = p.k_k[c], k_a = p.k_a[c], a0 = p.a0[c], w0 = p.w0[c], v0 = gated ? p.v0[c] : 0.0f,
          ln_weight = p.ln_x.weight[c], ln_bias = p.ln_x.bias[c];
    shared.r_k[i] = p.r_k[c];
    pin(k_k), pin(k_a), pin(a0), pin(w0), pin(v0), pin(ln_weight), pin(ln_bias);
    wait_for_previous();
    const float receptance = p.r.data[c], first = gated ? p.v_first.data[c] : 0.0f;
    float key = p.k.data[c], value = p.v.data[c];
    shared.r[i] = receptance;
    shared.kk[i] = key * k_k;
    __syncthreads();                                                                // the second factors
    const float decay = exp_of(-0.606531f * sigmoid_of(w0 + shared.outputs[0][i])); // 0.606531 = e^(-1/2)
    const float rate = sigmoid_of(a0 + shared.outputs[1][i]), gate = shared.outputs[2][i];
    if (gated)
        value = fmaf(first - value, sigmoid_of(v0 + shared.outputs[3][i]), value);
    const float* kk = shared.kk;
    const float norm = sqrtf(sum16(n, [=](float sum, int j) { return fmaf(kk[j], kk[j], sum); }));
    const float direction = kk[i] / (norm > 1e-12f ? norm : 1e-12f);
    key = key * fmaf(rate - 1.0f, k_a, 1.0f);
    shared.k[i] = key;
    shared.value[i] = value;
    const int at = i % 2 * kKeys + i / 2;
    shared.by_chain[0][at] = receptance;
    shared.by_chain[1][at] = key;
    shared.by_chain[2][at] = decay;
    shared.by_chain[3][at] = 0.0f - direction;
    shared.by_chain[4][at] = direction * rate;
    __syncthreads(); // the vectors
    const float *r = shared.r, *k = shared.k, *r_k = shared.r_k;
    const float bonus = sum16(n, [=](float sum, int j) { return fmaf(r[j] * k[j], r_k[j], sum); });
    __syncthreads(); // the outputs
    const Moments m = moments(shared.y, p.eps, n);
    const float y = fmaf((shared.y[i] - m.mean) * m.scale, ln_weight, ln_bias);
    store_output(p, 0, c, true, fmaf(bonus, value, y) * gate);
}

/// Grid: heads. One sequence, one token. Sixteen warps make a tile of the second factors each; then four
/// update the state and two do what is done per channel. Each has registers for its own part only.
__global__ void __launch_bounds__(kStepThreads)
    step7(const __grid_constant__ SecondFactors factors, const __grid_constant__ Wkv p) {
    StepShared& shared = *shared_memory<StepShared>();
    let_next_start();
    const int warp = int(threadIdx.x / 32);
    if (warp >= kFactorWarps + kStateWarps)
        return step_channels(p, warp - kFactorWarps - kStateWarps, shared);
    if (warp >= kFactorWarps)
        return step_state(p, warp - kFactorWarps, shared);
    const int which = warp / kFactorTiles, tile = int(blockIdx.x) * kFactorTiles + warp % kFactorTiles;
    const Product& factor = which == 0   ? factors.w
                            : which == 1 ? factors.a
                            : which == 2 ? factors.g
                                         : factors.v_gate;
    float* outputs = shared.outputs[which] + warp % kFactorTiles * kTileRows;
    if (which == 3 && !p.v_gate.data)
        wait_for_previous();
    else
        with_format(factor.w, [&]<int kForm, int kGroup>() {
            second_factor<kForm, kGroup>(factor, tile, shared.terms[warp], outputs);
        });
    __syncthreads(); // the second factors
    __syncthreads();
    __syncthreads();
}

} // namespace rwkv::cuda
