// Elementary functions and the fixed orders of sums: what csrc/cpu/math_inl.h and vec_scalar.h say, on one
// lane. The compiler may not contract (nvcc --fmad=false): every fused multiply-add is written out.
#pragma once

#include "cuda/platform.h"
#include "cuda/tensors.h"

namespace rwkv::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

/// e^x: 0 below -87.33, clamped at 88.37, NaN stays NaN.
__device__ __forceinline__ float exp_of(float x) {
    const float lowest = -87.33f, highest = 88.37f;
    const float raised = lowest > x ? lowest : x;
    const float clamped = highest < raised ? highest : raised;
    const int n = __float2int_rn(clamped * 1.44269504f);
    const float whole = float(n);
    float r = fmaf(whole, -0.693359375f, clamped);
    r = fmaf(whole, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    return x < lowest ? 0.0f : p * __uint_as_float(unsigned(n + 127) << 23);
}

__device__ __forceinline__ float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(0.0f - x)); }

__device__ __forceinline__ float tanh_of(float x) {
    const float size = fabsf(x), square = x * x;
    float p = -5.70498872745e-3f;
    p = fmaf(p, square, 2.06390887954e-2f);
    p = fmaf(p, square, -5.37397155531e-2f);
    p = fmaf(p, square, 1.33314422036e-1f);
    p = fmaf(p, square, -3.33332819422e-1f);
    const float near = fmaf(p * square, x, x);
    const float far = 1.0f - 2.0f / (exp_of(size + size) + 1.0f);
    return size < 0.625f ? near : x < 0.0f ? 0.0f - far : far;
}

/// s * |s| for a signed byte: the square law of group scales.
__device__ __forceinline__ float square_law(int s) {
    const float f = float(s);
    return f * fabsf(f);
}

/// Byte `which` of a word, sign-extended.
__device__ __forceinline__ int signed_byte(unsigned word, int which) {
    return int(int8_t(word >> (8 * which)));
}

__device__ __forceinline__ float bf16_value(uint16_t h) { return __uint_as_float(unsigned(h) << 16); }

