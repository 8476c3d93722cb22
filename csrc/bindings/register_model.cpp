// Model and State: ids in, logits out; the state stays in the engine.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "bindings/model_door.h"
#include "bindings/register.h"
#include "bindings/unlocked.h"
#include "model/model.h"

namespace py = pybind11;

namespace rwkv::bindings {
namespace {

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

/// Logits [tokens, vocab].
py::object look_ahead(Model& model, const py::buffer& tokens, const State& state, Lookahead& ahead) {
    const Vector<int32_t> ids(tokens, "tokens", "int32");
    const NewFloats logits({py::ssize_t(ids.all().size()), py::ssize_t(model.config().vocab_size)});
    const auto poll = interruption();
    try {
        const Unlocked unlocked;
        model.look_ahead(ids.all(), state, ahead, logits.data, poll);
    } catch (const Cancelled&) {
        throw py::error_already_set();
    }
    return logits.array;
}

void keep(Model& model, State& state, Lookahead& ahead, int count) {
    const auto poll = interruption();
    try {
        const Unlocked unlocked;
        model.keep(state, ahead, count, poll);
    } catch (const Cancelled&) {
        throw py::error_already_set();
    }
}

} // namespace

void register_model(py::module_& m) {
    using Released = py::call_guard<Unlocked>;

    py::class_<State>(m, "State")
        .def("copy", [](const State& state) { return std::make_unique<State>(state); })
        .def("assign", &State::assign, py::arg("other"), Released())
        .def("to_numpy", [](const State& state) { return arrays_of(state.export_entries()); })
        .def("load_numpy", &import_state<State>)
        .def_property_readonly("nbytes", &State::bytes);

    m.def(
        "all_finite",
        [](const py::object& array) {
            const FloatValues values(array);
            return std::all_of(values.data(), values.data() + values.size(),
                               [](float x) { return std::isfinite(x); });
        },
        py::arg("array"), "Whether no float32 value is NaN or infinite.");

    py::class_<Lookahead>(m, "Lookahead").def_property_readonly("nbytes", &Lookahead::bytes);

    py::class_<Model>(m, "Model")
        .def(py::init([](const std::string& path, const py::dict& config,
                         const std::vector<SpecTuple>& tensors, int threads, const std::string& level) {
                 return std::make_unique<Model>(path, config_from(config), specs_from(tensors), threads,
                                                level);
             }),
             py::arg("path"), py::arg("config"), py::arg("tensors"), py::arg("threads"),
             py::arg("level") = "")
        .def("new_state", [](const Model& model) { return std::make_unique<State>(model.config()); })
        .def("forward", &forward<Model, State>, py::arg("tokens"), py::arg("state"),
             py::arg("all_logits") = false)
        .def("forward_batch", &forward_batch<Model, State>, py::arg("tokens"), py::arg("states"))
        .def("new_lookahead",
             [](const Model& model) { return std::make_unique<Lookahead>(model.config(), model.threads()); })
        .def("look_ahead", &look_ahead, py::arg("tokens"), py::arg("state"), py::arg("ahead"))
        .def("keep", &keep, py::arg("state"), py::arg("ahead"), py::arg("count"))
        .def("count_active_channels", &Model::count_active_channels, py::arg("on"), Released())
        .def_property_readonly("active_channels", &Model::active_channels)
        .def("collect_inputs", &Model::collect_inputs, py::arg("on"), Released())
        .def_property_readonly("inputs", &inputs_of)
        .def_property_readonly("threads", &Model::threads)
        .def_property_readonly("level", &Model::level)
        .def_property_readonly("weight_bytes", &Model::weight_bytes);
}

} // namespace rwkv::bindings
