// A weight matrix inside the mapped file. It carries its encoding and layout, so the model never names one.
// The byte layouts are specified in quant/container/FORMAT.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace rwkv {

enum class Encoding { kF32, kF16, kBf16, kQ8, kQ4, kQ6, kQ5 };
enum class Layout { kRow, kTile, kKn };

/// Rows of a tile, and outputs of the smallest piece of work (two tiles: one group of the next activation).
constexpr int kTileRows = 16;
constexpr int kUnitRows = 32;
/// Activations are quantized in groups of this many input channels, each with one float32 scale.
constexpr int kActGroup = 32;
constexpr int kQ8Zero = 128;
constexpr int kQ4Zero = 64; ///< q5 too
constexpr int kQ6Zero = 32;
/// Products with kn records: activation times record scale times group scale, of the largest in a block of
/// sixteen, as an integer that two signed bytes hold.
constexpr float kLargestMultiplier = 127 * 257;

/// Bits of one code of a quantized encoding.
constexpr int code_bits(Encoding e) {
    return e == Encoding::kQ8 ? 8 : e == Encoding::kQ6 ? 6 : e == Encoding::kQ5 ? 5 : 4;
}
constexpr int zero_point(Encoding e) {
    return e == Encoding::kQ8 ? kQ8Zero : e == Encoding::kQ6 ? kQ6Zero : kQ4Zero;
}
/// Whether a table of 16 bytes says what its codes stand for.
constexpr bool has_codebook(Encoding e) { return e == Encoding::kQ4 || e == Encoding::kQ5; }
/// Outputs whose nibbles, or codes of 8 bits, fill a line of 64 bytes of a kn record.
constexpr int line_outputs(Encoding e) { return e == Encoding::kQ8 ? 64 : 128; }

/// [n, k] = [outputs, inputs]. Pointers lie in the mapped file.
struct Matrix {
    std::string name; ///< of the logical tensor
    Encoding encoding = Encoding::kF32;
    Layout layout = Layout::kRow;
    int n = 0;
    int k = 0;
    int group = 0;  ///< weights per scale; 0 for float encodings
    int n_pad = 0;  ///< outputs stored (tile: 16, kn: 64 or 128)
    int k_pad = 0;  ///< inputs stored (tile, quantized rows: 32)
    int stride = 0; ///< bytes of one kn record
    const uint8_t* q = nullptr;
    const int8_t* s = nullptr;   ///< group scales; for kn they lie inside the records
    const float* d = nullptr;    ///< row scales; for kn one per input channel
    const uint8_t* cb = nullptr; ///< 16 codebook entries; q4 and q5 only

    bool empty() const { return n == 0; }
    bool is_float() const {
        return encoding == Encoding::kF32 || encoding == Encoding::kF16 || encoding == Encoding::kBf16;
    }
    /// Whether products with it take activations as 8-bit integers (else float32).
    bool wants_quantized() const { return layout == Layout::kTile; }
    /// Outputs that one thread takes at the least.
    int unit() const { return layout == Layout::kKn ? line_outputs(encoding) : kUnitRows; }
    int units() const { return (n + unit() - 1) / unit(); }
    /// Bytes of the codes of `weights` weights; quantized encodings only.
    size_t code_bytes(size_t weights) const { return weights / 8 * size_t(code_bits(encoding)); }
    /// Bytes read when all of it is used.
    size_t bytes() const;
};

/// Pointers and byte counts of a tensor's parts, by part name ("" for float data, "q", "s", "d", "cb").
struct Part {
    const uint8_t* data = nullptr;
    size_t bytes = 0;
};
using Parts = std::map<std::string, Part>;

/// Builds a Matrix and checks that every part has exactly the bytes its shape needs.
/// Throws Error(kFormat) that names the tensor.
Matrix make_matrix(const std::string& name, const std::string& encoding, const std::string& layout, int n,
                   int k, const Parts& parts);

} // namespace rwkv
