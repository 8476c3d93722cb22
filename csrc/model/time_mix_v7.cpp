// RWKV-7 "Goose" (arXiv 2503.14456, section 4): the generalized delta rule.
#include <cstring>

#include "model/pass.h"

namespace rwkv {

using cpu::Epilogue;

namespace {

constexpr int kAtOnce = 16; ///< tokens of a head that stay in a cache from its rates to its gate

/// Brings n floats near: rows of a chunk lie pages apart, where no processor foresees them.
inline void fetch(const float* x, int n) {
    for (int i = 0; i < n; i += 16)
        __builtin_prefetch(x + i);
}

} // namespace

void time_mix_v7(Pass& p, const Block& b, int layer) {
    Scratch& s = p.s;
    const int n = p.config.head_size;
    const bool residual = layer > 0; // v is mixed with block 0's
    p.shifted_rows(b.ln1, layer, &State::att_x_prev, [&](int t, const cpu::Shifted* block, int count) {
        const float* mix[6] = {b.mix_r, b.mix_w, b.mix_k, b.mix_v, b.mix_a, b.mix_g};
        for (int i = 0; i < 6; ++i)
            p.shift_into(s.mix[i], t, block, count, mix[i]);
    });
    p.barrier();
    p.save_shift(layer, &State::att_x_prev);
    const auto r = Pass::product(b.receptance, s.mix[0], Epilogue::kStore, s.r);
    const auto k = Pass::product(b.key, s.mix[2], Epilogue::kStore, s.k);
    const auto v = Pass::product(b.value, s.mix[3], Epilogue::kStore, residual ? s.v : s.v_first);
    const auto w1 = Pass::product_into(b.w1, s.mix[1], Epilogue::kTanh, s.hidden[0]);
    const auto a1 = Pass::product_into(b.a1, s.mix[4], Epilogue::kStore, s.hidden[1]);
    const auto g1 = Pass::product_into(b.g1, s.mix[5], Epilogue::kSigmoid, s.hidden[3]);
    if (residual)
        p.products({r, k, v, w1, a1, g1, Pass::product_into(b.v1, s.mix[3], Epilogue::kStore, s.hidden[2])});
    else
        p.products({r, k, v, w1, a1, g1});
    p.barrier();
    const auto w2 = Pass::product(b.w2, s.hidden[0], Epilogue::kStore, s.w);
    const auto a2 = Pass::product(b.a2, s.hidden[1], Epilogue::kStore, s.a);
    const auto g2 = Pass::product(b.g2, s.hidden[3], Epilogue::kStore, s.g);
    if (residual)
        p.products({w2, a2, g2, Pass::product(b.v2, s.hidden[2], Epilogue::kStore, s.v_gate)});
    else
        p.products({w2, a2, g2});
    p.barrier();
    p.each_head_group([&](const Segment& segment, int begin, int end) {
        const int first = segment.begin, last = segment.begin + segment.count;
        for (int c = begin; c < end; c += n) {
            float* state = p.head(segment, layer, c / n);
            for (int from = first; from < last; from += kAtOnce) {
                const int until = std::min(last, from + kAtOnce);
                for (int t = from; t < until; ++t) {
                    if (t + kAtOnce < last)
                        for (const Rows* rows :
                             {&s.k, &s.w, &s.a, &s.b, &s.v, &s.v_first, &s.v_gate, &s.r, &s.g, &s.y})
                            fetch(rows->row(t + kAtOnce) + c, n);
                    if (!residual)
                        std::memcpy(s.v.row(t) + c, s.v_first.row(t) + c, size_t(n) * sizeof(float));
                    p.op.prepare7(s.k.row(t) + c, s.w.row(t) + c, s.a.row(t) + c, s.b.row(t) + c,
                                  s.v.row(t) + c, s.v_first.row(t) + c,
                                  residual ? s.v_gate.row(t) + c : nullptr, b.w0 + c, b.a0 + c,
                                  residual ? b.v0 + c : nullptr, b.k_k + c, b.k_a + c, n);
                }
                p.op.wkv7(s.r.row(from) + c, s.k.row(from) + c, s.v.row(from) + c, s.w.row(from) + c,
                          s.a.row(from) + c, s.b.row(from) + c, state, s.y.row(from) + c, s.y.stride,
                          until - from, n);
                for (int t = from; t < until; ++t)
                    p.op.finish7(s.y.row(t) + c, s.r.row(t) + c, s.k.row(t) + c, s.v.row(t) + c, b.r_k + c,
                                 b.ln_x.weight + c, b.ln_x.bias + c, s.g.row(t) + c, p.config.group_norm_eps,
                                 n);
            }
        }
        p.keep(layer, Lookahead::kKey, s.k, begin, end);
        p.keep(layer, Lookahead::kValue, s.v, begin, end);
        p.keep(layer, Lookahead::kDecay, s.w, begin, end);
        p.keep(layer, Lookahead::kRemoval, s.a, begin, end);
        p.keep(layer, Lookahead::kAddition, s.b, begin, end);
        p.op.set_acts(s.y.row(first) + begin, s.y.stride, first, segment.count, begin, end, s.att_out);
    });
    p.barrier();
    p.products({Pass::product(b.output, s.att_out, Epilogue::kAdd, s.x)});
    p.barrier();
}

} // namespace rwkv
