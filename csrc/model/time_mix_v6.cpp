// RWKV-6 "Finch" (arXiv 2404.05892): token-shift mixes and decays that depend on the data through low-rank
// products.
#include "model/pass.h"

namespace rwkv {

using cpu::Epilogue;

void time_mix_v6(Pass& p, const Block& b, int layer) {
    Scratch& s = p.s;
    const int c = p.config.n_embd, n = p.config.head_size, rank = b.maa_w1.n / 5;
    p.shifted_rows(b.ln1, layer, &State::att_x_prev, [&](int t, const cpu::Shifted* block, int count) {
        p.shift_into(s.mix_x, t, block, count, b.mix_x);
    });
    p.barrier();
    p.products({Pass::product(b.maa_w1, s.mix_x, Epilogue::kTanh, s.maa_hidden)});
    p.barrier();
    p.each_of(p.rows, [&](int t) {
        for (int i = 0; i < 5; ++i)
            p.op.set_acts(s.maa_hidden.row(t) + i * rank, 0, t, 1, 0, rank, s.hidden[i]);
    });
    p.barrier();
    p.products({Pass::product(b.maa_w2[0], s.hidden[0], Epilogue::kStore, s.delta[0]),
                Pass::product(b.maa_w2[1], s.hidden[1], Epilogue::kStore, s.delta[1]),
                Pass::product(b.maa_w2[2], s.hidden[2], Epilogue::kStore, s.delta[2]),
                Pass::product(b.maa_w2[3], s.hidden[3], Epilogue::kStore, s.delta[3]),
                Pass::product(b.maa_w2[4], s.hidden[4], Epilogue::kStore, s.delta[4])});
    p.barrier();
    // the order of the five low-rank slices is w, k, v, r, g
    const float* mix[5] = {b.mix_w, b.mix_k, b.mix_v, b.mix_r, b.mix_g};
    cpu::Acts* into[5] = {&s.mix[1], &s.mix[2], &s.mix[3], &s.mix[0], &s.mix[5]};
    p.shifted_rows(b.ln1, layer, &State::att_x_prev, [&](int t, const cpu::Shifted* block, int count) {
        float* mixed = p.s.thread_row(p.thread, 1);
        for (int row = 0; row < count; ++row) {
            for (int i = 0; i < 5; ++i) {
                p.op.shift_mix_delta(block[row].now, block[row].previous, mix[i], s.delta[i].row(t + row), c,
                                     mixed);
                p.op.set_acts(mixed, 0, t + row, 1, 0, c, *into[i]);
            }
        }
    });
    p.barrier();
    p.save_shift(layer, &State::att_x_prev);
    p.products({Pass::product(b.receptance, s.mix[0], Epilogue::kStore, s.r),
                Pass::product(b.key, s.mix[2], Epilogue::kStore, s.k),
                Pass::product(b.value, s.mix[3], Epilogue::kStore, s.v),
                Pass::product(b.gate, s.mix[5], Epilogue::kSilu, s.g),
                Pass::product_into(b.decay_w1, s.mix[1], Epilogue::kTanh, s.decay_hidden)});
    p.barrier();
    p.products({Pass::product(b.decay_w2, s.decay_hidden, Epilogue::kStore, s.w)});
    p.barrier();
    p.each_head_group([&](const Segment& segment, int begin, int end) {
        const int first = segment.begin, last = segment.begin + segment.count;
        for (int t = first; t < last; ++t) {
            float* w = s.w.row(t);
            for (int i = begin; i < end; ++i)
                w[i] = b.decay[i] + w[i];
            p.op.exp_neg_exp(w + begin, end - begin);
        }
        for (int ch = begin; ch < end; ch += n) {
            p.op.wkv5(s.r.row(first) + ch, s.k.row(first) + ch, s.v.row(first) + ch, s.w.row(first) + ch,
                      s.w.stride, b.bonus + ch, p.head(segment, layer, ch / n), s.y.row(first) + ch,
                      s.y.stride, segment.count, n);
            for (int t = first; t < last; ++t)
                p.op.finish5(s.y.row(t) + ch, b.ln_x.weight + ch, b.ln_x.bias + ch, s.g.row(t) + ch,
                             p.config.group_norm_eps, n);
        }
        p.keep(layer, Lookahead::kKey, s.k, begin, end);
        p.keep(layer, Lookahead::kValue, s.v, begin, end);
        p.keep(layer, Lookahead::kDecay, s.w, begin, end);
        p.op.set_acts(s.y.row(first) + begin, s.y.stride, first, segment.count, begin, end, s.att_out);
    });
    p.barrier();
    p.products({Pass::product(b.output, s.att_out, Epilogue::kAdd, s.x)});
    p.barrier();
}

} // namespace rwkv
