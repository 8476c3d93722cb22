// Encoders for `rwkv quantize`: a float32 matrix in, the parts of the model file out. The GIL is released
// meanwhile.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "bindings/register.h"
#include "bindings/unlocked.h"
#include "codec/encode.h"
#include "core/check.h"

namespace py = pybind11;

namespace rwkv::bindings {
namespace {

using Matrix2 = py::array_t<float, py::array::c_style>;
using Vector1 = py::array_t<float, py::array::c_style>;
using Dims = std::vector<py::ssize_t>;

/// So that no sum of a group overflows.
constexpr float kMostImportant = 1e9f;

struct Form {
    const char* name;
    Encoding encoding;
    int group;
};
constexpr Form kForms[] = {{"q8g32", Encoding::kQ8, 32}, {"q6g32", Encoding::kQ6, 32},
                           {"q6g16", Encoding::kQ6, 16}, {"q5g32", Encoding::kQ5, 32},
                           {"q5g16", Encoding::kQ5, 16}, {"q4g32", Encoding::kQ4, 32},
                           {"q4g16", Encoding::kQ4, 16}};

template <typename T>
T* add_part(py::dict& parts, const char* name, const Dims& dims) {
    py::array_t<T> array(dims);
    parts[name] = array;
    return array.mutable_data();
}

py::dict encode(const Matrix2& w, const std::string& encoding, const std::string& layout, int threads,
                const std::string& method, const std::string& level,
                const std::optional<Vector1>& importance) {
    require(w.ndim() == 2 && w.shape(0) > 0 && w.shape(1) > 0 && w.shape(0) <= 1 << 30 &&
                w.shape(1) <= 1 << 30,
            Fault::kArgument, "encode takes a matrix with two dimensions");
    codec::Request r;
    r.w = w.data();
    r.n = int(w.shape(0));
    r.k = int(w.shape(1));
    const auto form = std::find_if(std::begin(kForms), std::end(kForms),
                                   [&](const Form& each) { return encoding == each.name; });
    require(form != std::end(kForms), Fault::kArgument, "unknown encoding " + encoding);
    r.encoding = form->encoding;
    r.group = form->group;
    require(layout == "t16x4" || layout == "row" || layout == "kn", Fault::kArgument,
            "unknown layout " + layout);
    r.layout = layout == "t16x4" ? Layout::kTile : layout == "row" ? Layout::kRow : Layout::kKn;
    require(method == "codebook" || method == "nearest", Fault::kArgument, "unknown method " + method);
    r.learn = method == "codebook";
    if (importance) {
        require(importance->ndim() == 1 && importance->shape(0) == w.shape(1) &&
                    std::all_of(importance->data(), importance->data() + r.k,
                                [](float h) { return h > 0 && h <= kMostImportant; }),
                Fault::kArgument, "importance must be a positive number for each input");
        r.importance = importance->data();
    }
    require(threads >= 1 && threads <= 1024, Fault::kArgument, "threads must be in 1..1024");

    py::dict parts;
    const py::ssize_t rows = r.rows(), tiles = (rows + 15) / 16, groups = r.padded() / r.group;
    if (r.layout == Layout::kTile) {
        r.q = add_part<uint8_t>(parts, "q", {tiles, py::ssize_t(r.code_bytes()) / 4, 16, 4});
        r.s = add_part<int8_t>(parts, "s", {tiles, groups, 16});
        r.d = add_part<float>(parts, "d", {tiles * 16});
    } else {
        r.q = add_part<uint8_t>(parts, "q", {rows, py::ssize_t(r.stride())});
        if (r.layout == Layout::kRow)
            r.s = add_part<int8_t>(parts, "s", {rows, groups});
        r.d = add_part<float>(parts, "d", {rows});
    }
    if (has_codebook(r.encoding))
        r.cb = add_part<uint8_t>(parts, "cb", {16});
    r.row_error = add_part<double>(parts, "row_error", {rows});
    r.row_power = add_part<double>(parts, "row_power", {rows});
    r.row_largest = add_part<float>(parts, "row_max", {rows});
    {
        const Unlocked unlocked;
        codec::encode(r, threads, level);
    }
    return parts;
}

} // namespace

void register_codec(py::module_& m) {
    m.def("encode", &encode, py::arg("w").noconvert(), py::arg("encoding"), py::arg("layout"),
          py::arg("threads"), py::arg("method") = "codebook", py::arg("level") = "",
          py::arg("importance").noconvert() = py::none(),
          "Parts of a finite float32 matrix [n, k] and what was lost per row; see quant.methods.Encoder.");
}

} // namespace rwkv::bindings
