// What kernels are given: matrices in the bytes of the file, activations, products. Plain data, passed by
// value.
#pragma once

#include <cstdint>

#include "formats/matrix.h"

namespace rwkv::cuda {

/// A matrix on the device, laid out as in the file (quant/container/FORMAT.md).
struct DeviceMatrix {
    Encoding encoding = Encoding::kF32;
    Layout layout = Layout::kRow;
    int n = 0, k = 0, group = 0, n_pad = 0, k_pad = 0, stride = 0; ///< as in Matrix
    const uint8_t* q = nullptr;
    const int8_t* s = nullptr;
    const float* d = nullptr;
    uint32_t codebook[4] = {}; ///< q4 and q5: sixteen signed bytes, the zero point taken off

    bool empty() const { return n == 0; }
    bool wants_quantized() const { return layout == Layout::kTile; }
};

/// T rows of activations with k channels, padded with zeros to k_pad, a multiple of 32. Consumers with
/// integer tiles read q and scale, others f. Forms that nobody reads are null. The values are those of
/// cpu::Acts; rows are not interleaved.
struct Acts {
    int k = 0, k_pad = 0;
    float* f = nullptr;       ///< [T, k_pad]
    int8_t* q = nullptr;      ///< [T, k_pad]
    float* scale = nullptr;   ///< [T, k_pad / 32]
    uint32_t* mask = nullptr; ///< [T, k_pad / 32] which are not zero
};

/// [T, stride] floats.
struct Rows {
    float* data = nullptr;
    int stride = 0;
};

/// As cpu::Epilogue.
enum class Epilogue { kStore, kTanh, kSigmoid, kSilu, kRelu2, kAdd, kMulAdd };

/// As cpu::Product: out[t, n] = epilogue(sum_k w[n, k] x[t, k]), and the same as activations if `quantized`
/// is not empty.
struct Product {
    DeviceMatrix w;
    Acts x;
    Epilogue epilogue = Epilogue::kStore;
    Rows out;
    Rows gate;      ///< kMulAdd only
    Acts quantized; ///< k = 0: none
};

struct DeviceNorm {
    const float *weight = nullptr, *bias = nullptr;
};

/// Consecutive tokens [begin, begin + count) of one sequence.
struct Segment {
    float* state;
    int begin, count;
};

/// What a pass is about. What the pointers lead to is written before each pass, so that a captured graph
/// serves any state and token.
struct Batch {
    const int32_t* tokens;   ///< [rows]
    float* const* first;     ///< [rows] state of the sequence that begins with this row, or null
    float* const* last;      ///< [rows] state of the sequence that ends with this row, or null
    const Segment* segments; ///< those of the pass
};

constexpr int kScanHead = 64; ///< channels of a head whose recurrence has kernels for many tokens

constexpr int kMostProducts = 7;

/// Products that run side by side in one launch.
struct ProductList {
    Product item[kMostProducts];
    int first_unit[kMostProducts +
                   1];        ///< in units of 32 outputs, or of `tiles`; [count] is the number of all
    int tiles[kMostProducts]; ///< of a unit; one column only
    int count;
    /// Then, row by row, the states that a sequence's last row leaves behind: last[row][offset ..] = normed.
    const float* normed; ///< [rows, width] or null
    float* const* last;
    size_t offset;
    int width;
};

/// The active channels of rows of relu^2 activations, ascending, in blocks of 16.
struct SparseRows {
    int32_t* channels; ///< [T, stride]; the places of missing ones in the last block repeat its first
    float* factors;    ///< [T, stride] activation * record scale / step
    float* steps;      ///< [T, stride / 16]
    int32_t* blocks;   ///< [T]
    int stride;
};

constexpr int kSparseOutputs = 64; ///< of half a line of a record, at most

/// What the blocks of threads leave for the last of a half line.
struct SparseTerms {
    float* sums;        ///< [half lines, blocks, kSparseOutputs]
    float* steps;       ///< [half lines, blocks]
    unsigned* arrivals; ///< [half lines]; zero between launches
    int blocks;         ///< of 16 channels, at most
};

} // namespace rwkv::cuda
