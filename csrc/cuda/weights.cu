#include "cuda/weights.h"

#include "core/check.h"

namespace rwkv::cuda {
namespace {

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Takes over a matrix's description. Its parts must have the bytes that kernels read of it.
void describe(const rwkv_cuda_matrix& from, DeviceMatrix& to) {
    if (from.n == 0)
        return;
    require(from.encoding >= 0 && from.encoding <= int(Encoding::kQ5) && from.layout >= 0 &&
                from.layout <= int(Layout::kKn) && from.n > 0 && from.k > 0,
            Fault::kFormat, "impossible matrix");
    to.encoding = Encoding(from.encoding);
    to.layout = Layout(from.layout);
    to.n = from.n;
    to.k = from.k;
    to.group = from.group;
    to.n_pad = from.n_pad;
    to.k_pad = from.k_pad;
    to.stride = from.stride;
    const size_t n = size_t(to.n_pad), k = size_t(to.k_pad);
    size_t q = 0, s = 0, d = 0, cb = 0;
    if (to.encoding == Encoding::kF32 || to.encoding == Encoding::kF16 || to.encoding == Encoding::kBf16) {
        require(to.layout == Layout::kRow && to.n_pad == to.n && to.k_pad == to.k, Fault::kFormat,
                "impossible float matrix");
        q = n * k * (to.encoding == Encoding::kF32 ? 4 : 2);
    } else {
        const auto code_bytes = [&](size_t weights) { return weights / 8 * size_t(code_bits(to.encoding)); };
        require(to.group == 32 || (to.encoding != Encoding::kQ8 && to.group == 16), Fault::kFormat,
                "impossible group");
        cb = has_codebook(to.encoding) ? 16 : 0;
        if (to.layout == Layout::kKn) {
            require(to.n_pad == round_up(to.n, line_outputs(to.encoding)) && to.k_pad == to.k &&
                        to.stride == round_up(int(code_bytes(n)) + to.n_pad / to.group, 64),
                    Fault::kFormat, "impossible records");
            q = k * size_t(to.stride);
            d = k * 4;
        } else {
            const bool tile = to.layout == Layout::kTile;
            require(to.k_pad == round_up(to.k, 32) && to.n_pad == (tile ? round_up(to.n, kTileRows) : to.n),
                    Fault::kFormat, "impossible padding");
            q = code_bytes(n * k);
            s = n * k / size_t(to.group);
            d = n * 4;
        }
    }
    require(from.q_bytes == q && from.s_bytes == s && from.d_bytes == d && from.cb_bytes == cb,
            Fault::kFormat, "a matrix's part has a wrong size");
    if (cb)
        for (int i = 0; i < 16; ++i)
            to.codebook[i / 4] |= uint32_t(uint8_t(int(from.cb[i]) - kQ4Zero)) << (i % 4 * 8);
}

} // namespace

Config make_config(const rwkv_cuda_config& c) {
    require(c.version >= 0 && c.version <= int(Version::k7), Fault::kFormat, "unknown RWKV version");
    require(c.layer_norm_eps == kLayerNormEps, Fault::kFormat, "another layer norm's epsilon");
    Config config;
    config.version = Version(c.version);
    config.n_layer = c.n_layer;
    config.n_embd = c.n_embd;
    config.n_head = c.n_head;
    config.head_size = c.head_size;
    config.n_ffn = c.n_ffn;
    config.vocab_size = c.vocab_size;
    config.group_norm_eps = c.group_norm_eps;
    return config;
}

/// Everything that lies on the device, in one fixed order: take(matrix from, to), take(vector from, to,
/// count).
template <class F>
void DeviceWeights::each(F& take) {
    const int c = config_.n_embd;
    const auto norm = [&](const rwkv_cuda_norm& from, DeviceNorm& to) {
        take(from.weight, to.weight, c);
        take(from.bias, to.bias, c);
    };
    take(source_->emb, emb);
    norm(source_->ln0, ln0);
    for (size_t i = 0; i < blocks.size(); ++i) {
        const rwkv_cuda_block& from = source_->blocks[i];
        DeviceBlock& to = blocks[i];
        norm(from.ln1, to.ln1);
        norm(from.ln2, to.ln2);
        norm(from.ln_x, to.ln_x);
#define RWKV_VECTOR(name) take(from.name, to.name, c)
#define RWKV_MATRIX(name) take(from.name, to.name)
        RWKV_VECTOR(mix_x);
        RWKV_VECTOR(mix_r);
        RWKV_VECTOR(mix_w);
        RWKV_VECTOR(mix_k);
        RWKV_VECTOR(mix_v);
        RWKV_VECTOR(mix_a);
        RWKV_VECTOR(mix_g);
        RWKV_MATRIX(receptance);
        RWKV_MATRIX(key);
        RWKV_MATRIX(value);
        RWKV_MATRIX(gate);
        RWKV_MATRIX(output);
        RWKV_VECTOR(decay);
        RWKV_VECTOR(bonus);
        RWKV_MATRIX(maa_w1);
        for (int j = 0; j < 5; ++j)
            RWKV_MATRIX(maa_w2[j]);
        RWKV_MATRIX(decay_w1);
        RWKV_MATRIX(decay_w2);
        RWKV_MATRIX(w1);
        RWKV_MATRIX(w2);
        RWKV_MATRIX(a1);
        RWKV_MATRIX(a2);
        RWKV_MATRIX(v1);
        RWKV_MATRIX(v2);
        RWKV_MATRIX(g1);
        RWKV_MATRIX(g2);
        RWKV_VECTOR(w0);
        RWKV_VECTOR(a0);
        RWKV_VECTOR(v0);
        RWKV_VECTOR(k_k);
        RWKV_VECTOR(k_a);
        RWKV_VECTOR(r_k);
        RWKV_VECTOR(ffn_mix_k);
        RWKV_VECTOR(ffn_mix_r);
        RWKV_MATRIX(ffn_key);
        RWKV_MATRIX(ffn_value);
        RWKV_MATRIX(ffn_receptance);
#undef RWKV_VECTOR
#undef RWKV_MATRIX
    }
    norm(source_->ln_out, ln_out);
    take(source_->head, head);
}

namespace {

struct Count {
    Arena& arena;
    bool embedding = true; // the first matrix
    void operator()(const rwkv_cuda_matrix& from, DeviceMatrix& to) {
        describe(from, to);
        const bool rows_of_codes = to.layout == Layout::kRow && from.d_bytes > 0;
        require(embedding || to.empty() || !rows_of_codes, Fault::kFormat, "layout 'row' holds no products");
        embedding = false;
        arena.cut<uint8_t>(from.n ? from.q_bytes : 0);
        arena.cut<uint8_t>(from.n ? from.s_bytes : 0);
        arena.cut<uint8_t>(from.n ? from.d_bytes : 0);
    }
    void operator()(const float* from, const float*& to, int count) {
        to = nullptr;
        arena.cut<float>(from ? size_t(count) : 0);
    }
};

struct Copy {
    Arena& arena;
    Uploader& uploader;
    template <class T>
    const T* part(const void* from, size_t bytes) {
        T* to = arena.cut<T>(bytes / sizeof(T));
        if (bytes)
            uploader.copy(to, from, bytes);
        return to;
    }
    void operator()(const rwkv_cuda_matrix& from, DeviceMatrix& to) {
        if (from.n == 0)
            return;
        to.q = part<uint8_t>(from.q, from.q_bytes);
        to.s = part<int8_t>(from.s, from.s_bytes);
        to.d = part<float>(from.d, from.d_bytes);
    }
    void operator()(const float* from, const float*& to, int count) {
        if (from)
            to = part<float>(from, size_t(count) * sizeof(float));
    }
};

} // namespace

DeviceWeights::DeviceWeights(const Config& config, const rwkv_cuda_weights& weights)
    : blocks(size_t(config.n_layer)), config_(config), source_(&weights) {
    Count count{arena_};
    each(count);
    require(emb.empty() ||
                (emb.layout == Layout::kRow && emb.n == config.vocab_size && emb.k == config.n_embd),
            Fault::kFormat, "impossible embedding");
    require(head.n == config.vocab_size && head.k == config.n_embd, Fault::kFormat, "impossible head");
}

void DeviceWeights::upload(cudaStream_t stream) {
    arena_.allocate();
    Uploader uploader(stream);
    Copy copy{arena_, uploader};
    each(copy);
    check(cudaStreamSynchronize(stream), "copying to the device");
    source_ = nullptr;
}

} // namespace rwkv::cuda
