// RWKV-5 to 7's recurrence over many tokens, for the usual head size, in three launches. `prepare` computes
// what each step takes, all tokens and heads at once; `scan` does nothing but step after step; `finish` norms
// and gates its outputs, again all at once. The arithmetic of wkv.cuh, value by value.
#pragma once

#include "cuda/tensor.cuh"
#include "cuda/wkv.cuh"

namespace rwkv::cuda {

constexpr int kPairThreads = 256, kPairWarps = kPairThreads / 32;

/// Between the launches. What is [rows, C] and goes by key lies there as scan_place says, head by head.
struct Scan {
    Wkv wkv;      ///< r, k, v, a are written over
    Rows w;       ///< [rows, C] decays; v6, v7: in the place of wkv.w
    Rows b;       ///< [rows, C] v7: b; v5, v6: bonus times key
    float* bonus; ///< [rows, heads] v7: sum of r k r_k
    int rows, heads;
};

/// Where key j of a head lies: of each eight keys first the even ones, then the odd ones, each a load of 16
/// bytes for the lanes that have that chain.
__device__ __forceinline__ int scan_place(int j) { return j / 8 * 8 + j % 2 * 4 + j % 8 / 2; }

/// A warp's lanes hold channels lane and lane + 32 of a head. The values of the chain of sum16 that a lane
/// takes part in, in its order.
struct Chain {
    float value[kScanHead / 16];
    __device__ __forceinline__ Chain(float first, float second) {
        const float other_first = __shfl_xor_sync(kAllLanes, first, 16),
                    other_second = __shfl_xor_sync(kAllLanes, second, 16);
        const bool upper = threadIdx.x % 32 >= 16;
        value[0] = upper ? other_first : first;
        value[1] = upper ? first : other_first;
        value[2] = upper ? other_second : second;
        value[3] = upper ? second : other_second;
    }
    /// sum16 over the head.
    template <class F>
    __device__ __forceinline__ float sum(F f) const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kScanHead / 16; ++i)
            sum = f(sum, i);
        return fold16(sum);
    }
};

/// Grid: tokens times heads, a warp each.
template <bool kIs7>
__global__ void __launch_bounds__(kPairThreads) prepare_scan(const __grid_constant__ Scan p) {
    const int pair = int(blockIdx.x) * kPairWarps + int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
    if (pair >= p.rows * p.heads)
        return;
    const int t = pair / p.heads, head = pair % p.heads, first = head * kScanHead + lane;
    const auto at = [&](const Rows& rows, int c) -> float& {
        return rows.data[size_t(t) * size_t(rows.stride) + size_t(c)];
    };
    const Wkv& in = p.wkv;
    float r[2], k[2], w[2], a[2] = {}, b[2];
    if constexpr (kIs7) {
        float rate[2], scaled[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int c = first + 32 * i;
            r[i] = at(in.r, c), k[i] = at(in.k, c);
            w[i] = exp_of(-0.606531f * sigmoid_of(in.w0[c] + at(in.w, c))); // 0.606531 = e^(-1/2)
            rate[i] = sigmoid_of(in.a0[c] + at(in.a, c));
            if (in.v_gate.data) {
                float& value = at(in.v, c);
                value = fmaf(at(in.v_first, c) - value, sigmoid_of(in.v0[c] + at(in.v_gate, c)), value);
            }
            scaled[i] = k[i] * in.k_k[c];
        }
        const Chain kk(scaled[0], scaled[1]);
        const float norm =
            sqrtf(kk.sum([&](float sum, int i) { return fmaf(kk.value[i], kk.value[i], sum); }));
        float product[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float direction = scaled[i] / (norm > 1e-12f ? norm : 1e-12f);
            a[i] = 0.0f - direction;
            b[i] = direction * rate[i];
            k[i] = k[i] * fmaf(rate[i] - 1.0f, in.k_a[first + 32 * i], 1.0f);
            product[i] = r[i] * k[i];
        }
        const Chain rk(product[0], product[1]);
        const float* r_k = in.r_k + head * kScanHead + lane % 16;
        const float bonus = rk.sum([&](float sum, int i) { return fmaf(rk.value[i], r_k[16 * i], sum); });
        if (lane == 0)
            p.bonus[pair] = bonus;
    } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int c = first + 32 * i;
            r[i] = at(in.r, c), k[i] = at(in.k, c);
            w[i] = in.w.data ? exp_of(0.0f - exp_of(in.decay[c] + at(in.w, c))) : in.decay[c];
            b[i] = in.bonus[c] * k[i];
        }
    }
    __syncwarp(); // what was read is written over, in another order
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int c = head * kScanHead + scan_place(lane + 32 * i);
        at(in.r, c) = r[i], at(in.k, c) = k[i], at(p.w, c) = w[i], at(p.b, c) = b[i];
        if constexpr (kIs7)
            at(in.a, c) = a[i];
    }
}

