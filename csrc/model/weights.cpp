#include "model/weights.h"

#include <cmath>
#include <functional>

#include "core/check.h"

namespace rwkv {
namespace {

class Reader {
  public:
    Reader(const MappedFile& file, const TensorSpecs& specs) : file_(file), specs_(specs) {}

    bool has(const std::string& name) const { return specs_.count(name) != 0; }

    Matrix matrix(const std::string& name, int n, int k) const {
        const TensorSpec& spec = find(name);
        require(spec.shape.size() == 2 && (n < 0 || spec.shape[0] == n) && (k < 0 || spec.shape[1] == k),
                Fault::kFormat, name + ": wrong shape");
        return make_matrix(name, spec.encoding, spec.layout, spec.shape[0], spec.shape[1], parts(spec));
    }

    /// A product's operand: like matrix, but not in the layout of a gathered table.
    Matrix operand(const std::string& name, int n, int k) const {
        const Matrix m = matrix(name, n, k);
        require(m.is_float() || m.layout != Layout::kRow, Fault::kFormat,
                name + ": layout 'row' holds no products");
        return m;
    }

    const float* vector(const std::string& name, int n) const {
        const TensorSpec& spec = find(name);
        size_t count = 1;
        for (const int size : spec.shape)
            count *= size_t(size);
        require(spec.encoding == "f32" && count == size_t(n), Fault::kFormat,
                name + ": wrong shape or encoding");
        const Parts all = parts(spec);
        const auto data = all.find("");
        require(data != all.end() && data->second.bytes == size_t(n) * 4, Fault::kFormat,
                name + ": wrong size");
        return reinterpret_cast<const float*>(data->second.data);
    }

    int size(const std::string& name) const {
        int count = 1;
        for (const int dim : find(name).shape)
            count *= dim;
        return count;
    }

  private:
    const TensorSpec& find(const std::string& name) const {
        const auto found = specs_.find(name);
        require(found != specs_.end(), Fault::kFormat, file_.path() + ": tensor " + name + " is missing");
        return found->second;
    }
    Parts parts(const TensorSpec& spec) const {
        Parts result;
        for (const TensorSpec::Part& part : spec.parts)
            result[part.name] = {file_.range(part.offset, part.bytes), part.bytes};
        for (const auto& [name, part] : result)
            require(reinterpret_cast<uintptr_t>(part.data) % 4 == 0, Fault::kFormat,
                    file_.path() + ": misaligned tensor");
        return result;
    }

