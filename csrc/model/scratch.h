// Buffers of one pass over T rows, shared by its threads. Sized once for a number of rows and reused.
#pragma once

#include <vector>

#include "core/aligned_buffer.h"
#include "cpu/kernels.h"
#include "model/weights.h"

namespace rwkv {

/// [rows, stride] floats.
struct Rows {
    float* data = nullptr;
    size_t stride = 0;
    float* row(int t) const { return data + size_t(t) * stride; }
};

struct Scratch {
    Scratch() = default;
    Scratch(const Config& config, const Weights& weights, const cpu::KernelTable& op, int rows, int threads);

    int capacity = 0; ///< rows

    Rows x;                                       ///< residual stream [C]
    Rows normed;                                  ///< layer-normed input of the current half block [C]
    Rows r, k, v, g, w, a, b, v_gate, v_first, y; ///< time mix [C]
    Rows delta[5];                                ///< v6: data-dependent mixes w, k, v, r, g [C]
    Rows maa_hidden;                              ///< v6 [5 Dm]
    Rows ffn_gate;                                ///< v4 to v6 [C]

    cpu::Acts mix[6];       ///< inputs of the big matrices: r, w, k, v, a, g
    cpu::Acts mix_x;        ///< v6: input of time_maa_w1
    cpu::Acts hidden[5];    ///< low-rank hidden rows: v7 w, a, v, g; v6 the five of maa_w2
    cpu::Acts decay_hidden; ///< v6
    cpu::Acts att_out;      ///< input of att.output
    cpu::Acts ffn_k, ffn_r, ffn_hidden;
    cpu::Acts head;

    /// How the integer form of all activations but the head's interleaves rows (Acts::width).
    void set_width(int width);

    uint8_t* thread_bytes(int thread) { return thread_.data() + size_t(thread) * thread_stride_; }
    float* thread_row(int thread, int which) {
        return thread_rows_.data() + size_t(2 * thread + which) * row_stride_;
    }

    /// Bytes that one row takes, so that a prompt's chunk can be chosen from a budget.
    static size_t bytes_per_row(const Config& config, const Weights& weights, const cpu::KernelTable& op);

  private:
    void build(const Config& config, const Weights& weights, const cpu::KernelTable& op, int rows,
               int threads, bool measure);

    size_t measured_ = 0;
    AlignedBuffer<uint8_t> pool_;
    AlignedBuffer<uint8_t> thread_;
    size_t thread_stride_ = 0;
    AlignedBuffer<float> thread_rows_;
    size_t row_stride_ = 0;
};

} // namespace rwkv
