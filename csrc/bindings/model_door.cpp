#include "bindings/model_door.h"

#include <algorithm>
#include <chrono>

namespace py = pybind11;

namespace rwkv::bindings {

Config config_from(const py::dict& d) {
    Config c;
    c.version = parse_version(d["version"].cast<std::string>());
    c.n_layer = d["n_layer"].cast<int>();
    c.n_embd = d["n_embd"].cast<int>();
    c.n_head = d["n_head"].cast<int>();
    c.head_size = d["head_size"].cast<int>();
    c.n_ffn = d["n_ffn"].cast<int>();
    c.vocab_size = d["vocab_size"].cast<int>();
    c.group_norm_eps = d["group_norm_eps"].cast<float>();
    return c;
}

TensorSpecs specs_from(const std::vector<SpecTuple>& tensors) {
    TensorSpecs specs;
    for (const auto& [name, encoding, layout, shape, parts] : tensors) {
        TensorSpec spec{encoding, layout, shape, {}};
        for (const auto& [part, offset, bytes] : parts)
            spec.parts.push_back({part, offset, bytes});
        specs[name] = std::move(spec);
    }
    return specs;
}

std::function<bool()> interruption() {
    const auto threads = py::module_::import("threading");
    if (!threads.attr("current_thread")().is(threads.attr("main_thread")()))
        return {};
    using Clock = std::chrono::steady_clock;
    return [last = Clock::now()]() mutable {
        const auto now = Clock::now();
        if (now - last < std::chrono::milliseconds(50))
            return false;
        last = now;
        const py::gil_scoped_acquire held;
        return PyErr_CheckSignals() != 0;
    };
}

py::dict arrays_of(const std::vector<State::Entry>& entries) {
    py::dict result;
    for (const State::Entry& entry : entries) {
        const NewFloats values(std::vector<py::ssize_t>(entry.shape.begin(), entry.shape.end()));
        std::copy(entry.values.begin(), entry.values.end(), values.data);
        result[py::str(entry.name)] = values.array;
    }
    return result;
}

StateArrays pointers_into(const py::dict& arrays, std::vector<FloatValues>& kept) {
    StateArrays entries;
    for (const auto& [name, value] : arrays) {
        kept.emplace_back(py::reinterpret_borrow<py::object>(value));
        entries[name.cast<std::string>()] = {kept.back().data(), kept.back().size()};
    }
    return entries;
}

} // namespace rwkv::bindings
