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

constexpr int kScanKeys = kScanHead / 4; ///< of a column, that a lane owns

/// Where key j of a head lies: of each quarter of eight keys of the lower half the even ones, the odd ones,
/// then those of the upper half likewise; each is a load of 16 bytes for the lanes that own them.
__device__ __forceinline__ int scan_place(int j) {
    return j % 32 / 8 * kScanKeys + j / 32 * 8 + j % 2 * 4 + j % 8 / 2;
}

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

constexpr int kScanTokens = 8;  ///< that are brought to shared memory at once
constexpr int kScanColumns = 8; ///< of values, of a warp
constexpr int kScanRows = 6;    ///< of a token: r, k, w, b, a, v; in v7 w and a are the next token's
constexpr int kScanParts = kScanHead / kScanColumns;
constexpr size_t kScanShared = sizeof(float) * size_t(2 * kScanTokens * kScanRows * kScanHead);
static_assert(kScanShared <= size_t(48) << 10);

/// Outputs go to wkv.out.f. Four lanes own a column of the state, in registers: a quarter each, the even or
/// the odd keys of its lower or its upper half. So each of the two chains of a sum goes from one lane to
/// another halfway; both lanes do both halves, which mean something in their own turn only. What v7 removes
/// from a column is summed with the step before: it is all that a step waits for. Grid: heads times parts of
/// their columns (a warp each, as many as fit a block), sequences.
template <bool kIs7>
__global__ void __launch_bounds__(32 * kScanParts, 1) scan(const __grid_constant__ Scan p) {
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
    int warps = int(blockDim.x / 32);
    pin(warps);
    const int part = int(blockIdx.x) * warps + warp, head = part / kScanParts;
    const int quarter = lane / kScanColumns, upper = quarter / 2, odd = quarter % 2;
    const int column = part % kScanParts * kScanColumns + lane % kScanColumns;
    const Wkv& in = p.wkv;
    const Segment segment = in.batch.segments[blockIdx.y];
    const int end = segment.begin + segment.count;
    float* const shared = shared_memory<float>(); // [2][kScanTokens][kScanRows][kScanHead]

    // Half a warp brings every other of a token's rows, a lane 16 bytes of each.
    const bool second = lane >= 16;
    const int piece = lane % 16 * 4, ahead = kIs7 && !second ? 1 : 0;
    const Rows own[3] = {second ? in.k : in.r, second ? p.b : p.w, second || !kIs7 ? in.v : in.a};
    const char* from[3];
    int stride[3]; // in bytes
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        from[i] = reinterpret_cast<const char*>(own[i].data + head * kScanHead + piece);
        stride[i] = own[i].stride * int(sizeof(float));
    }
    const auto bring = [&](int first, float* buffer) {
#pragma unroll 1
        for (int i = warp; i < kScanTokens && first + i < end; i += warps) {
            const int t = first + i, next = t + ahead < end ? t + ahead : t;
            float* const to = buffer + (i * kScanRows + (second ? 1 : 0)) * kScanHead + piece;
            copy_later(to, from[0] + int64_t(t) * stride[0]);
            copy_later(to + 2 * kScanHead, from[1] + int64_t(next) * stride[1]);
            if (kIs7 || second)
                copy_later(to + 4 * kScanHead, from[2] + int64_t(next) * stride[2]);
        }
    };
    bring(segment.begin, shared);

    const auto other_half = [](float sum) { return __shfl_xor_sync(kAllLanes, sum, 2 * kScanColumns); };
    float* const memory = segment.state + in.offset + size_t(head) * kScanHead * kScanHead +
                          size_t((upper * (kScanHead / 2) + odd) * kScanHead + column);
    float state[kScanKeys], decayed[kScanKeys], removed = 0.0f; // decayed and removed: v7
