// rwkv::Weights as the CUDA library takes them.
#pragma once

#include <vector>

#include "cuda/abi.h"
#include "model/weights.h"

namespace rwkv::test {

inline rwkv_cuda_matrix matrix_of(const Matrix& m) {
    rwkv_cuda_matrix to{};
    if (m.empty())
        return to;
    to = {int(m.encoding),
          int(m.layout),
          m.n,
          m.k,
          m.group,
          m.n_pad,
          m.k_pad,
          m.stride,
          m.q,
          m.s,
          m.d,
          m.cb,
          0,
          0,
          0,
          0};
    const size_t elements = size_t(m.n_pad) * size_t(m.k_pad);
    if (m.is_float()) {
        to.q_bytes = m.bytes();
        return to;
    }
    const bool kn = m.layout == Layout::kKn;
    to.q_bytes = kn ? size_t(m.k) * size_t(m.stride) : m.encoding == Encoding::kQ4 ? elements / 2 : elements;
    to.s_bytes = kn ? 0 : elements / size_t(m.group);
    to.d_bytes = size_t(kn ? m.k : m.n_pad) * 4;
    to.cb_bytes = m.encoding == Encoding::kQ4 ? 16 : 0;
    return to;
}

inline rwkv_cuda_norm norm_of(const Norm& n) { return {n.weight, n.bias}; }

inline rwkv_cuda_block block_of(const Block& b) {
    rwkv_cuda_block to{};
    to.ln1 = norm_of(b.ln1), to.ln2 = norm_of(b.ln2), to.ln_x = norm_of(b.ln_x);
    to.mix_x = b.mix_x, to.mix_r = b.mix_r, to.mix_w = b.mix_w, to.mix_k = b.mix_k, to.mix_v = b.mix_v;
    to.mix_a = b.mix_a, to.mix_g = b.mix_g;
    to.receptance = matrix_of(b.receptance), to.key = matrix_of(b.key), to.value = matrix_of(b.value);
    to.gate = matrix_of(b.gate), to.output = matrix_of(b.output);
    to.decay = b.decay, to.bonus = b.bonus;
    to.maa_w1 = matrix_of(b.maa_w1);
    for (int i = 0; i < 5; ++i)
        to.maa_w2[i] = matrix_of(b.maa_w2[i]);
    to.decay_w1 = matrix_of(b.decay_w1), to.decay_w2 = matrix_of(b.decay_w2);
    to.w1 = matrix_of(b.w1), to.w2 = matrix_of(b.w2), to.a1 = matrix_of(b.a1), to.a2 = matrix_of(b.a2);
    to.v1 = matrix_of(b.v1), to.v2 = matrix_of(b.v2), to.g1 = matrix_of(b.g1), to.g2 = matrix_of(b.g2);
    to.w0 = b.w0, to.a0 = b.a0, to.v0 = b.v0, to.k_k = b.k_k, to.k_a = b.k_a, to.r_k = b.r_k;
    to.ffn_mix_k = b.ffn_mix_k, to.ffn_mix_r = b.ffn_mix_r;
    to.ffn_key = matrix_of(b.ffn_key), to.ffn_value = matrix_of(b.ffn_value);
    to.ffn_receptance = matrix_of(b.ffn_receptance);
    return to;
}

inline std::vector<rwkv_cuda_block> blocks_of(const Weights& weights) {
    std::vector<rwkv_cuda_block> blocks;
    for (const Block& block : weights.blocks)
        blocks.push_back(block_of(block));
    return blocks;
}

inline rwkv_cuda_config view_of(const Config& c) {
    return {int(c.version), c.n_layer,    c.n_embd,         c.n_head,     c.head_size,
            c.n_ffn,        c.vocab_size, c.group_norm_eps, kLayerNormEps};
}

} // namespace rwkv::test
