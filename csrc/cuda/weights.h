// The weights on the device: rwkv::Weights, member by member, in the bytes of the file.
#pragma once

#include "cuda/memory.h"
#include "cuda/tensors.h"
#include "model/config.h"

namespace rwkv::cuda {

struct DeviceBlock {
    DeviceNorm ln1, ln2, ln_x;
    const float *mix_x, *mix_r, *mix_w, *mix_k, *mix_v, *mix_a, *mix_g;
    DeviceMatrix receptance, key, value, gate, output;
    const float *decay, *bonus;
    DeviceMatrix maa_w1, maa_w2[5], decay_w1, decay_w2;
    DeviceMatrix w1, w2, a1, a2, v1, v2, g1, g2;
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k;
    const float *ffn_mix_k, *ffn_mix_r;
    DeviceMatrix ffn_key, ffn_value, ffn_receptance;
};

/// What rwkv_cuda_config says, checked. Throws Error(kFormat).
Config make_config(const rwkv_cuda_config& config);

class DeviceWeights {
  public:
    /// Copies nothing yet: bytes() tells what it takes.
    DeviceWeights(const Config& config, const rwkv_cuda_weights& weights);
    void upload(cudaStream_t stream);
    size_t bytes() const { return arena_.bytes(); }

    DeviceMatrix emb, head;
    DeviceNorm ln0, ln_out;
    std::vector<DeviceBlock> blocks;

  private:
    template <class F>
    void each(F& take);

    Config config_;
    const rwkv_cuda_weights* source_;
    Arena arena_;
};

} // namespace rwkv::cuda