#pragma unroll
    for (int i = 0; i < kScanKeys; ++i)
        state[i] = memory[2 * i * kScanHead];
    if constexpr (kIs7) {
        const auto first = [&](const Rows& rows, int i) {
            return rows.data[size_t(segment.begin) * size_t(rows.stride) +
                             size_t(head * kScanHead + i / 4 * kScanKeys + quarter * 4 + i % 4)];
        };
#pragma unroll
        for (int i = 0; i < kScanKeys; ++i) {
            decayed[i] = first(p.w, i) * state[i];
            removed = fmaf(state[i], first(in.a, i), removed);
        }
        removed = other_half(removed);
#pragma unroll
        for (int i = 0; i < kScanKeys; ++i)
            removed = fmaf(state[i], first(in.a, i), removed);
    }

    float *now = shared, *coming = shared + kScanTokens * kScanRows * kScanHead;
    float* out = in.out.f + size_t(segment.begin) * size_t(in.out.k_pad) + size_t(head * kScanHead + column);
    for (int first = segment.begin; first < end; first += kScanTokens) {
        finish_copies();
        __syncthreads();
        bring(first + kScanTokens, coming);
        const int count = end - first < kScanTokens ? end - first : kScanTokens;
        const float* token = now + quarter * 4;
        const float* values = now + 5 * kScanHead + column;
#pragma unroll 4
        for (int t = 0; t < count; ++t) {
            const float value = values[0];
            const auto four = [&](int row, int i) {
                return *reinterpret_cast<const float4*>(token + row * kScanHead + i * kScanKeys);
            };
            float gone = 0.0f;
            if constexpr (kIs7)
                gone = __shfl_sync(kAllLanes, removed, lane % kScanColumns + 2 * kScanColumns) +
                       __shfl_sync(kAllLanes, removed, lane % kScanColumns + 3 * kScanColumns);
            float r[kScanKeys], a[kScanKeys], read[kScanKeys], sum = 0.0f;
            removed = 0.0f;
#pragma unroll
            for (int i = 0; i < kScanKeys; i += 4) {
                const float4 k4 = four(1, i / 4), b4 = four(3, i / 4);
                const auto step = [&](int j, float r_j, float k, float w, float b, float a_j) {
                    r[j] = r_j;
                    if constexpr (kIs7) {
                        a[j] = a_j;
                        read[j] = state[j] = fmaf(k, value, fmaf(b, gone, decayed[j]));
                        removed = fmaf(state[j], a_j, removed);
                    } else {
                        read[j] = fmaf(b, value, state[j]);
                        state[j] = fmaf(k, value, w * state[j]);
                    }
                    sum = fmaf(r_j, read[j], sum);
                };
                const float4 r4 = four(0, i / 4), w4 = kIs7 ? float4{} : four(2, i / 4),
                             a4 = kIs7 ? four(4, i / 4) : float4{};
                step(i, r4.x, k4.x, w4.x, b4.x, a4.x);
                step(i + 1, r4.y, k4.y, w4.y, b4.y, a4.y);
                step(i + 2, r4.z, k4.z, w4.z, b4.z, a4.z);
                step(i + 3, r4.w, k4.w, w4.w, b4.w, a4.w);
            }
            if constexpr (kIs7)
                removed = other_half(removed);
            sum = other_half(sum);
#pragma unroll
            for (int i = 0; i < kScanKeys; ++i) {
                if constexpr (kIs7)
                    removed = fmaf(state[i], a[i], removed);
                sum = fmaf(r[i], read[i], sum);
            }
            if constexpr (kIs7)
#pragma unroll
                for (int i = 0; i < kScanKeys; i += 4) {
                    const float4 w4 = four(2, i / 4);
                    decayed[i] = w4.x * state[i];
                    decayed[i + 1] = w4.y * state[i + 1];
                    decayed[i + 2] = w4.z * state[i + 2];
                    decayed[i + 3] = w4.w * state[i + 3];
                }
            sum = sum + __shfl_xor_sync(kAllLanes, sum, kScanColumns);
            if (quarter == 2)
                *out = sum;
            out += in.out.k_pad;
            token += kScanRows * kScanHead, values += kScanRows * kScanHead;
        }
        float* const used = now;
        now = coming, coming = used;
    }
#pragma unroll
    for (int i = 0; i < kScanKeys; ++i)
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
