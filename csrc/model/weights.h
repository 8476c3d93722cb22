// The weights of a model: views into the mapped file, under the checkpoint's own names, plus the few vectors
// that the formulas use in another form (decays, v4's mixes), computed once at load.
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/mapped_file.h"
#include "cpu/kernels.h"
#include "formats/matrix.h"
#include "model/config.h"

namespace rwkv {

/// Where a logical tensor lies in the file (from the file's plan).
struct TensorSpec {
    std::string encoding;
    std::string layout;
    std::vector<int> shape; ///< [out, in], or the shape of a vector tensor
    struct Part {
        std::string name;
        size_t offset;
        size_t bytes;
    };
    std::vector<Part> parts;
};
using TensorSpecs = std::map<std::string, TensorSpec>;

struct Norm {
    const float* weight = nullptr;
    const float* bias = nullptr;
};

/// One block; only the members of the model's version are set. Vectors have n_embd entries unless noted.
struct Block {
    Norm ln1, ln2, ln_x;

    // Token-shift weights of the previous token: x + (prev - x) * mix. v4 and v5 store those of the current
    // one.
    const float *mix_x = nullptr, *mix_r = nullptr, *mix_w = nullptr, *mix_k = nullptr, *mix_v = nullptr,
                *mix_a = nullptr, *mix_g = nullptr;
    Matrix receptance, key, value, gate, output; // att.*, [C, C]

    const float* decay =
        nullptr; ///< v4: log decay -exp(time_decay); v5: exp(-exp(time_decay)); v6: time_decay raw
    const float* bonus = nullptr; ///< time_first / time_faaaa, per channel

    Matrix maa_w1;                         ///< v6 [5 Dm, C]
    Matrix maa_w2[5];                      ///< v6 w, k, v, r, g: [C, Dm]
    Matrix decay_w1, decay_w2;             ///< v6 [Dd, C], [C, Dd]
    Matrix w1, w2, a1, a2, v1, v2, g1, g2; // v7 low-rank pairs [D, C], [C, D]; v1, v2 absent in block 0
    const float *w0 = nullptr, *a0 = nullptr, *v0 = nullptr, *k_k = nullptr, *k_a = nullptr, *r_k = nullptr;

    const float *ffn_mix_k = nullptr, *ffn_mix_r = nullptr;
    Matrix ffn_key, ffn_value, ffn_receptance; // [F, C], [C, F], [C, C]; no receptance in v7
};

class Weights {
  public:
    /// Throws Error(kFormat) naming the tensor that is missing, misshapen or beyond the end of the file, and
    /// when blocks differ in their shapes, or in whether a tensor of theirs has an integer form.
    Weights(const MappedFile& file, const Config& config, const TensorSpecs& specs,
            const cpu::KernelTable& op);

    Matrix emb, head;
    Norm ln0, ln_out;
    std::vector<Block> blocks;

    /// The matrices of a block, also those that its version does not have, which are empty.
    static std::array<const Matrix*, 24> matrices(const Block& b) {
        return {&b.receptance, &b.key,       &b.value,     &b.gate,      &b.output,    &b.maa_w1,
                &b.maa_w2[0],  &b.maa_w2[1], &b.maa_w2[2], &b.maa_w2[3], &b.maa_w2[4], &b.decay_w1,
                &b.decay_w2,   &b.w1,        &b.w2,        &b.a1,        &b.a2,        &b.v1,
                &b.v2,         &b.g1,        &b.g2,        &b.ffn_key,   &b.ffn_value, &b.ffn_receptance};
    }
    /// Calls f(const Matrix&) for every matrix that a block has.
    template <class F>
    static void each_matrix(const Block& b, F f) {
        for (const Matrix* m : matrices(b))
            if (!m->empty())
                f(*m);
    }

  private:
    void require_uniform_blocks() const;

    std::vector<AlignedBuffer<float>> owned_; ///< vectors in computed form
};

} // namespace rwkv