constexpr int kScanTokens = 8;   ///< that are brought to shared memory at once
constexpr int kScanColumns = 16; ///< of values, of a warp
constexpr int kScanRows = 6;     ///< of a token: r, k, w, b, then a of the token after and v
constexpr int kScanParts = kScanHead / kScanColumns;
constexpr size_t kScanShared = sizeof(float) * size_t(2 * kScanTokens * kScanRows * kScanHead);
static_assert(kScanShared <= size_t(48) << 10);

/// Outputs go to wkv.out.f. Two neighbouring lanes own a column of the state, one its even and one its odd
/// keys, in registers. What v7 removes from a column is summed with the step before: then the two chains of a
/// step do not wait for each other. Grid: heads times parts of their columns (a warp each, as many as fit a
/// block), sequences.
template <bool kIs7>
__global__ void __launch_bounds__(32 * kScanParts, 1) scan(const __grid_constant__ Scan p) {
    constexpr int kKeys = kScanHead / 2;
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), warps = int(blockDim.x / 32);
    const int part = int(blockIdx.x) * warps + warp, head = part / kScanParts, odd = lane % 2;
    const int column = part % kScanParts * kScanColumns + lane / 2;
    const Wkv& in = p.wkv;
    const Segment segment = in.batch.segments[blockIdx.y];
    const int end = segment.begin + segment.count;
    float* const shared = shared_memory<float>(); // [2][kScanTokens][kScanRows][kScanHead]

    // A lane brings 16 bytes of three of a token's rows.
    const int quarter = lane % 16 * 4;
    const auto bring = [&](int first, float* buffer) {
        for (int i = warp; i < kScanTokens && first + i < end; i += warps) {
            const int t = first + i, next = t + 1 < end ? t + 1 : t;
            const auto row = [&](int which, const Rows& from, int token) {
                copy_later(buffer + (i * kScanRows + which) * kScanHead + quarter,
                           from.data + size_t(token) * size_t(from.stride) +
                               size_t(head * kScanHead + quarter));
            };
            if (lane < 16) {
                row(0, in.r, t);
                row(2, p.w, t);
                if constexpr (kIs7)
                    row(4, in.a, next);
            } else {
                row(1, in.k, t);
                row(3, p.b, t);
                row(5, in.v, t);
            }
        }
    };
    bring(segment.begin, shared);

    float* const memory =
        segment.state + in.offset + size_t(head) * kScanHead * kScanHead + size_t(odd * kScanHead + column);
    float state[kKeys], removed = 0.0f;
