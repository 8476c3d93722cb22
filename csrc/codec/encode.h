// Native encoders: float32 matrices to the codes and scales of the model file, byte for byte what the plain
// numpy encoders in quant/methods give, on every CPU level and for any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "formats/matrix.h"

namespace rwkv::codec {

/// Weights that learning a codebook looks at, about; and the rows that it looks at, at the least.
constexpr int kSampleWeights = 1 << 16;
constexpr int kSampleRows = 16;
constexpr int kLearningRounds = 6;

/// One matrix to encode and where its parts go (quant/container/FORMAT.md has their shapes).
/// A row is an output; in layout kn it is an input, with groups along the outputs.
struct Request {
    const float* w = nullptr; ///< [n, k], finite
    int n = 0;
    int k = 0;
    Encoding encoding = Encoding::kQ8; ///< kQ8, kQ6, kQ5 or kQ4
    int group = 32;                    ///< 32, or 16 with all but kQ8
    Layout layout = Layout::kTile;
    bool learn = true; ///< kQ4 and kQ5: a codebook learned for this matrix; else the fixed one
    /// [k] How much errors at each input count when codes of 4, 5 or 6 bits are chosen, each > 0; null:
    /// all alike.
    const float* importance = nullptr;

    uint8_t* q = nullptr;
    int8_t* s = nullptr; ///< not in kn
    float* d = nullptr;
    uint8_t* cb = nullptr;        ///< [16], kQ4 and kQ5 only
    double* row_error = nullptr;  ///< [rows] sum of squared errors
    double* row_power = nullptr;  ///< [rows] sum of squared weights
    float* row_largest = nullptr; ///< [rows] largest absolute error

    bool eight() const { return encoding == Encoding::kQ8; }
    int rows() const { return layout == Layout::kKn ? k : n; }
    int length() const { return layout == Layout::kKn ? n : k; }
    /// Length of a row after padding, in weights.
    int padded() const;
    /// Bytes of one row's codes.
    size_t code_bytes() const { return size_t(padded()) / 8 * size_t(code_bits(encoding)); }
    /// Bytes from one row to the next in layouts row and kn.
    size_t stride() const;
};

/// Fills the outputs of `request` on `threads` threads with the kernels of a CPU level (cpu::choose has the
/// names; empty: the best one). Throws Error(kDevice) for a level that does not run here.
void encode(const Request& request, int threads, const std::string& level);

} // namespace rwkv::codec