    const MappedFile& file_;
    const TensorSpecs& specs_;
};

} // namespace

Weights::Weights(const MappedFile& file, const Config& config, const TensorSpecs& specs,
                 const cpu::KernelTable& op) {
    const Reader in(file, specs);
    const Version version = config.version;
    const int c = config.n_embd, f = config.n_ffn;
    const auto norm = [&](const std::string& name) {
        return Norm{in.vector(name + ".weight", c), in.vector(name + ".bias", c)};
    };
    const auto own = [&](int count, const std::function<float(int)>& value) {
        AlignedBuffer<float> buffer{size_t(count)};
        for (int i = 0; i < count; ++i)
            buffer.data()[i] = value(i);
        owned_.push_back(std::move(buffer));
        return owned_.back().data();
    };

    emb = in.matrix("emb.weight", config.vocab_size, c);
    require(emb.layout == Layout::kRow, Fault::kFormat, "emb.weight: must have layout 'row'");
    head = in.operand("head.weight", config.vocab_size, c);
    if (in.has("blocks.0.ln0.weight")) // a model without has it in its embedding
        ln0 = norm("blocks.0.ln0");
    ln_out = norm("ln_out");

    for (int layer = 0; layer < config.n_layer; ++layer) {
        const std::string block = "blocks." + std::to_string(layer) + ".", att = block + "att.",
                          ffn = block + "ffn.";
        const auto square = [&](const std::string& name) { return in.operand(name, c, c); };
        // v4 and v5 weigh the current token, the kernel the previous one
        const auto flipped = [&](const std::string& name) {
            const float* m = in.vector(name, c);
            return own(c, [m](int i) { return 1.0f - m[i]; });
        };
        Block b;
        b.ln1 = norm(block + "ln1");
        b.ln2 = norm(block + "ln2");
        b.receptance = square(att + "receptance.weight");
        b.key = square(att + "key.weight");
        b.value = square(att + "value.weight");
        b.output = square(att + "output.weight");
        b.ffn_key = in.operand(ffn + "key.weight", f, c);
        b.ffn_value = in.operand(ffn + "value.weight", c, f);
        if (version != Version::k7)
            b.ffn_receptance = square(ffn + "receptance.weight");
        if (version != Version::k4)
            b.ln_x = norm(att + "ln_x");
        if (version == Version::k5_1 || version == Version::k5_2 || version == Version::k6)
            b.gate = square(att + "gate.weight");

        if (version == Version::k4 || version == Version::k5_0 || version == Version::k5_1 ||
            version == Version::k5_2) {
            b.mix_k = flipped(att + "time_mix_k");
            b.mix_v = flipped(att + "time_mix_v");
            b.mix_r = flipped(att + "time_mix_r");
            if (!b.gate.empty())
                b.mix_g = flipped(att + "time_mix_g");
            b.ffn_mix_k = flipped(ffn + "time_mix_k");
            b.ffn_mix_r = flipped(ffn + "time_mix_r");
        }
        if (version == Version::k4) {
            float* decay = own(c, [m = in.vector(att + "time_decay", c)](int i) { return m[i]; });
            op.exp(decay, c);
            for (int i = 0; i < c; ++i)
                decay[i] = -decay[i];
            b.decay = decay;
            b.bonus = in.vector(att + "time_first", c);
        } else if (version == Version::k5_0 || version == Version::k5_1 || version == Version::k5_2) {
            // one decay and bonus per channel; 5.0 and 5.1 store one per head
            const auto spread = [&](const std::string& name) {
                const int count = in.size(name);
                require(count == c || count == config.n_head, Fault::kFormat, name + ": wrong shape");
                const float* m = in.vector(name, count);
                const int each = c / count;
                return own(c, [m, each](int i) { return m[i / each]; });
            };
            float* decay = spread(att + "time_decay");
            op.exp_neg_exp(decay, c);
            b.decay = decay;
            if (in.has(att + "time_faaaa")) {
                b.bonus = spread(att + "time_faaaa");
            } else { // the first form of 5.0 stores its logarithm
                float* bonus = spread(att + "time_first");
                op.exp(bonus, c);
                b.bonus = bonus;
            }
        } else if (version == Version::k6) {
            b.mix_x = in.vector(att + "time_maa_x", c);
            b.mix_w = in.vector(att + "time_maa_w", c);
            b.mix_k = in.vector(att + "time_maa_k", c);
            b.mix_v = in.vector(att + "time_maa_v", c);
            b.mix_r = in.vector(att + "time_maa_r", c);
            b.mix_g = in.vector(att + "time_maa_g", c);
            b.decay = in.vector(att + "time_decay", c);
            b.bonus = in.vector(att + "time_faaaa", c);
            b.maa_w1 = in.operand(att + "time_maa_w1", -1, c);
            require(b.maa_w1.n % 5 == 0, Fault::kFormat, att + "time_maa_w1: rows are no multiple of 5");
            const char* order[5] = {"w", "k", "v", "r", "g"};
            for (int i = 0; i < 5; ++i)
                b.maa_w2[i] = in.operand(att + "time_maa_w2." + order[i], c, b.maa_w1.n / 5);
            b.decay_w1 = in.operand(att + "time_decay_w1", -1, c);
            b.decay_w2 = in.operand(att + "time_decay_w2", c, b.decay_w1.n);
            b.ffn_mix_k = in.vector(ffn + "time_maa_k", c);
            b.ffn_mix_r = in.vector(ffn + "time_maa_r", c);
        } else {
            b.mix_r = in.vector(att + "x_r", c);
            b.mix_w = in.vector(att + "x_w", c);
            b.mix_k = in.vector(att + "x_k", c);
            b.mix_v = in.vector(att + "x_v", c);
            b.mix_a = in.vector(att + "x_a", c);
            b.mix_g = in.vector(att + "x_g", c);
            b.w0 = in.vector(att + "w0", c);
            b.a0 = in.vector(att + "a0", c);
            b.k_k = in.vector(att + "k_k", c);
            b.k_a = in.vector(att + "k_a", c);
            b.r_k = in.vector(att + "r_k", c);
            const auto pair = [&](const char* name, Matrix& first, Matrix& second) {
                first = in.operand(att + name + "1", -1, c);
                second = in.operand(att + name + "2", c, first.n);
            };
            pair("w", b.w1, b.w2);
            pair("a", b.a1, b.a2);
            pair("g", b.g1, b.g2);
            if (layer >
                0) { // block 0 makes v_first; its own v tensors, where a checkpoint has them, are unused
                pair("v", b.v1, b.v2);
                b.v0 = in.vector(att + "v0", c);
            }
            b.ffn_mix_k = in.vector(ffn + "x_k", c);
        }
        blocks.push_back(b);
    }
    require_uniform_blocks();
}

void Weights::require_uniform_blocks() const {
    const Block& last = blocks.back();
    const auto uniform = [](const Matrix& a, const Matrix& b) {
        if (a.empty() || b.empty())
            return;
        require(a.wants_quantized() == b.wants_quantized(), Fault::kFormat,
                "a tensor has an integer form in one block and a float form in another");
        require(a.n == b.n && a.k == b.k, Fault::kFormat, "blocks differ in their shapes");
    };
    for (const Block& b : blocks) {
        for (Matrix Block::* m :
             {&Block::receptance, &Block::key, &Block::value, &Block::gate, &Block::output, &Block::maa_w1,
              &Block::decay_w1, &Block::decay_w2, &Block::w1, &Block::w2, &Block::a1, &Block::a2, &Block::v1,
              &Block::v2, &Block::g1, &Block::g2, &Block::ffn_key, &Block::ffn_value, &Block::ffn_receptance})
            uniform(b.*m, last.*m);
        for (int i = 0; i < 5; ++i)
            uniform(b.maa_w2[i], last.maa_w2[i]);
    }
}

} // namespace rwkv
