// The blocks of all versions, launch by launch: csrc/model/time_mix_v*.cpp and channel_mix.cpp over there.
#pragma once

#include "cuda/pass.h"

namespace rwkv::cuda {

inline MixList mixes(std::initializer_list<std::pair<const float*, const Acts*>> all) {
    MixList list{};
    for (const auto& [mix, into] : all) {
        list.mix[list.count] = mix;
        list.into[list.count++] = *into;
    }
    return list;
}

inline Wkv recurrence_of(const Pass& p, const DeviceBlock& b, int layer) {
    Wkv wkv{};
    wkv.r = p.s.r, wkv.k = p.s.k, wkv.v = p.s.v, wkv.g = p.s.g;
    wkv.decay = b.decay, wkv.bonus = b.bonus;
    wkv.ln_x = b.ln_x;
    wkv.eps = p.config.group_norm_eps;
    wkv.out = p.s.att_out;
    wkv.batch = p.batch;
    wkv.offset = p.layout.heads(layer);
    wkv.n = p.config.version == Version::k4 ? p.config.n_embd : p.config.head_size;
    return wkv;
}

inline void time_mix_v4(Pass& p, const DeviceBlock& b, int layer) {
    Scratch& s = p.s;
    const size_t x_prev = p.layout.att_x_prev(layer);
    p.shift(b.ln1, x_prev, mixes({{b.mix_r, &s.mix[0]}, {b.mix_k, &s.mix[2]}, {b.mix_v, &s.mix[3]}}));
    p.products_and_save_shift({Pass::product(b.receptance, s.mix[0], Epilogue::kSigmoid, s.r),
                               Pass::product(b.key, s.mix[2], Epilogue::kStore, s.k),
                               Pass::product(b.value, s.mix[3], Epilogue::kStore, s.v)},
                              x_prev);
    p.recurrence(recurrence_of(p, b, layer));
    p.products({Pass::product(b.output, s.att_out, Epilogue::kAdd, s.x)});
}

inline void time_mix_v5(Pass& p, const DeviceBlock& b, int layer) {
    Scratch& s = p.s;
    const size_t x_prev = p.layout.att_x_prev(layer);
    const Product r = Pass::product(b.receptance, s.mix[0], Epilogue::kStore, s.r),
                  k = Pass::product(b.key, s.mix[2], Epilogue::kStore, s.k),
                  v = Pass::product(b.value, s.mix[3], Epilogue::kStore, s.v);
    if (b.gate.empty()) {
        p.shift(b.ln1, x_prev, mixes({{b.mix_r, &s.mix[0]}, {b.mix_k, &s.mix[2]}, {b.mix_v, &s.mix[3]}}));
        p.products_and_save_shift({r, k, v}, x_prev);
    } else {
        p.shift(
            b.ln1, x_prev,
            mixes({{b.mix_r, &s.mix[0]}, {b.mix_k, &s.mix[2]}, {b.mix_v, &s.mix[3]}, {b.mix_g, &s.mix[5]}}));
        p.products_and_save_shift({r, k, v, Pass::product(b.gate, s.mix[5], Epilogue::kSilu, s.g)}, x_prev);
    }
    p.recurrence(recurrence_of(p, b, layer));
    p.products({Pass::product(b.output, s.att_out, Epilogue::kAdd, s.x)});
}

inline void time_mix_v6(Pass& p, const DeviceBlock& b, int layer) {
    Scratch& s = p.s;
    const size_t x_prev = p.layout.att_x_prev(layer);
    p.shift(b.ln1, x_prev, mixes({{b.mix_x, &s.mix_x}}));
    p.products({Pass::product(b.maa_w1, s.mix_x, Epilogue::kTanh, s.maa_hidden)});
    SliceList slices{s.maa_hidden, {}};
    for (int i = 0; i < 5; ++i)
        slices.into[i] = s.hidden[i];
    launch(quantize_slices, {5, unsigned(p.rows)}, kRowThreads, 0, p.stream, slices);
    const auto delta = [&](int i) {
        return Pass::product(b.maa_w2[i], s.hidden[i], Epilogue::kStore, s.delta[i]);
    };
    p.products({delta(0), delta(1), delta(2), delta(3), delta(4)});
    // the order of the five low-rank slices is w, k, v, r, g
    MixList list = mixes({{b.mix_w, &s.mix[1]},
                          {b.mix_k, &s.mix[2]},
                          {b.mix_v, &s.mix[3]},
                          {b.mix_r, &s.mix[0]},
                          {b.mix_g, &s.mix[5]}});
    for (int i = 0; i < 5; ++i)
        list.delta[i] = s.delta[i];
    p.shift(b.ln1, x_prev, list);
    p.products_and_save_shift({Pass::product(b.receptance, s.mix[0], Epilogue::kStore, s.r),
                               Pass::product(b.key, s.mix[2], Epilogue::kStore, s.k),
                               Pass::product(b.value, s.mix[3], Epilogue::kStore, s.v),
                               Pass::product(b.gate, s.mix[5], Epilogue::kSilu, s.g),
                               Pass::product_into(b.decay_w1, s.mix[1], Epilogue::kTanh, s.decay_hidden)},
                              x_prev);
    p.products({Pass::product(b.decay_w2, s.decay_hidden, Epilogue::kStore, s.w)});
    Wkv wkv = recurrence_of(p, b, layer);
    wkv.w = s.w;
    p.recurrence(wkv);
    p.products({Pass::product(b.output, s.att_out, Epilogue::kAdd, s.x)});
}

inline void time_mix_v7(Pass& p, const DeviceBlock& b, int layer) {
    Scratch& s = p.s;
    const size_t x_prev = p.layout.att_x_prev(layer);
    const bool residual = !b.v1.empty(); // v is mixed with block 0's, in all blocks but that
    p.shift(b.ln1, x_prev,
            mixes({{b.mix_r, &s.mix[0]},
                   {b.mix_w, &s.mix[1]},
                   {b.mix_k, &s.mix[2]},
                   {b.mix_v, &s.mix[3]},
                   {b.mix_a, &s.mix[4]},
                   {b.mix_g, &s.mix[5]}}));
    const Product r = Pass::product(b.receptance, s.mix[0], Epilogue::kStore, s.r),
                  k = Pass::product(b.key, s.mix[2], Epilogue::kStore, s.k),
                  v = Pass::product(b.value, s.mix[3], Epilogue::kStore, residual ? s.v : s.v_first),
                  w1 = Pass::product_into(b.w1, s.mix[1], Epilogue::kTanh, s.hidden[0]),
                  a1 = Pass::product_into(b.a1, s.mix[4], Epilogue::kStore, s.hidden[1]),
                  g1 = Pass::product_into(b.g1, s.mix[5], Epilogue::kSigmoid, s.hidden[3]);
    SecondFactors second{};
    second.w = Pass::product(b.w2, s.hidden[0], Epilogue::kStore, s.w);
    second.a = Pass::product(b.a2, s.hidden[1], Epilogue::kStore, s.a);
    second.g = Pass::product(b.g2, s.hidden[3], Epilogue::kStore, s.g);
    Wkv wkv = recurrence_of(p, b, layer);
    wkv.v = residual ? s.v : s.v_first;
    wkv.w = s.w, wkv.a = s.a, wkv.v_first = s.v_first;
    wkv.w0 = b.w0, wkv.a0 = b.a0, wkv.k_k = b.k_k, wkv.k_a = b.k_a, wkv.r_k = b.r_k;
    if (residual) {
        const Product v1 = Pass::product_into(b.v1, s.mix[3], Epilogue::kStore, s.hidden[2]);
        second.v_gate = Pass::product(b.v2, s.hidden[2], Epilogue::kStore, s.v_gate);
        wkv.v_gate = s.v_gate, wkv.v0 = b.v0;
        p.products_and_save_shift({r, k, v, w1, a1, g1, v1}, x_prev);
    } else {
        p.products_and_save_shift({r, k, v, w1, a1, g1}, x_prev);
    }
    p.recurrence_after(second, wkv);
    p.products({Pass::product(b.output, s.att_out, Epilogue::kAdd, s.x)});
}

inline void channel_mix(Pass& p, const DeviceBlock& b, int layer) {
    Scratch& s = p.s;
    const size_t x_prev = p.layout.ffn_x_prev(layer);
    const Product key = Pass::product_into(b.ffn_key, s.ffn_k, Epilogue::kRelu2, s.ffn_hidden);
    Product value = Pass::product(b.ffn_value, s.ffn_hidden, Epilogue::kAdd, s.x);
    if (b.ffn_receptance.empty()) {
        p.shift(b.ln2, x_prev, mixes({{b.ffn_mix_k, &s.ffn_k}}));
        p.products_and_save_shift({key}, x_prev);
    } else {
        p.shift(b.ln2, x_prev, mixes({{b.ffn_mix_k, &s.ffn_k}, {b.ffn_mix_r, &s.ffn_r}}));
        p.products_and_save_shift(
            {key, Pass::product(b.ffn_receptance, s.ffn_r, Epilogue::kSigmoid, s.ffn_gate)}, x_prev);
        value.epilogue = Epilogue::kMulAdd;
        value.gate = s.ffn_gate;
    }
    p.gathered_product(value);
}

inline void time_mix(Pass& p, const DeviceBlock& block, int layer) {
    switch (p.config.version) {
    case Version::k4:
        return time_mix_v4(p, block, layer);
    case Version::k5_0:
    case Version::k5_1:
    case Version::k5_2:
        return time_mix_v5(p, block, layer);
    case Version::k6:
        return time_mix_v6(p, block, layer);
    case Version::k7:
        return time_mix_v7(p, block, layer);
    }
}

} // namespace rwkv::cuda
