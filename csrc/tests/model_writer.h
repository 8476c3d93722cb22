// Whole models with random weights, for tests.
#pragma once

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "core/os.h"
#include "model/model.h"
#include "tests/test.h"

namespace rwkv::test {

/// Writes a model with random weights, tensor after tensor, and remembers where they lie. `encoding` "mixed":
/// another one for each kind of matrix, "uneven": another one in the first block. Of ffn.key's rows in
/// quantized encodings every `key_rows`th has weights: about half of those leave an activation above zero.
class ModelWriter {
  public:
    ModelWriter(const Config& config, std::string encoding, bool kn, int key_rows = 1)
        : config_(config), encoding_(std::move(encoding)), kn_(kn), key_rows_(key_rows) {}

    void write(const std::string& path) {
        const int c = config_.n_embd, f = config_.n_ffn, v = config_.vocab_size;
        matrix("emb.weight", v, c, "row");
        norm("blocks.0.ln0");
        for (int layer = 0; layer < config_.n_layer; ++layer) {
            const std::string b = "blocks." + std::to_string(layer) + ".", att = b + "att.", ffn = b + "ffn.";
            norm(b + "ln1");
            norm(b + "ln2");
            for (const char* name : {"receptance", "key", "value", "output"})
                matrix(att + name + ".weight", c, c, "");
            matrix(ffn + "key.weight", f, c, "");
            matrix(ffn + "value.weight", c, f, kn_ ? "kn" : "");
            if (config_.version != Version::k4)
                norm(att + "ln_x");
            const bool v52 = config_.version == Version::k5_2,
                       gated = v52 || config_.version == Version::k5_1;
            if (config_.version == Version::k7) {
                for (const char* name :
                     {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "k_k", "k_a", "r_k"})
                    vector(att + name, c);
                vector(ffn + "x_k", c);
                for (const char* name : {"w", "a", "g"})
                    low_rank(att + name, 24);
                if (layer > 0) {
                    vector(att + "v0", c);
                    low_rank(att + "v", 24);
                }
                continue;
            }
            matrix(ffn + "receptance.weight", c, c, "");
            if (config_.version == Version::k6) {
                for (const char* name : {"x", "w", "k", "v", "r", "g"})
                    vector(att + "time_maa_" + name, c);
                matrix(att + "time_maa_w1", 5 * 24, c, "");
                for (const char* name : {"w", "k", "v", "r", "g"})
                    matrix(att + "time_maa_w2." + name, c, 24, "");
                matrix(att + "time_decay_w1", 24, c, "");
                matrix(att + "time_decay_w2", c, 24, "");
                vector(att + "time_decay", c);
                vector(att + "time_faaaa", c);
                matrix(att + "gate.weight", c, c, "");
                vector(ffn + "time_maa_k", c);
                vector(ffn + "time_maa_r", c);
                continue;
            }
            for (const char* name : {"k", "v", "r"})
                vector(att + "time_mix_" + name, c);
            vector(ffn + "time_mix_k", c);
            vector(ffn + "time_mix_r", c);
            const int scalars = config_.version == Version::k4 || v52 ? c : config_.n_head;
            vector(att + "time_decay", scalars);
            vector(att + (v52 ? "time_faaaa" : "time_first"), scalars);
            if (gated) {
                vector(att + "time_mix_g", c);
                matrix(att + "gate.weight", c, c, "");
            }
        }
        norm("ln_out");
        matrix("head.weight", v, c, "");
        bytes_.resize(bytes_.size() + 64); // qemu's masked loads fault on lanes that are masked out
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes_.data()), std::streamsize(bytes_.size()));
    }

    TensorSpecs specs;

  private:
    void add(const std::string& name, const std::string& encoding, const std::string& layout,
             std::vector<int> shape, const std::vector<std::pair<std::string, std::vector<uint8_t>>>& parts) {
        TensorSpec spec{encoding, layout, std::move(shape), {}};
        for (const auto& [part, data] : parts) {
            spec.parts.push_back({part, bytes_.size(), data.size()});
            bytes_.insert(bytes_.end(), data.begin(), data.end());
            bytes_.resize((bytes_.size() + 63) / 64 * 64);
        }
        specs[name] = spec;
    }
    void vector(const std::string& name, int n) {
        const auto values = gaussian(size_t(n), ++seed_, 0.3f);
        std::vector<uint8_t> data(values.size() * 4);
        std::memcpy(data.data(), values.data(), data.size());
        add(name, "f32", "row", {n}, {{"", data}});
    }
    void norm(const std::string& name) {
        vector(name + ".weight", config_.n_embd);
        vector(name + ".bias", config_.n_embd);
    }
    void low_rank(const std::string& stem, int rank) {
        matrix(stem + "1", rank, config_.n_embd, "");
        matrix(stem + "2", config_.n_embd, rank, "");
    }
    void matrix(const std::string& name, int n, int k, std::string layout) {
        const std::string encoding = encoding_of(name);
        if (layout.empty())
            layout = encoding[0] == 'q' ? "t16x4" : "row";
        const RandomMatrix random(encoding, layout, n, k, ++seed_);
        std::vector<std::pair<std::string, std::vector<uint8_t>>> parts;
        for (size_t i = 0; i < random.part_sizes.size(); ++i) {
            const uint8_t* data = random.bytes.data() + random.part_offsets[i];
            parts.push_back(
                {random.part_sizes[i].first, std::vector<uint8_t>(data, data + random.part_sizes[i].second)});
            if (encoding == "f16") // qemu takes subnormal ones for zeros where x86-64 flushes floats alone
                for (size_t at = 1; at < parts.back().second.size(); at += 2)
                    if ((parts.back().second[at] & 0x7c) == 0)
                        parts.back().second[at] |= 0x04;
            if (parts.back().first == "d" && name.find("ffn.key") != std::string::npos)
                for (size_t row = 0; row < size_t(n); ++row)
                    if (row % size_t(key_rows_) != 0)
                        std::memset(parts.back().second.data() + row * sizeof(float), 0, sizeof(float));
        }
        add(name, encoding, layout, {n, k}, parts);
    }
    std::string encoding_of(const std::string& name) const {
        const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
        if (encoding_ == "uneven")
            return has("blocks.0.") ? "q8g32" : "q4g32";
        if (encoding_ != "mixed")
            return encoding_;
        if (has("ffn.value"))
            return "q4g16";
        if (has("att.key") || has("att.w2"))
            return "q6g32";
        if (has("att.value") || has("att.a2"))
            return "q5g32";
        if (has("ffn.") || has("head."))
            return "q4g32";
        return has("emb.") ? "bf16" : has(".weight") ? "q8g32" : "f16";
    }

    Config config_;
    std::string encoding_;
    bool kn_;
    int key_rows_;
    unsigned seed_ = 0;
    std::vector<uint8_t> bytes_;
};

/// This process's own file, removed when it ends.
inline std::string temporary() {
    struct File {
        std::string path;
        File() {
            const char* folder = std::getenv("TMPDIR");
            path = std::string(folder ? folder : "/tmp") + "/rwkv_tests_model." +
                   std::to_string(os::process_id());
        }
        ~File() { std::remove(path.c_str()); }
    };
    static const File file;
    return file.path;
}

/// All of a state on the CPU, or on two devices.
template <class S>
std::vector<float> values_of(const S& state) {
    std::vector<float> all;
    for (const State::Entry& entry : state.export_entries())
        all.insert(all.end(), entry.values.begin(), entry.values.end());
    return all;
}

/// Bit for bit.
inline bool same(const float* a, const float* b, size_t n) {
    return std::memcmp(a, b, n * sizeof(float)) == 0;
}
inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && same(a.data(), b.data(), a.size());
}

} // namespace rwkv::test
