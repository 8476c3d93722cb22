// The operations that exist once per CPU level, behind one table of function pointers chosen at load.
// Every level computes the same floats, bit for bit: all of them are compiled from the same *_inl.h files,
// where each sum has one fixed order and each fused multiply-add is written out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/matrix.h"

namespace rwkv::cpu {

/// T rows of activations with `k` channels. Consumers with integer tiles read `q`, `scale` and the biases;
/// float and kn consumers read `f`. Rows are padded with zeros to k_pad (a multiple of 32). Unused forms are
/// null. The integer form interleaves `width` rows, so that a kernel walks all of them with one pointer: 1
/// for a single row, the level's token_block for more (rows past T in the last block hold anything).
struct Acts {
    int k = 0;
    int k_pad = 0;
    int width = 1;
    float* f = nullptr;      ///< [T, k_pad]
    int8_t* q = nullptr;     ///< [T / width, k_pad / 4, width, 4], -127..127
    float* scale = nullptr;  ///< [T / width, k_pad / 32, width]; value = q * scale
    int8_t* split = nullptr; ///< [T / width, k_pad / 4, width, 8], see KernelTable::splits_q8: of four q the
                             ///< magnitudes, and bytes by which an exclusive or makes of a code of q8 what
                             ///< is multiplied with them: code - 128, of a negative q 127 - code
    int32_t* bias_q8 = nullptr; ///< like scale: -128 times the group's sum of q; beside `split` what its
                                ///< products lack, the sum of the magnitudes of what is negative
    int32_t* bias_q4 = nullptr; ///< [T / width, k_pad / 16, width]: -64 times the half group's sum of q; q6
                                ///< takes half of it
};

/// What happens to a product y before it is stored.
enum class Epilogue {
    kStore,   ///< out = y
    kTanh,    ///< out = tanh(y)
    kSigmoid, ///< out = 1 / (1 + exp(-y))
    kSilu,    ///< out = y * sigmoid(y)
    kRelu2,   ///< out = max(y, 0)^2
    kAdd,     ///< out += y
    kMulAdd,  ///< out += gate * y
};

/// One matrix product over T rows of activations: out[t, n] = epilogue(sum_k w[n, k] x[t, k]).
struct Product {
    const Matrix* w = nullptr;
    const Acts* x = nullptr;
    Epilogue epilogue = Epilogue::kStore;
    float* out = nullptr; ///< [T, out_stride] or null when only the quantized form is wanted
    size_t out_stride = 0;
    const float* gate = nullptr; ///< [T, gate_stride]; kMulAdd only
    size_t gate_stride = 0;
    Acts* quantized = nullptr; ///< where the outputs go as activations of the next product
};

/// The widest token_block of all levels: buffers hold whole blocks.
constexpr int kWidestBlock = 8;

/// A row and the one of the token before it.
struct Shifted {
    const float* now;
    const float* previous;
};

/// Rows that a kn product takes at once.
constexpr int kSparseTokens = 32;

/// Room for a list of a kn matrix's input channels, as its product writes it: whole vectors, and one more.
inline size_t listed_channels(const Matrix& w) { return size_t(w.k) / 16 * 16 + 32; }

/// Bytes of scratch that a thread needs for any part of a product with `w` over `rows` rows.
size_t product_scratch_bytes(const Matrix& w, int rows);

struct KernelTable {
    const char* name;
    int token_block; ///< Acts::width of several rows
    bool splits_q8;  ///< whether products of several rows with tiles of q8 read Acts::split

    /// Units [begin, end) of a product over `rows` rows. Any split of the units gives the same result.
    /// `scratch` has product_scratch_bytes and is 64-byte aligned.
    void (*product)(const Product& p, int begin, int end, int rows, uint8_t* scratch);

    /// y = (x - mean) / sqrt(var + eps) * weight + bias over n channels (population variance). y may be x.
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int n, float* y);
    /// Rows [t, t + count) of `acts` from now + (previous - now) * mix, n channels each.
    void (*shift_acts)(const Shifted* rows, int count, const float* mix, int n, int t, Acts& acts);
    /// out = x + (prev - x) * (mix + delta), the data-dependent form of RWKV-6
    void (*shift_mix_delta)(const float* x, const float* prev, const float* mix, const float* delta, int n,
                            float* out);
    /// Rows [t, t + count) of `acts` from x, `stride` floats apart, channels [begin, end); begin a multiple
    /// of 32, the padding is zeroed at the end. Fills every form that `acts` has.
    void (*set_acts)(const float* x, size_t stride, int t, int count, int begin, int end, Acts& acts);
    /// Row `row` of an embedding as float32 [k].
    void (*embedding_row)(const Matrix& m, int row, float* out);

