// Model and State: ids in, logits out; the state stays in the engine. The GIL is released while it computes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/register.h"
#include "core/check.h"
#include "model/model.h"

namespace py = pybind11;

namespace rwkv::bindings {
namespace {

using Tokens = py::array_t<int32_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
/// (name, encoding, layout, shape, parts as (name, offset, bytes))
using SpecTuple = std::tuple<std::string, std::string, std::string, std::vector<int>,
                             std::vector<std::tuple<std::string, size_t, size_t>>>;

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

std::span<const int32_t> one_dimensional(const Tokens& tokens) {
    require(tokens.ndim() == 1, Fault::kArgument, "tokens must be a one-dimensional array of int32");
    return {tokens.data(), size_t(tokens.size())};
}

/// What asks Python whether a signal handler raised (Ctrl-C), at most every 50 ms: it needs the GIL. Empty on
/// threads other than the main one, where handlers never run.
Model::Poll interruption() {
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

py::array_t<float> forward(Model& model, const Tokens& tokens, State& state, bool all_logits) {
    const auto ids = one_dimensional(tokens);
    const auto vocab = py::ssize_t(model.config().vocab_size);
    py::array_t<float> logits(all_logits ? std::vector<py::ssize_t>{tokens.size(), vocab}
                                         : std::vector<py::ssize_t>{vocab});
    float* out = logits.mutable_data();
    const Model::Poll poll = interruption();
    try {
        const py::gil_scoped_release released;
        model.forward(ids, state, out, all_logits, poll);
    } catch (const Cancelled&) {
        throw py::error_already_set();
    }
    return logits;
}

py::array_t<float> forward_batch(Model& model, const Tokens& tokens, const std::vector<State*>& states) {
    const auto ids = one_dimensional(tokens);
    py::array_t<float> logits({py::ssize_t(states.size()), py::ssize_t(model.config().vocab_size)});
    float* out = logits.mutable_data();
    const Model::Poll poll = interruption();
    try {
        const py::gil_scoped_release released;
        model.forward_batch(ids, states, out, poll);
    } catch (const Cancelled&) {
        throw py::error_already_set();
    }
    return logits;
}

/// {name of a matrix: (sum of squares [k], how often not 0 [k])} of its inputs.
py::dict inputs_of(const Model& model) {
    py::dict result;
    for (const auto& [name, sums] : model.inputs().all()) {
        const auto count = py::ssize_t(sums.squares.size());
        result[py::str(name)] = py::make_tuple(py::array_t<double>(count, sums.squares.data()),
                                               py::array_t<uint64_t>(count, sums.nonzero.data()));
    }
    return result;
}

py::dict export_state(const State& state) {
    py::dict result;
    for (const State::Entry& entry : state.export_entries())
        result[py::str(entry.name)] = py::array_t<float>(
            std::vector<py::ssize_t>(entry.shape.begin(), entry.shape.end()), entry.values.data());
    return result;
}

void import_state(State& state, const py::dict& arrays) {
    std::vector<Floats> kept; // the arrays live as long as the pointers into them
    std::map<std::string, std::pair<const float*, size_t>> entries;
    for (const auto& [name, value] : arrays) {
        kept.push_back(value.cast<Floats>());
        entries[name.cast<std::string>()] = {kept.back().data(), size_t(kept.back().size())};
    }
    state.import_entries(entries);
}

} // namespace

void register_model(py::module_& m) {
    py::class_<State>(m, "State")
        .def("copy", [](const State& state) { return std::make_unique<State>(state); })
        .def("to_numpy", &export_state)
        .def("load_numpy", &import_state)
        .def_property_readonly("nbytes", &State::bytes);

    py::class_<Model>(m, "Model")
        .def(py::init([](const std::string& path, const py::dict& config,
                         const std::vector<SpecTuple>& tensors, int threads, const std::string& level) {
                 TensorSpecs specs;
                 for (const auto& [name, encoding, layout, shape, parts] : tensors) {
                     TensorSpec spec{encoding, layout, shape, {}};
                     for (const auto& [part, offset, bytes] : parts)
                         spec.parts.push_back({part, offset, bytes});
                     specs[name] = std::move(spec);
                 }
                 return std::make_unique<Model>(path, config_from(config), specs, threads, level);
             }),
             py::arg("path"), py::arg("config"), py::arg("tensors"), py::arg("threads"),
             py::arg("level") = "")
        .def("new_state", [](const Model& model) { return std::make_unique<State>(model.config()); })
        .def("forward", &forward, py::arg("tokens"), py::arg("state"), py::arg("all_logits") = false)
        .def("forward_batch", &forward_batch, py::arg("tokens"), py::arg("states"))
        .def("count_active_channels", &Model::count_active_channels, py::arg("on"))
        .def_property_readonly("active_channels", &Model::active_channels)
        .def("collect_inputs", &Model::collect_inputs, py::arg("on"))
        .def_property_readonly("inputs", &inputs_of)
        .def_property_readonly("threads", &Model::threads)
        .def_property_readonly("level", &Model::level)
        .def_property_readonly("weight_bytes", &Model::weight_bytes);
}

} // namespace rwkv::bindings
