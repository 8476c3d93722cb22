// Elementary functions on sixteen lanes, written once for all levels; a few units in the last place.
// Include after a vec_*.h.
#pragma once

#include <cmath>

namespace rwkv::cpu {
namespace {

/// e^x; 0 below -87.33 (the smallest normal float), and no infinity: inputs are clamped at 88.37. NaN stays
/// NaN.
inline vf exp(vf x) {
    const vf lowest = set(-87.33f);
    const vf clamped = min(set(88.37f), max(lowest, x));
    const vi n = round_int(mul(clamped, set(1.44269504f)));
    const vf whole = to_float(n);
    // ln 2 in two parts, the first with few enough bits that n times it is exact
    vf r = fma(whole, set(-0.693359375f), clamped);
    r = fma(whole, set(2.12194440e-4f), r);
    vf p = set(1.9875691500e-4f);
    p = fma(p, r, set(1.3981999507e-3f));
    p = fma(p, r, set(8.3334519073e-3f));
    p = fma(p, r, set(4.1665795894e-2f));
    p = fma(p, r, set(1.6666665459e-1f));
    p = fma(p, r, set(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), set(1.0f));
    return select_lt(x, lowest, zero(), mul(p, pow2(n)));
}

inline vf sigmoid(vf x) { return div(set(1.0f), add(set(1.0f), exp(sub(zero(), x)))); }

inline vf tanh(vf x) {
    const vf size = abs(x), square = mul(x, x);
    vf p = set(-5.70498872745e-3f); // odd polynomial near zero, where 1 - 2 / (e^2x + 1) would lose digits
    p = fma(p, square, set(2.06390887954e-2f));
    p = fma(p, square, set(-5.37397155531e-2f));
    p = fma(p, square, set(1.33314422036e-1f));
    p = fma(p, square, set(-3.33332819422e-1f));
    const vf near = fma(mul(p, square), x, x);
    const vf far = sub(set(1.0f), div(set(2.0f), add(exp(add(size, size)), set(1.0f))));
    return select_lt(size, set(0.625f), near, select_lt(x, zero(), sub(zero(), far), far));
}

/// The lanes of the last, partial vector: how many of 16 from `begin` lie below `end`.
inline int lanes(int begin, int end) { return end - begin < 16 ? end - begin : 16; }

template <class F>
inline void map_in_place(float* x, int n, F f) {
    for (int i = 0; i < n; i += 16)
        store_n(x + i, f(load_n(x + i, lanes(i, n))), lanes(i, n));
}

void exp_array(float* x, int n) {
    map_in_place(x, n, [](vf v) { return exp(v); });
}

void exp_neg_exp_array(float* x, int n) {
    map_in_place(x, n, [](vf v) { return exp(sub(zero(), exp(v))); });
}

} // namespace
} // namespace rwkv::cpu