    /// Elementwise over n values, in place.
    void (*exp_neg_exp)(float* x, int n); ///< exp(-exp(x)): decays of RWKV-5 and 6
    void (*exp)(float* x, int n);

    /// RWKV-4 time mix over channels [begin, end) of T consecutive tokens. k, v, r (already through the
    /// sigmoid): [T, stride]; aa, bb, pp: [C] state; w: log decay (negative); u: bonus; out: [T, stride] = r
    /// * wkv.
    void (*wkv4)(const float* r, const float* k, const float* v, const float* w, const float* u, float* aa,
                 float* bb, float* pp, float* out, size_t stride, int rows, int begin, int end);
    /// RWKV-5 and 6, one head of T tokens. r, k, v, w: rows of `stride` floats at this head's first channel;
    /// w has w_stride (0: the same decay for all tokens). u: [N]. state: [N key, state_stride value].
    void (*wkv5)(const float* r, const float* k, const float* v, const float* w, size_t w_stride,
                 const float* u, float* state, float* out, size_t stride, int rows, int head_size);
    /// RWKV-7, one head of T tokens. a is -kk, b is kk * iclr.
    void (*wkv7)(const float* r, const float* k, const float* v, const float* w, const float* a,
                 const float* b, float* state, float* out, size_t stride, int rows, int head_size);
    /// RWKV-7, one head and token, in place. Before: k, v, and the low-rank outputs w, a, v_gate. After, with
    /// rate = sigmoid(a0 + a) and kk = normalized k * k_k: a = -kk, b = kk rate, k = k (1 + (rate - 1) k_a),
    /// w = exp(-0.606531 sigmoid(w0 + w)), v = v + (v_first - v) sigmoid(v0 + v_gate) unless v_gate is null.
    void (*prepare7)(float* k, float* w, float* a, float* b, float* v, const float* v_first,
                     const float* v_gate, const float* w0, const float* a0, const float* v0, const float* k_k,
                     const float* k_a, int head_size);
    /// RWKV-7 after the recurrence, one head and token: y = GN(y) * ln_w + ln_b + (sum r k r_k) v, times
    /// gate.
    void (*finish7)(float* y, const float* r, const float* k, const float* v, const float* r_k,
                    const float* ln_w, const float* ln_b, const float* gate, float eps, int head_size);
    /// RWKV-5 and 6: y = GN(y) * ln_w + ln_b, times gate unless it is null. One head, one token.
    void (*finish5)(float* y, const float* ln_w, const float* ln_b, const float* gate, float eps,
                    int head_size);

    /// The largest of n >= 1 values. A NaN may be passed over.
    float (*largest)(const float* x, int n);
    /// weights[i] = exp((logits[i] - top) / temperature), 0 below e^-87.33, where `top` is the largest of n.
    /// Of every block of kSoftmaxBlock weights its largest and its sum (NaN with a NaN in it). `weights` has
    /// room for whole blocks; the rest of the last one becomes 0.
    void (*softmax_weights)(const float* logits, int n, float top, float temperature, float* weights,
                            float* maxima, float* sums);
    /// Of every block the sum of weights[i] * (logits[i] - top) / temperature, the factor not below -87.33.
    void (*softmax_surprise)(const float* logits, int n, float top, float temperature, const float* weights,
                             float* sums);

    /// Reads `lines` lines of 64 bytes with the widest loads and does next to nothing with them.
    float (*read_lines)(const uint8_t* p, size_t lines);
};

/// Logits whose weights are summed, and skipped, together.
constexpr int kSoftmaxBlock = 128;

/// Value rows of a head's state are padded to whole vectors of 16 floats.
constexpr int state_stride(int head_size) { return (head_size + 15) / 16 * 16; }

/// The table of the best level this processor runs, or of the level that RWKV_CPU_LEVEL names (scalar, avx2,
/// avxvnni, avx512, neon, dotprod, i8mm; a trailing "!" skips the check that the processor reports it).
/// Throws Error(kDevice) when it cannot run.
const KernelTable& choose(const char* forced_level);

/// Names of the levels that this processor can run, best last.
const char* const* runnable_levels(int* count);

} // namespace rwkv::cpu
