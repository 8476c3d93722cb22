#include "model/state.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "cpu/kernels.h"

namespace rwkv {

State::State(const Config& config) : config_(config), c_(size_t(config.n_embd + 15) / 16 * 16) {
    const bool v4 = config.version == Version::k4;
    head_floats_ = v4 ? 0 : size_t(config.head_size) * size_t(cpu::state_stride(config.head_size));
    layer_floats_ = v4 ? 5 * c_ : 2 * c_ + size_t(config.n_head) * head_floats_;
    data_ = AlignedBuffer<float>(layer_floats_ * size_t(config.n_layer));
    if (v4)
        for (int layer = 0; layer < config.n_layer; ++layer)
            std::fill_n(pp(layer), config.n_embd, -1e30f);
}

State::State(const State& other)
    : config_(other.config_), c_(other.c_), head_floats_(other.head_floats_),
      layer_floats_(other.layer_floats_), data_(other.data_.size()) {
    assign(other);
}

void State::assign(const State& other) { std::memcpy(data_.data(), other.data_.data(), bytes()); }

std::vector<State::Entry> State::export_entries() const {
    State& self = const_cast<State&>(*this); // the accessors are shared with the engine, which writes
    const size_t c = size_t(config_.n_embd), n = size_t(config_.head_size),
                 stride = size_t(cpu::state_stride(int(n)));
    std::vector<Entry> entries;
    const auto vector = [&](const std::string& name, const float* x) {
        entries.push_back({name, {c}, std::vector<float>(x, x + c)});
    };
    for (int layer = 0; layer < config_.n_layer; ++layer) {
        const std::string block = "blocks." + std::to_string(layer) + ".";
        vector(block + "att.x_prev", self.att_x_prev(layer));
        if (config_.version == Version::k4) {
            vector(block + "att.aa", self.aa(layer));
            vector(block + "att.bb", self.bb(layer));
            vector(block + "att.pp", self.pp(layer));
        } else {
            Entry s{block + "att.state", {size_t(config_.n_head), n, n}, std::vector<float>(c * n)};
            for (int h = 0; h < config_.n_head; ++h)
                for (size_t key = 0; key < n; ++key)
                    for (size_t value = 0; value < n; ++value)
                        s.values[(size_t(h) * n + value) * n + key] =
                            self.head(layer, h)[key * stride + value];
            entries.push_back(std::move(s));
        }
        vector(block + "ffn.x_prev", self.ffn_x_prev(layer));
    }
    return entries;
}

void State::import_entries(const std::map<std::string, std::pair<const float*, size_t>>& entries) {
    const std::vector<Entry> own = export_entries();
    require(entries.size() == own.size(), Fault::kArgument,
            "the state has other entries than this model's states");
    for (const Entry& entry : own) {
        const auto found = entries.find(entry.name);
        require(found != entries.end(), Fault::kArgument, "the state has no entry " + entry.name);
        require(found->second.second == entry.values.size(), Fault::kArgument,
                "state entry " + entry.name + " has another size");
    }
    const size_t c = size_t(config_.n_embd), n = size_t(config_.head_size),
                 stride = size_t(cpu::state_stride(int(n)));
    const auto get = [&](const std::string& name) { return entries.at(name).first; };
    for (int layer = 0; layer < config_.n_layer; ++layer) {
        const std::string block = "blocks." + std::to_string(layer) + ".";
        std::copy_n(get(block + "att.x_prev"), c, att_x_prev(layer));
        std::copy_n(get(block + "ffn.x_prev"), c, ffn_x_prev(layer));
        if (config_.version == Version::k4) {
            std::copy_n(get(block + "att.aa"), c, aa(layer));
            std::copy_n(get(block + "att.bb"), c, bb(layer));
            std::copy_n(get(block + "att.pp"), c, pp(layer));
            continue;
        }
        const float* s = get(block + "att.state");
        for (int h = 0; h < config_.n_head; ++h)
            for (size_t value = 0; value < n; ++value)
                for (size_t key = 0; key < n; ++key)
                    head(layer, h)[key * stride + value] = s[(size_t(h) * n + value) * n + key];
    }
}

} // namespace rwkv