__device__ __forceinline__ float f16_value(uint16_t h) {
    const unsigned sign = unsigned(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
    if (exponent == 0)
        return __uint_as_float(sign | __float_as_uint(float(mantissa) * 5.9604644775390625e-8f)); // 2^-24
    if (exponent == 31)
        return __uint_as_float(sign | 0x7f800000u | (mantissa << 13));
    return __uint_as_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

/// The sum of sixteen neighbouring lanes, halves folded onto each other; every lane gets it.
__device__ __forceinline__ float fold16(float x) {
#pragma unroll
    for (int width = 8; width >= 1; width /= 2)
        x = x + __shfl_xor_sync(kAllLanes, x, width);
    return x;
}

/// The largest of `kLanes` neighbouring lanes' numbers; every lane gets it.
template <int kLanes>
__device__ __forceinline__ float max_over(float x) {
#pragma unroll
    for (int width = kLanes / 2; width >= 1; width /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, x, width);
        x = x > other ? x : other;
    }
    return x;
}

/// Sixteen chains over n values (value i belongs to chain i mod 16), folded; f(sum, value) continues a chain.
/// Every warp that calls it computes the same.
template <class F>
__device__ __forceinline__ float sum16(int n, F f) {
    float sum = 0.0f;
#pragma unroll 8 // loads ahead of a chain of additions
    for (int i = int(threadIdx.x % 16); i < n; i += 16)
        sum = f(sum, i);
    return fold16(sum);
}

/// What cpu normalize() multiplies centred values with.
struct Moments {
    float mean, scale;
};

/// Those of n values of a head: one chain of sixteen lanes.
__device__ __forceinline__ Moments moments(const float* x, float eps, int n) {
    const float mean = sum16(n, [=](float sum, int i) { return sum + x[i]; }) / float(n);
    const float squares = sum16(n, [=](float sum, int i) {
        const float centred = x[i] - mean;
        return fmaf(centred, centred, sum);
    });
    return {mean, 1.0f / sqrtf(squares / float(n) + eps)};
}

__device__ __forceinline__ float apply(Epilogue epilogue, float v, float out, float gate) {
    switch (epilogue) {
    case Epilogue::kStore:
        return v;
    case Epilogue::kTanh:
        return tanh_of(v);
    case Epilogue::kSigmoid:
        return sigmoid_of(v);
    case Epilogue::kSilu:
        return v * sigmoid_of(v);
    case Epilogue::kRelu2:
        v = 0.0f > v ? 0.0f : v; // a NaN stays one
        return v * v;
    case Epilogue::kAdd:
        return out + v;
    default:
        return fmaf(gate, v, out);
    }
}

/// A warp's 32 values become group `group` of row t of `acts`, in every form that it has. Values of channels
/// past the end are 0. A rehearsal, which is not live, stores nothing.
__device__ __forceinline__ void set_group(const Acts& acts, int t, int group, float x, bool live = true) {
    const int lane = int(threadIdx.x % 32);
    const size_t at = size_t(t) * size_t(acts.k_pad) + size_t(group) * kActGroup + size_t(lane);
    if (acts.f && live)
        acts.f[at] = x;
    if (acts.mask) {
        const unsigned mask = __ballot_sync(kAllLanes, x != 0.0f);
        if (lane == 0 && live)
            acts.mask[size_t(t) * size_t(acts.k_pad / kActGroup) + size_t(group)] = mask;
    }
    if (!acts.q)
        return;
    const float largest = max_over<32>(fabsf(x));
    const bool used = largest > 1e-30f;
    const float step = x * (used ? 127.0f / largest : 0.0f);
    const bool number = fabsf(step) < 2147483648.0f;
    const bool numbers = __ballot_sync(kAllLanes, !number) == 0;
    const int8_t code = int8_t(number ? __float2int_rn(step) : 0);
    if (live)
        acts.q[at] = code;
    if (lane == 0 && live)
        acts.scale[size_t(t) * size_t(acts.k_pad / kActGroup) + size_t(group)] = !numbers ? not_a_number()
                                                                                 : used   ? largest / 127.0f
                                                                                          : 0.0f;
}

/// set_group for four groups of a warp at once: a lane has channels i .. i + 3 of row t, and eight lanes a
/// group. Lanes whose channels are not there come too.
__device__ __forceinline__ void set_four(const Acts& acts, int t, int i, const float (&x)[4], bool there) {
    const int lane = int(threadIdx.x % 32);
    const size_t at = size_t(t) * size_t(acts.k_pad) + size_t(i);
    if (acts.f && there)
        *reinterpret_cast<float4*>(acts.f + at) = make_float4(x[0], x[1], x[2], x[3]);
    if (!acts.q)
        return;
    float largest = fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fmaxf(fabsf(x[2]), fabsf(x[3])));
#pragma unroll
    for (int width = 4; width >= 1; width /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, width));
    const bool used = largest > 1e-30f;
    const float factor = used ? 127.0f / largest : 0.0f;
    unsigned codes = 0;
    bool numbers = true;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float step = x[j] * factor;
        const bool number = fabsf(step) < 2147483648.0f;
        numbers = numbers && number;
        codes |= (unsigned(number ? __float2int_rn(step) : 0) & 255u) << (8 * j);
    }
    numbers = (__ballot_sync(kAllLanes, !numbers) >> (lane & 24) & 255u) == 0;
    if (!there)
        return;
    *reinterpret_cast<unsigned*>(acts.q + at) = codes;
    if (lane % 8 == 0)
        acts.scale[at / kActGroup] = !numbers ? not_a_number() : used ? largest / 127.0f : 0.0f;
}

} // namespace rwkv::cuda
