// RWKV-4 (arXiv 2305.13048, section 3.1): r = sigmoid(R x_r), k = K x_k, v = V x_v, out = O (r * wkv).
#include "model/pass.h"

namespace rwkv {

using cpu::Epilogue;

void time_mix_v4(Pass& p, const Block& b, int layer) {
    Scratch& s = p.s;
    p.shifted_rows(b.ln1, layer, &State::att_x_prev, [&](int t, const cpu::Shifted* block, int count) {
        p.shift_into(s.mix[0], t, block, count, b.mix_r);
        p.shift_into(s.mix[2], t, block, count, b.mix_k);
        p.shift_into(s.mix[3], t, block, count, b.mix_v);
    });
    p.barrier();
    p.save_shift(layer, &State::att_x_prev);
    p.products({Pass::product(b.receptance, s.mix[0], Epilogue::kSigmoid, s.r),
                Pass::product(b.key, s.mix[2], Epilogue::kStore, s.k),
                Pass::product(b.value, s.mix[3], Epilogue::kStore, s.v)});
    p.barrier();
    p.each_head_group([&](const Segment& segment, int begin, int end) {
        const int first = segment.begin;
        float* state[3] = {segment.state->aa(layer), segment.state->bb(layer), segment.state->pp(layer)};
        for (size_t i = 0; p.ahead && i < 3; ++i) // room for whole arrays, of which this piece is copied
            state[i] = p.ahead->copy_of(state[i] + begin, size_t(end - begin), p.thread,
                                        i * p.ahead->stride() + size_t(begin)) -
                       begin;
        p.op.wkv4(s.r.row(first), s.k.row(first), s.v.row(first), b.decay, b.bonus, state[0], state[1],
                  state[2], s.y.row(first), s.y.stride, segment.count, begin, end);
        p.keep(layer, Lookahead::kKey, s.k, begin, end);
        p.keep(layer, Lookahead::kValue, s.v, begin, end);
        p.op.set_acts(s.y.row(first) + begin, s.y.stride, first, segment.count, begin, end, s.att_out);
    });
    p.barrier();
    p.products({Pass::product(b.output, s.att_out, Epilogue::kAdd, s.x)});
    p.barrier();
}

} // namespace rwkv
