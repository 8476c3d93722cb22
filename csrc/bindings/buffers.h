// Arrays by the buffer protocol: numpy's, and Python's own, with which a text is generated without importing
// numpy.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/check.h"

namespace rwkv::bindings {

/// The elements of a one-dimensional array of T (`what`, for errors) that some Python object holds, while
/// this lives.
template <class T>
class Vector {
  public:
    /// Throws TypeError for other elements, Error(kArgument) for more dimensions or gaps between elements.
    Vector(const pybind11::buffer& object, const char* what, const char* type, bool writable = false)
        : info_(object.request(writable)) {
        if (!info_.item_type_is_equivalent_to<T>())
            throw pybind11::type_error(std::string(what) + " must be an array of " + type);
        require(info_.ndim == 1, Fault::kArgument,
                std::string(what) + " must be a one-dimensional array of " + type);
        require(info_.size < 2 || info_.strides[0] == pybind11::ssize_t(sizeof(T)), Fault::kArgument,
                std::string(what) + " must lie one after the other in memory");
    }

    std::span<T> all() const { return {static_cast<T*>(info_.ptr), size_t(info_.size)}; }

  private:
    pybind11::buffer_info info_;
};

/// A new float32 array [dims] of unset values: a memoryview, which numpy takes without a copy, and where its
/// values are.
struct NewFloats {
    pybind11::object array;
    float* data;

    explicit NewFloats(const std::vector<pybind11::ssize_t>& dims) {
        namespace py = pybind11;
        auto bytes = py::ssize_t(sizeof(float));
        py::tuple shape(dims.size());
        for (size_t i = 0; i < dims.size(); i++) {
            bytes *= dims[i];
            shape[i] = dims[i];
        }
        const auto storage = py::reinterpret_steal<py::object>(PyByteArray_FromStringAndSize(nullptr, bytes));
        if (!storage)
            throw py::error_already_set();
        data = reinterpret_cast<float*>(PyByteArray_AS_STRING(storage.ptr()));
        const auto view = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(storage.ptr()));
        if (!view)
            throw py::error_already_set();
        array = view.attr("cast")("f", shape);
    }
};

/// The float32 values of any array in C order, while this lives; of other arrays, a copy as numpy makes it.
class FloatValues {
  public:
    explicit FloatValues(const pybind11::object& object) {
        namespace py = pybind11;
        if (PyObject_CheckBuffer(object.ptr())) {
            info_ = py::reinterpret_borrow<py::buffer>(object).request();
            auto step = py::ssize_t(sizeof(float));
            bool as_they_are = info_.item_type_is_equivalent_to<float>() &&
                               reinterpret_cast<uintptr_t>(info_.ptr) % sizeof(float) == 0;
            for (auto i = info_.ndim; i-- > 0; step *= info_.shape[size_t(i)])
                as_they_are = as_they_are && info_.strides[size_t(i)] == step;
            if (as_they_are)
                return;
        }
        const auto numpy = py::module_::import("numpy");
        info_ = py::buffer(numpy.attr("array")(object, "f4", py::arg("order") = "C")).request();
    }

    const float* data() const { return static_cast<const float*>(info_.ptr); }
    size_t size() const { return size_t(info_.size); }

  private:
    pybind11::buffer_info info_;
};

} // namespace rwkv::bindings
