#include "device/cuda_weights.h"

namespace rwkv {
namespace {

rwkv_cuda_matrix matrix(const Matrix& m) {
    rwkv_cuda_matrix c{};
    if (m.empty())
        return c;
    c.encoding = int(m.encoding);
    c.layout = int(m.layout);
    c.n = m.n;
    c.k = m.k;
    c.group = m.group;
    c.n_pad = m.n_pad;
    c.k_pad = m.k_pad;
    c.stride = m.stride;
    c.q = m.q;
    c.s = m.s;
    c.d = m.d;
    c.cb = m.cb;
    if (m.is_float()) {
        c.q_bytes = m.bytes();
        return c;
    }
    c.cb_bytes = has_codebook(m.encoding) ? 16 : 0;
    if (m.layout == Layout::kKn) {
        c.q_bytes = size_t(m.k) * size_t(m.stride);
        c.d_bytes = size_t(m.k) * sizeof(float);
        return c;
    }
    const size_t elements = size_t(m.n_pad) * size_t(m.k_pad);
    c.q_bytes = m.code_bytes(elements);
    c.s_bytes = elements / size_t(m.group);
    c.d_bytes = size_t(m.n_pad) * sizeof(float);
    return c;
}

rwkv_cuda_norm norm(const Norm& n) { return {n.weight, n.bias}; }

rwkv_cuda_block block(const Block& b) {
    rwkv_cuda_block c{};
    c.ln1 = norm(b.ln1);
    c.ln2 = norm(b.ln2);
    c.ln_x = norm(b.ln_x);
    c.mix_x = b.mix_x;
    c.mix_r = b.mix_r;
    c.mix_w = b.mix_w;
    c.mix_k = b.mix_k;
    c.mix_v = b.mix_v;
    c.mix_a = b.mix_a;
    c.mix_g = b.mix_g;
    c.receptance = matrix(b.receptance);
    c.key = matrix(b.key);
    c.value = matrix(b.value);
    c.gate = matrix(b.gate);
    c.output = matrix(b.output);
    c.decay = b.decay;
    c.bonus = b.bonus;
    c.maa_w1 = matrix(b.maa_w1);
    for (int i = 0; i < 5; ++i)
        c.maa_w2[i] = matrix(b.maa_w2[i]);
    c.decay_w1 = matrix(b.decay_w1);
    c.decay_w2 = matrix(b.decay_w2);
    c.w1 = matrix(b.w1);
    c.w2 = matrix(b.w2);
    c.a1 = matrix(b.a1);
    c.a2 = matrix(b.a2);
    c.v1 = matrix(b.v1);
    c.v2 = matrix(b.v2);
    c.g1 = matrix(b.g1);
    c.g2 = matrix(b.g2);
    c.w0 = b.w0;
    c.a0 = b.a0;
    c.v0 = b.v0;
    c.k_k = b.k_k;
    c.k_a = b.k_a;
    c.r_k = b.r_k;
    c.ffn_mix_k = b.ffn_mix_k;
    c.ffn_mix_r = b.ffn_mix_r;
    c.ffn_key = matrix(b.ffn_key);
    c.ffn_value = matrix(b.ffn_value);
    c.ffn_receptance = matrix(b.ffn_receptance);
    return c;
}

} // namespace

rwkv_cuda_config cuda_config(const Config& config) {
    return {int(config.version), config.n_layer,    config.n_embd,         config.n_head, config.head_size,
            config.n_ffn,        config.vocab_size, config.group_norm_eps, kLayerNormEps};
}

CudaWeights::CudaWeights(const Weights& weights, int first) {
    for (size_t i = size_t(first); i < weights.blocks.size(); ++i)
        blocks.push_back(block(weights.blocks[i]));
    if (first == 0) {
        all.emb = matrix(weights.emb);
        all.ln0 = norm(weights.ln0);
    }
    all.head = matrix(weights.head);
    all.ln_out = norm(weights.ln_out);
    all.blocks = blocks.data();
}

} // namespace rwkv
