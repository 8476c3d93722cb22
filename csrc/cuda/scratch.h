// Buffers of a pass on the device, for up to `rows` rows: rwkv::Scratch over there.
#pragma once

#include <initializer_list>

#include "cuda/memory.h"
#include "cuda/tensors.h"
#include "cuda/weights.h"

namespace rwkv::cuda {

/// Rows whose logits are made, and brought to the host, at a time.
constexpr int kLogitRows = 32;

class Scratch {
  public:
    /// Counts what `rows` rows, a multiple of 8, take. Nothing lies on the device before allocate().
    Scratch(const Config& config, const DeviceWeights& weights, int rows);
    size_t bytes() const { return arena_.bytes(); }
    /// All buffers that hold activations are zero afterwards: their padding stays so.
    void allocate(cudaStream_t stream);

    int rows = 0;
    Rows x, normed, r, k, v, g, w, a, v_gate, v_first;
    Rows b; ///< of a scan
    float* bonus = nullptr;
    Rows delta[5], maa_hidden, ffn_gate;
    Acts mix[6]; ///< r, w, k, v, a, g
    Acts mix_x, hidden[5], decay_hidden, att_out, ffn_k, ffn_r, ffn_hidden, head;
    Rows logits;
    SparseRows sparse{};
    SparseTerms sparse_terms{};

  private:
    void cut(cudaStream_t stream);

    const Config& config_;
    const DeviceWeights& weights_;
    Arena arena_;
    bool allocated_ = false;
};

} // namespace rwkv::cuda
