// The recurrences, with what stands around them: one block per head and sequence, one thread per value
// channel, which owns a column of the head's state (in registers for the common head size) and walks the
// sequence's tokens. Sums over key channels are taken in two chains, even and odd keys, as on the CPU.
#pragma once

#include "cuda/math.cuh"

namespace rwkv::cuda {

/// The state of one value channel: n floats at a stride of n. kN = 0: any n, kept where it is.
template <int kN>
struct Column {
    float* memory;
    int n;
    float value[kN > 0 ? kN : 1];

    __device__ __forceinline__ Column(float* head, int head_size, bool used) : memory(head), n(head_size) {
        if constexpr (kN > 0)
#pragma unroll
            for (int j = 0; j < kN; ++j)
                value[j] = used ? memory[j * kN] : 0.0f;
    }
    __device__ __forceinline__ float get(int j) const {
        if constexpr (kN > 0)
            return value[j];
        else
            return memory[size_t(j) * size_t(n)];
    }
    __device__ __forceinline__ void set(int j, float x) {
        if constexpr (kN > 0)
            value[j] = x;
        else
            memory[size_t(j) * size_t(n)] = x;
    }
    __device__ __forceinline__ void save() {
        if constexpr (kN > 0)
#pragma unroll
            for (int j = 0; j < kN; ++j)
                memory[j * kN] = value[j];
    }
};

/// f(j, chain) over the keys in pairs; with a known n all of it is unrolled.
template <int kN, class F>
__device__ __forceinline__ void each_key(int n, F f) {
    if constexpr (kN > 0) {
#pragma unroll
        for (int j = 0; j < kN; j += 2) {
            f(j, 0);
            f(j + 1, 1);
        }
    } else {
        for (int j = 0; j + 1 < n; j += 2) { // the chain is a constant, so that its sum stays in a register
            f(j, 0);
            f(j + 1, 1);
        }
        if (n % 2 == 1)
            f(n - 1, 0);
    }
}

struct Wkv {
    Rows r, k, v, w, a, g, v_gate, v_first;      ///< [rows, C]; null where the version has none
    const float *decay, *bonus;                  ///< v4 to v6, per channel
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k; ///< v7
    DeviceNorm ln_x;
    float eps;
    Acts out; ///< floats are always written; integers too where a head is a multiple of 32 channels
    Batch batch;
    size_t offset; ///< of the layer's recurrence in a state
    int n;         ///< head size; v4: C
};

/// One token's output of a head becomes activations.
__device__ __forceinline__ void store_output(const Wkv& p, int t, int channel, bool used, float y) {
    if (p.n % kActGroup == 0)
        set_group(p.out, t, channel / kActGroup, y);
    else if (used)
        p.out.f[size_t(t) * size_t(p.out.k_pad) + size_t(channel)] = y;
}

/// RWKV-7 (arXiv 2503.14456): sa = sum_j S_j a_j;  S_j = w_j S_j + b_j sa + k_j v;  y = sum_j r_j S_j.
/// Grid: heads, sequences.
template <int kN>
__global__ void __launch_bounds__(kN > 0 ? kN : 1024) wkv7(const __grid_constant__ Wkv p) {
    const int n = kN > 0 ? kN : p.n, i = int(threadIdx.x), head = int(blockIdx.x), c = head * n + i;
    const int pad = int(blockDim.x);
    const bool used = i < n;
    float* r = shared_memory<float>(); // eight arrays [pad]
    float *k = r + pad, *w = k + pad, *a = w + pad, *b = a + pad, *y = b + pad, *kk = y + pad,
          *r_k = kk + pad;
    const Segment segment = p.batch.segments[blockIdx.y];
    Column<kN> state(segment.state + p.offset + size_t(head) * size_t(n) * size_t(n) + size_t(i), n, used);
    float k_k = 0, k_a = 0, a0 = 0, w0 = 0, v0 = 0, ln_weight = 0, ln_bias = 0;
    if (used) {
        k_k = p.k_k[c], k_a = p.k_a[c], a0 = p.a0[c], w0 = p.w0[c];
        v0 = p.v_gate.data ? p.v0[c] : 0.0f;
        ln_weight = p.ln_x.weight[c], ln_bias = p.ln_x.bias[c];
        r_k[i] = p.r_k[c];
    }
    for (int t = segment.begin; t < segment.begin + segment.count; ++t) {
        const auto at = [&](const Rows& rows) {
            return rows.data[size_t(t) * size_t(rows.stride) + size_t(c)];
        };
        float key = 0, value = 0, gate = 0, decay = 0, rate = 0;
        if (used) {
            key = at(p.k), value = at(p.v), gate = at(p.g);
            r[i] = at(p.r);
            decay = exp_of(-0.606531f * sigmoid_of(w0 + at(p.w))); // 0.606531 = e^(-1/2)
            rate = sigmoid_of(a0 + at(p.a));
            if (p.v_gate.data)
                value = fmaf(at(p.v_first) - value, sigmoid_of(v0 + at(p.v_gate)), value);
            kk[i] = key * k_k;
        }
        __syncthreads();
        const float norm = sqrtf(sum16(n, [=](float sum, int j) { return fmaf(kk[j], kk[j], sum); }));
        if (used) {
            const float direction = kk[i] / (norm > 1e-12f ? norm : 1e-12f);
            a[i] = 0.0f - direction;
            b[i] = direction * rate;
            k[i] = key * fmaf(rate - 1.0f, k_a, 1.0f);
            w[i] = decay;
        }
        __syncthreads();
        if (used) {
            float removed[2] = {0.0f, 0.0f}, sum[2] = {0.0f, 0.0f};
            each_key<kN>(
                n, [&](int j, int chain) { removed[chain] = fmaf(state.get(j), a[j], removed[chain]); });
            const float gone = removed[0] + removed[1];
            each_key<kN>(n, [&](int j, int chain) {
                const float next = fmaf(k[j], value, fmaf(b[j], gone, w[j] * state.get(j)));
                sum[chain] = fmaf(r[j], next, sum[chain]);
                state.set(j, next);
            });
            y[i] = sum[0] + sum[1];
        }
        __syncthreads();
        const float bonus = sum16(n, [=](float sum, int j) { return fmaf(r[j] * k[j], r_k[j], sum); });
        const Moments m = moments(y, p.eps, n);
        float out = 0.0f;
        if (used)
            out = fmaf(bonus, value, fmaf((y[i] - m.mean) * m.scale, ln_weight, ln_bias)) * gate;
        store_output(p, t, c, used, out);
        __syncthreads();
    }
    if (used)
        state.save();
}

/// RWKV-5 and 6 (arXiv 2404.05892): y = sum_j r_j (u_j k_j v + S_j);  S_j = w_j S_j + k_j v. Grid: heads,
/// sequences.
template <int kN>
__global__ void __launch_bounds__(kN > 0 ? kN : 1024) wkv5(const __grid_constant__ Wkv p) {
    const int n = kN > 0 ? kN : p.n, i = int(threadIdx.x), head = int(blockIdx.x), c = head * n + i;
    const int pad = int(blockDim.x);
    const bool used = i < n;
    float* r = shared_memory<float>(); // five arrays [pad]
    float *k = r + pad, *w = k + pad, *uk = w + pad, *y = uk + pad;
    const Segment segment = p.batch.segments[blockIdx.y];
    Column<kN> state(segment.state + p.offset + size_t(head) * size_t(n) * size_t(n) + size_t(i), n, used);
    float decay = 0, bonus = 0, ln_weight = 0, ln_bias = 0;
    if (used) {
        decay = p.decay[c], bonus = p.bonus[c];
        ln_weight = p.ln_x.weight[c], ln_bias = p.ln_x.bias[c];
    }
    for (int t = segment.begin; t < segment.begin + segment.count; ++t) {
        const auto at = [&](const Rows& rows) {
            return rows.data[size_t(t) * size_t(rows.stride) + size_t(c)];
        };
        float value = 0;
        if (used) {
            value = at(p.v);
            r[i] = at(p.r);
            k[i] = at(p.k);
            w[i] = p.w.data ? exp_of(0.0f - exp_of(decay + at(p.w))) : decay;
            uk[i] = bonus * k[i];
        }
        __syncthreads();
        if (used) {
            float sum[2] = {0.0f, 0.0f};
            each_key<kN>(n, [&](int j, int chain) {
                const float old = state.get(j);
                sum[chain] = fmaf(r[j], fmaf(uk[j], value, old), sum[chain]);
                state.set(j, fmaf(k[j], value, w[j] * old));
            });
            y[i] = sum[0] + sum[1];
        }
        __syncthreads();
        const Moments m = moments(y, p.eps, n);
        float out = 0.0f;
        if (used) {
            out = fmaf((y[i] - m.mean) * m.scale, ln_weight, ln_bias);
            if (p.g.data)
                out = out * at(p.g);
        }
        store_output(p, t, c, used, out);
        __syncthreads();
    }
    if (used)
        state.save();
}

constexpr int kWkv4Threads = 128, kWkv4Ahead = 4;

/// RWKV-4 (arXiv 2305.13048, appendix: numerically safe form); r is through its sigmoid. Channels are
/// independent. The state is aa, bb, pp: [C] each. Grid: groups of channels, sequences.
__global__ void __launch_bounds__(kWkv4Threads) wkv4(const __grid_constant__ Wkv p) {
    const int c = int(blockIdx.x) * kWkv4Threads + int(threadIdx.x);
    const bool used = c < p.n;
    const Segment segment = p.batch.segments[blockIdx.y];
    float *aa = segment.state + p.offset + c, *bb = aa + p.n, *pp = bb + p.n;
    float a = 0, b = 0, top = 0, decay = 0, bonus = 0;
    if (used)
        a = *aa, b = *bb, top = *pp, decay = p.decay[c], bonus = p.bonus[c];
    // Inputs come some tokens ahead of the one that is worked on.
    const int end = segment.begin + segment.count;
    float keys[kWkv4Ahead], values[kWkv4Ahead], gates[kWkv4Ahead];
    const auto load = [&](int t, int place) {
        const auto at = [&](const Rows& rows) {
            return rows.data[size_t(t) * size_t(rows.stride) + size_t(c)];
        };
        if (used && t < end)
            keys[place] = at(p.k), values[place] = at(p.v), gates[place] = at(p.r);
    };
#pragma unroll
    for (int i = 0; i < kWkv4Ahead; ++i)
        load(segment.begin + i, i);
    for (int first = segment.begin; first < end; first += kWkv4Ahead)
#pragma unroll
        for (int i = 0; i < kWkv4Ahead; ++i) {
            const int t = first + i;
            if (t >= end)
                break;
            float out = 0.0f;
            if (used) {
                const float key = keys[i], value = values[i], gate = gates[i];
                load(t + kWkv4Ahead, i);
                const float now = bonus + key, q = top > now ? top : now;
                const float e1 = exp_of(top - q), e2 = exp_of(now - q);
                out = gate * (fmaf(e1, a, e2 * value) / fmaf(e1, b, e2));
                const float past = top + decay, next = past > key ? past : key;
                const float f1 = exp_of(past - next), f2 = exp_of(key - next);
                a = fmaf(f1, a, f2 * value);
                b = fmaf(f1, b, f2);
                top = next;
            }
            if (c / kActGroup < p.out.k_pad / kActGroup) // whole warps
                set_group(p.out, t, c / kActGroup, out);
        }
    if (used)
        *aa = a, *bb = b, *pp = top;
}

} // namespace rwkv::cuda
