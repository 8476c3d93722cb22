// The recurrences. Vector lanes run over value channels, so no sum crosses lanes; sums over key channels are
// taken in two interleaved chains (even and odd keys), added at the end.
#pragma once

#include "cpu/kernels.h"

namespace rwkv::cpu {
namespace {

constexpr int kAtOnce = 16 * kValueVectors; ///< value channels

/// f<j & 1>(j) for keys 0 to n - 1: the chain is known to the compiler, so that both stay in registers.
template <class F>
inline void each_key(int n, F f) {
    int j = 0;
    for (; j + 2 <= n; j += 2) {
        f.template operator()<0>(j);
        f.template operator()<1>(j + 1);
    }
    if (j < n)
        f.template operator()<0>(j);
}

/// RWKV-4 (arXiv 2305.13048, appendix: numerically safe form). Channels are independent.
void wkv4(const float* r, const float* k, const float* v, const float* w, const float* u, float* aa,
          float* bb, float* pp, float* out, size_t stride, int rows, int begin, int end) {
    for (int c = begin; c < end; c += 16) {
        const int n = lanes(c, end);
        const vf decay = load_n(w + c, n), bonus = load_n(u + c, n);
        vf a = load_n(aa + c, n), b = load_n(bb + c, n), p = load_n(pp + c, n);
        for (int t = 0; t < rows; ++t) {
            const size_t at = size_t(t) * stride + size_t(c);
            const vf kt = load_n(k + at, n), vt = load_n(v + at, n);
            const vf now = add(bonus, kt), q = max(p, now);
            const vf e1 = exp(sub(p, q)), e2 = exp(sub(now, q));
            const vf wkv = div(fma(e1, a, mul(e2, vt)), fma(e1, b, e2));
            store_n(out + at, mul(load_n(r + at, n), wkv), n);
            const vf past = add(p, decay), next = max(past, kt);
            const vf f1 = exp(sub(past, next)), f2 = exp(sub(kt, next));
            a = fma(f1, a, mul(f2, vt));
            b = fma(f1, b, f2);
            p = next;
        }
        store_n(aa + c, a, n);
        store_n(bb + c, b, n);
        store_n(pp + c, p, n);
    }
}

/// RWKV-5 and 6 (arXiv 2404.05892), `B` vectors of value channels at once.
/// o = sum_j r_j (u_j k_j v + S_j);  S_j = w_j S_j + k_j v
template <int B>
void wkv5_values(const float* r, const float* k, const float* v, const float* w, size_t w_stride,
                 const float* u, float* state, float* out, size_t stride, int rows, int n, int first) {
    const int row = state_stride(n);
    for (int t = 0; t < rows; ++t, r += stride, k += stride, v += stride, w += w_stride, out += stride) {
        vf value[B], sum[2][B];
        for (int b = 0; b < B; ++b) {
            value[b] = load_n(v + first + 16 * b, lanes(first + 16 * b, n));
            sum[0][b] = sum[1][b] = zero();
        }
        each_key(n, [&]<int Chain>(int j) {
            const vf rj = set(r[j]), kj = set(k[j]), wj = set(w[j]), uk = mul(set(u[j]), kj);
            float* s = state + size_t(j) * size_t(row) + size_t(first);
            for (int b = 0; b < B; ++b) {
                const vf old = load(s + 16 * b);
                sum[Chain][b] = fma(rj, fma(uk, value[b], old), sum[Chain][b]);
                store(s + 16 * b, fma(kj, value[b], mul(wj, old)));
            }
        });
        for (int b = 0; b < B; ++b)
            store_n(out + first + 16 * b, add(sum[0][b], sum[1][b]), lanes(first + 16 * b, n));
    }
}

void wkv5(const float* r, const float* k, const float* v, const float* w, size_t w_stride, const float* u,
          float* state, float* out, size_t stride, int rows, int head_size) {
    int first = 0;
    for (; first + kAtOnce <= state_stride(head_size); first += kAtOnce)
        wkv5_values<kValueVectors>(r, k, v, w, w_stride, u, state, out, stride, rows, head_size, first);
    for (; first < head_size; first += 16)
        wkv5_values<1>(r, k, v, w, w_stride, u, state, out, stride, rows, head_size, first);
}

/// RWKV-7 (arXiv 2503.14456): sa = sum_j S_j a_j;  S_j = w_j S_j + b_j sa + k_j v;  y = sum_j r_j S_j
template <int B>
void wkv7_values(const float* r, const float* k, const float* v, const float* w, const float* a,
                 const float* b_, float* state, float* out, size_t stride, int rows, int n, int first) {
    const int row = state_stride(n);
    for (int t = 0; t < rows; ++t) {
        const size_t at = size_t(t) * stride;
        vf value[B], removed[2][B], sum[2][B];
        for (int b = 0; b < B; ++b) {
            value[b] = load_n(v + at + first + 16 * b, lanes(first + 16 * b, n));
            removed[0][b] = removed[1][b] = sum[0][b] = sum[1][b] = zero();
        }
        each_key(n, [&]<int Chain>(int j) {
            const vf aj = set(a[at + size_t(j)]);
            const float* s = state + size_t(j) * size_t(row) + size_t(first);
            for (int b = 0; b < B; ++b)
                removed[Chain][b] = fma(load(s + 16 * b), aj, removed[Chain][b]);
        });
        for (int b = 0; b < B; ++b)
            removed[0][b] = add(removed[0][b], removed[1][b]);
        each_key(n, [&]<int Chain>(int j) {
            const size_t i = at + size_t(j);
            const vf rj = set(r[i]), kj = set(k[i]), wj = set(w[i]), bj = set(b_[i]);
            float* s = state + size_t(j) * size_t(row) + size_t(first);
            for (int b = 0; b < B; ++b) {
                const vf next = fma(kj, value[b], fma(bj, removed[0][b], mul(wj, load(s + 16 * b))));
                sum[Chain][b] = fma(rj, next, sum[Chain][b]);
                store(s + 16 * b, next);
            }
        });
        for (int b = 0; b < B; ++b)
            store_n(out + at + first + 16 * b, add(sum[0][b], sum[1][b]), lanes(first + 16 * b, n));
    }
}

void wkv7(const float* r, const float* k, const float* v, const float* w, const float* a, const float* b,
          float* state, float* out, size_t stride, int rows, int head_size) {
    int first = 0;
    for (; first + kAtOnce <= state_stride(head_size); first += kAtOnce)
        wkv7_values<kValueVectors>(r, k, v, w, a, b, state, out, stride, rows, head_size, first);
    for (; first < head_size; first += 16)
        wkv7_values<1>(r, k, v, w, a, b, state, out, stride, rows, head_size, first);
}

void prepare7(float* k, float* w, float* a, float* b, float* v, const float* v_first, const float* v_gate,
              const float* w0, const float* a0, const float* v0, const float* k_k, const float* k_a, int n) {
    vf squares = zero();
    for (int i = 0; i < n; i += 16) {
        const int count = lanes(i, n);
        const vf kk = mul(load_n(k + i, count), load_n(k_k + i, count));
        squares = fma(kk, kk, squares);
    }
    const float norm = sqrtf(reduce_add(squares));
    const vf length = set(norm > 1e-12f ? norm : 1e-12f);
    for (int i = 0; i < n; i += 16) {
        const int count = lanes(i, n);
        const vf key = load_n(k + i, count), kk = div(mul(key, load_n(k_k + i, count)), length);
        const vf rate = sigmoid(add(load_n(a0 + i, count), load_n(a + i, count)));
        store_n(a + i, sub(zero(), kk), count);
        store_n(b + i, mul(kk, rate), count);
        store_n(k + i, mul(key, fma(sub(rate, set(1.0f)), load_n(k_a + i, count), set(1.0f))), count);
        const vf decay = sigmoid(add(load_n(w0 + i, count), load_n(w + i, count)));
        store_n(w + i, exp(mul(set(-0.606531f), decay)), count); // 0.606531 = e^(-1/2)
        if (v_gate) {
            const vf value = load_n(v + i, count);
            const vf share = sigmoid(add(load_n(v0 + i, count), load_n(v_gate + i, count)));
            store_n(v + i, fma(sub(load_n(v_first + i, count), value), share, value), count);
        }
    }
}

void finish7(float* y, const float* r, const float* k, const float* v, const float* r_k, const float* ln_w,
             const float* ln_b, const float* gate, float eps, int n) {
    vf sum = zero();
    for (int i = 0; i < n; i += 16) {
        const int count = lanes(i, n);
        sum = fma(mul(load_n(r + i, count), load_n(k + i, count)), load_n(r_k + i, count), sum);
    }
    const vf bonus = set(reduce_add(sum));
    normalize<1>(y, ln_w, ln_b, eps, n, y);
    for (int i = 0; i < n; i += 16) {
        const int count = lanes(i, n);
        const vf mixed = fma(bonus, load_n(v + i, count), load_n(y + i, count));
        store_n(y + i, mul(mixed, load_n(gate + i, count)), count);
    }
}

void finish5(float* y, const float* ln_w, const float* ln_b, const float* gate, float eps, int n) {
    normalize<1>(y, ln_w, ln_b, eps, n, y);
    if (!gate)
        return;
    for (int i = 0; i < n; i += 16) {
        const int count = lanes(i, n);
        store_n(y + i, mul(load_n(y + i, count), load_n(gate + i, count)), count);
    }
}

} // namespace
} // namespace rwkv::cpu
