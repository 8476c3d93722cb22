// Channel mix: out = V relu(K x_k)^2, in v4 to v6 times sigmoid(R x_r) (arXiv 2305.13048, section 3.1.3).
#include "model/pass.h"

namespace rwkv {

using cpu::Epilogue;

namespace {

uint64_t count_active(const cpu::Acts& x, int t) {
    const float* f = x.f + size_t(t) * size_t(x.k_pad);
    return uint64_t(std::count_if(f, f + x.k, [](float value) { return value != 0.0f; }));
}

} // namespace

void channel_mix(Pass& p, const Block& b, int layer) {
    Scratch& s = p.s;
    const bool gated = !b.ffn_receptance.empty();
    p.shifted_rows(b.ln2, layer, &State::ffn_x_prev, [&](int t, const cpu::Shifted* block, int count) {
        p.shift_into(s.ffn_k, t, block, count, b.ffn_mix_k);
        if (gated)
            p.shift_into(s.ffn_r, t, block, count, b.ffn_mix_r);
    });
    p.barrier();
    p.save_shift(layer, &State::ffn_x_prev);
    const auto key = Pass::product_into(b.ffn_key, s.ffn_k, Epilogue::kRelu2, s.ffn_hidden);
    auto value = Pass::product(b.ffn_value, s.ffn_hidden, gated ? Epilogue::kMulAdd : Epilogue::kAdd, s.x);
    if (gated) {
        p.products({key, Pass::product(b.ffn_receptance, s.ffn_r, Epilogue::kSigmoid, s.ffn_gate)});
        value.gate = s.ffn_gate.data;
        value.gate_stride = s.ffn_gate.stride;
    } else {
        p.products({key});
    }
    p.barrier();
    if (p.active_channels && p.thread == 0 && b.ffn_value.layout == Layout::kKn)
        for (int t = 0; t < p.rows; ++t)
            p.active_channels[layer] += count_active(s.ffn_hidden, t);
    p.products({value});
    p.barrier();
}

} // namespace rwkv
