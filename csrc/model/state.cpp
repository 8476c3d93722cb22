#include "model/state.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "cpu/kernels.h"

namespace rwkv {

size_t StateEntry::floats() const {
    size_t count = 1;
    for (const size_t size : shape)
        count *= size;
    return count;
}

std::vector<StateEntry> state_entries(const Config& config, int first) {
    const size_t c = size_t(config.n_embd), h = size_t(config.n_head), n = size_t(config.head_size);
    std::vector<StateEntry> entries;
    for (int layer = first; layer < config.n_layer; ++layer) {
        const std::string block = "blocks." + std::to_string(layer) + ".";
        entries.push_back({block + "att.x_prev", {c}});
        if (config.version == Version::k4)
            for (const char* name : {"att.aa", "att.bb", "att.pp"})
                entries.push_back({block + name, {c}});
        else
            entries.push_back({block + "att.state", {h, n, n}});
        entries.push_back({block + "ffn.x_prev", {c}});
    }
    return entries;
}

void check_state_arrays(const std::vector<StateEntry>& entries, const StateArrays& arrays) {
    require(arrays.size() == entries.size(), Fault::kArgument,
            "the state has other entries than this model's states");
    for (const StateEntry& entry : entries) {
        const auto found = arrays.find(entry.name);
        require(found != arrays.end(), Fault::kArgument, "the state has no entry " + entry.name);
        require(found->second.second == entry.floats(), Fault::kArgument,
                "state entry " + entry.name + " has another size");
    }
}

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

void State::assign(const State& other) {
    require(other.config_ == config_, Fault::kArgument, "the state belongs to a model of another shape");
    std::memcpy(data_.data(), other.data_.data(), bytes());
}

std::vector<State::Entry> State::export_entries() const {
    State& self = const_cast<State&>(*this); // the accessors are shared with the engine, which writes
    const size_t c = size_t(config_.n_embd), n = size_t(config_.head_size),
                 stride = size_t(cpu::state_stride(int(n)));
    std::vector<Entry> entries;
    for (StateEntry& entry : state_entries(config_)) {
        const size_t floats = entry.floats();
        entries.push_back({std::move(entry.name), std::move(entry.shape), std::vector<float>(floats)});
    }
    auto next = entries.begin();
    const auto vector = [&](const float* x) { std::copy_n(x, c, (next++)->values.data()); };
    for (int layer = 0; layer < config_.n_layer; ++layer) {
        vector(self.att_x_prev(layer));
        if (config_.version == Version::k4) {
            vector(self.aa(layer));
            vector(self.bb(layer));
            vector(self.pp(layer));
        } else {
            std::vector<float>& s = (next++)->values;
            for (int h = 0; h < config_.n_head; ++h)
                for (size_t key = 0; key < n; ++key)
                    for (size_t value = 0; value < n; ++value)
                        s[(size_t(h) * n + value) * n + key] = self.head(layer, h)[key * stride + value];
        }
        vector(self.ffn_x_prev(layer));
    }
    return entries;
}

void State::import_entries(const StateArrays& arrays) {
    check_state_arrays(state_entries(config_), arrays);
    const size_t c = size_t(config_.n_embd), n = size_t(config_.head_size),
                 stride = size_t(cpu::state_stride(int(n)));
    const auto get = [&](const std::string& name) { return arrays.at(name).first; };
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
