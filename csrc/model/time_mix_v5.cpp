// RWKV-5.0, 5.1 and 5.2 "Eagle" (arXiv 2404.05892): matrix states, a static decay, a gate from 5.1 on.
#include "model/pass.h"

namespace rwkv {

using cpu::Epilogue;

void time_mix_v5(Pass& p, const Block& b, int layer) {
    Scratch& s = p.s;
    const bool gated = !b.gate.empty();
    p.shifted_rows(b.ln1, layer, &State::att_x_prev, [&](int t, const cpu::Shifted* block, int count) {
        p.shift_into(s.mix[0], t, block, count, b.mix_r);
        p.shift_into(s.mix[2], t, block, count, b.mix_k);
        p.shift_into(s.mix[3], t, block, count, b.mix_v);
        if (gated)
            p.shift_into(s.mix[5], t, block, count, b.mix_g);
    });
    p.barrier();
    p.save_shift(layer, &State::att_x_prev);
    const auto r = Pass::product(b.receptance, s.mix[0], Epilogue::kStore, s.r);
    const auto k = Pass::product(b.key, s.mix[2], Epilogue::kStore, s.k);
    const auto v = Pass::product(b.value, s.mix[3], Epilogue::kStore, s.v);
    if (gated)
        p.products({r, k, v, Pass::product(b.gate, s.mix[5], Epilogue::kSilu, s.g)});
    else
        p.products({r, k, v});
    p.barrier();
    const int n = p.config.head_size;
    p.each_head_group([&](const Segment& segment, int begin, int end) {
        for (int c = begin; c < end; c += n) {
            const int first = segment.begin;
            p.op.wkv5(s.r.row(first) + c, s.k.row(first) + c, s.v.row(first) + c, b.decay + c, 0, b.bonus + c,
                      p.head(segment, layer, c / n), s.y.row(first) + c, s.y.stride, segment.count, n);
            for (int t = first; t < first + segment.count; ++t)
                p.op.finish5(s.y.row(t) + c, b.ln_x.weight + c, b.ln_x.bias + c,
                             gated ? s.g.row(t) + c : nullptr, p.config.group_norm_eps, n);
        }
        p.keep(layer, Lookahead::kKey, s.k, begin, end);
        p.keep(layer, Lookahead::kValue, s.v, begin, end);
        p.op.set_acts(s.y.row(segment.begin) + begin, s.y.stride, segment.begin, segment.count, begin, end,
                      s.att_out);
    });
    p.barrier();
    p.products({Pass::product(b.output, s.att_out, Epilogue::kAdd, s.x)});
    p.barrier();
}

} // namespace rwkv
