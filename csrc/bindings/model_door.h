// What the classes of all devices have in common at the door: arrays in, arrays out, Ctrl-C. The GIL is
// released while a device computes, or waits for its turn.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/buffers.h"
#include "bindings/unlocked.h"
#include "core/check.h"
#include "model/config.h"
#include "model/state.h"
#include "model/weights.h"

namespace rwkv::bindings {

/// (name, encoding, layout, shape, parts as (name, offset, bytes))
using SpecTuple = std::tuple<std::string, std::string, std::string, std::vector<int>,
                             std::vector<std::tuple<std::string, size_t, size_t>>>;

Config config_from(const pybind11::dict& d);
TensorSpecs specs_from(const std::vector<SpecTuple>& tensors);
/// What asks Python whether a signal handler raised (Ctrl-C), at most every 50 ms: it needs the GIL. Empty on
/// threads other than the main one, where handlers never run.
std::function<bool()> interruption();

pybind11::dict arrays_of(const std::vector<State::Entry>& entries);

template <class M, class S>
pybind11::object forward(M& model, const pybind11::buffer& tokens, S& state, bool all_logits) {
    namespace py = pybind11;
    const Vector<int32_t> ids(tokens, "tokens", "int32");
    const auto vocab = py::ssize_t(model.config().vocab_size);
    const auto count = py::ssize_t(ids.all().size());
    const NewFloats logits(all_logits ? std::vector<py::ssize_t>{count, vocab}
                                      : std::vector<py::ssize_t>{vocab});
    const auto poll = interruption();
    try {
        const Unlocked unlocked;
        model.forward(ids.all(), state, logits.data, all_logits, poll);
    } catch (const Cancelled&) {
        throw py::error_already_set();
    }
    return logits.array;
}

template <class M, class S>
pybind11::object forward_batch(M& model, const pybind11::buffer& tokens, const std::vector<S*>& states) {
    namespace py = pybind11;
    const Vector<int32_t> ids(tokens, "tokens", "int32");
    const NewFloats logits({py::ssize_t(states.size()), py::ssize_t(model.config().vocab_size)});
    const auto poll = interruption();
    try {
        const Unlocked unlocked;
        model.forward_batch(ids.all(), states, logits.data, poll);
    } catch (const Cancelled&) {
        throw py::error_already_set();
    }
    return logits.array;
}

/// Pointers into the arrays of a dict, which `kept` keeps.
StateArrays pointers_into(const pybind11::dict& arrays, std::vector<FloatValues>& kept);

/// Takes the arrays of a dict over, all or none.
template <class S>
void import_state(S& state, const pybind11::dict& arrays) {
    std::vector<FloatValues> kept;
    const StateArrays entries = pointers_into(arrays, kept);
    const Unlocked unlocked;
    state.import_entries(entries);
}

} // namespace rwkv::bindings