#pragma unroll
    for (int i = 0; i < kKeys; ++i)
        state[i] = memory[2 * i * kScanHead];
    if constexpr (kIs7) {
        const float* a = in.a.data + size_t(segment.begin) * size_t(in.a.stride) + head * kScanHead + odd * 4;
#pragma unroll
        for (int i = 0; i < kKeys; ++i)
            removed = fmaf(state[i], a[i / 4 * 8 + i % 4], removed);
    }

    float *now = shared, *coming = shared + kScanTokens * kScanRows * kScanHead;
    for (int first = segment.begin; first < end; first += kScanTokens) {
        finish_copies();
        __syncthreads();
        bring(first + kScanTokens, coming);
        const int count = end - first < kScanTokens ? end - first : kScanTokens;
#pragma unroll 2
        for (int i = 0; i < count; ++i) {
            const float* token = now + i * kScanRows * kScanHead;
            const float value = token[5 * kScanHead + column];
            const auto four = [&](int row, int quad) {
                return *reinterpret_cast<const float4*>(token + row * kScanHead + quad * 8 + odd * 4);
            };
            const float gone = kIs7 ? removed + __shfl_xor_sync(kAllLanes, removed, 1) : 0.0f;
            float sum = 0.0f;
            removed = 0.0f;
#pragma unroll
            for (int quad = 0; quad < kKeys / 4; ++quad) {
                const float4 r4 = four(0, quad), k4 = four(1, quad), w4 = four(2, quad), b4 = four(3, quad);
                const float4 a4 = kIs7 ? four(4, quad) : float4{};
                const auto step = [&](float& s, float r, float k, float w, float b, float a) {
                    if constexpr (kIs7) {
                        s = fmaf(k, value, fmaf(b, gone, w * s));
                        sum = fmaf(r, s, sum);
                        removed = fmaf(s, a, removed);
                    } else {
                        sum = fmaf(r, fmaf(b, value, s), sum);
                        s = fmaf(k, value, w * s);
                    }
                };
                step(state[4 * quad], r4.x, k4.x, w4.x, b4.x, a4.x);
                step(state[4 * quad + 1], r4.y, k4.y, w4.y, b4.y, a4.y);
                step(state[4 * quad + 2], r4.z, k4.z, w4.z, b4.z, a4.z);
                step(state[4 * quad + 3], r4.w, k4.w, w4.w, b4.w, a4.w);
            }
            sum = sum + __shfl_xor_sync(kAllLanes, sum, 1);
            if (!odd)
                in.out.f[size_t(first + i) * size_t(in.out.k_pad) + size_t(head * kScanHead + column)] = sum;
        }
        float* const used = now;
        now = coming, coming = used;
    }
#pragma unroll
    for (int i = 0; i < kKeys; ++i)
        memory[2 * i * kScanHead] = state[i];
}

/// Norm, bonus and gate of wkv.out.f, in place; and its integers. Grid: tokens times heads, a warp each.
template <bool kIs7>
__global__ void __launch_bounds__(kPairThreads) finish_scan(const __grid_constant__ Scan p) {
    const int pair = int(blockIdx.x) * kPairWarps + int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
    if (pair >= p.rows * p.heads)
        return;
    const int t = pair / p.heads, head = pair % p.heads, first = head * kScanHead + lane;
    const Wkv& in = p.wkv;
    const auto at = [&](const Rows& rows, int c) {
        return rows.data[size_t(t) * size_t(rows.stride) + size_t(c)];
    };
    const float* row = in.out.f + size_t(t) * size_t(in.out.k_pad) + first;
    const float y[2] = {row[0], row[32]};
    const Chain chain(y[0], y[1]);
    const float mean = chain.sum([&](float sum, int i) { return sum + chain.value[i]; }) / float(kScanHead);
    const float squares = chain.sum([&](float sum, int i) {
        const float centred = chain.value[i] - mean;
        return fmaf(centred, centred, sum);
    });
    const float scale = 1.0f / sqrtf(squares / float(kScanHead) + in.eps);
    const float bonus = kIs7 ? p.bonus[pair] : 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int c = first + 32 * i;
        float out = fmaf((y[i] - mean) * scale, in.ln_x.weight[c], in.ln_x.bias[c]);
        if constexpr (kIs7)
            out = fmaf(bonus, at(in.v, c), out) * at(in.g, c);
        else if (in.g.data)
            out = out * at(in.g, c);
        set_group(in.out, t, c / kActGroup, out);
    }
}

} // namespace rwkv::cuda
