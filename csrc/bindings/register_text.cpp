// Text: bytes in, ids out, and back; logits in, a token out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/buffers.h"
#include "bindings/register.h"
#include "bindings/unlocked.h"
#include "core/check.h"
#include "text/penalties.h"
#include "text/philox.h"
#include "text/sampler.h"
#include "text/score.h"
#include "text/world_tokenizer.h"

namespace py = pybind11;

namespace rwkv::bindings {

namespace {

using Matrix = py::array_t<float, py::array::c_style>;

std::span<const float> values(const Matrix& logits) {
    require(logits.ndim() == 2 && logits.shape(1) > 0, Fault::kArgument,
            "logits must be a two-dimensional array of float32");
    return {logits.data(), size_t(logits.size())};
}

py::tuple score_rows(const Matrix& logits, const std::vector<int32_t>& targets) {
    const auto all = values(logits);
    require(size_t(logits.shape(0)) == targets.size(), Fault::kArgument, "one target for each row of logits");
    py::array_t<double> log_probs(logits.shape(0));
    py::array_t<int32_t> tops(logits.shape(0));
    const std::span<double> into(log_probs.mutable_data(), targets.size());
    const std::span<int32_t> tops_into(tops.mutable_data(), targets.size());
    {
        const Unlocked unlocked;
        score(all, targets, into, tops_into);
    }
    return py::make_tuple(log_probs, tops);
}

py::array_t<double> divergence_of_rows(const Matrix& base, const Matrix& logits) {
    const auto p = values(base), q = values(logits);
    require(base.shape(0) == logits.shape(0) && base.shape(1) == logits.shape(1), Fault::kArgument,
            "both must be of one shape");
    py::array_t<double> result(base.shape(0));
    const std::span<double> into(result.mutable_data(), size_t(base.shape(0)));
    {
        const Unlocked unlocked;
        divergence(p, q, into);
    }
    return result;
}

/// Of float32: whether it is a number.
constexpr auto kFinite = [](float x) { return std::abs(x) <= std::numeric_limits<float>::max(); };
/// The same, nor below zero.
constexpr auto kScale = [](float x) { return x >= 0 && x <= std::numeric_limits<float>::max(); };

/// Whether all float32 of some bytes, which may lie anywhere, are what `good` tells.
template <class Good>
bool all_of_bytes(const py::buffer& values, Good good) {
    const Vector<uint8_t> bytes(values, "values", "bytes");
    const std::span<const uint8_t> all = bytes.all();
    require(all.size() % sizeof(float) == 0, Fault::kArgument, "values must be the bytes of float32");
    size_t bad = 0; // counted, so that the compiler makes vectors of it
    for (size_t at = 0; at < all.size(); at += sizeof(float)) {
        float value = 0;
        std::memcpy(&value, all.data() + at, sizeof value);
        bad += !good(value);
    }
    return bad == 0;
}

} // namespace

void register_text(py::module_& m) {
    py::class_<WorldTokenizer>(
        m, "WorldTokenizer", "Greedy longest match over bytes; see csrc/text/world_tokenizer.h for the blob.")
        .def(py::init([](const py::bytes& blob, uint32_t vocab_size) {
                 return std::make_unique<WorldTokenizer>(std::string_view(blob), vocab_size);
             }),
             py::arg("blob"), py::arg("vocab_size") = 0,
             "Check `blob` and build the trie; ids of `vocab_size` and above are left out (0 takes all).")
        .def_property_readonly("vocab_size", &WorldTokenizer::vocab_size,
                               "Number of valid ids, id 0 included.")
        .def(
            "encode",
            [](const WorldTokenizer& self, const py::bytes& text) {
                const std::string_view view(text); // `text` is immutable and held by the caller
                std::vector<int32_t> ids;
                {
                    const Unlocked unlocked;
                    ids = self.encode(view);
                }
                return ids; // becomes a list[int]
            },
            py::arg("text"), "Ids of the longest matches, left to right: list[int].")
        .def(
            "decode",
            [](const WorldTokenizer& self, const std::vector<int64_t>& ids) {
                return py::bytes(self.decode(ids));
            },
            py::arg("ids"), "The bytes of all ids joined; id 0 adds nothing.")
        .def(
            "token_bytes",
            [](const WorldTokenizer& self, int64_t id) {
                const std::string_view bytes = self.token_bytes(id);
                return py::bytes(bytes.data(), bytes.size());
            },
            py::arg("id"), "The bytes of one id; empty for id 0.");

    m.def("uniform", &uniform, py::arg("seed"), py::arg("index"),
          "Draw number `index` of `seed`: float64 in [0, 1). Both in [0, 2**64).");

    m.def(
        "are_finite", [](const py::buffer& values) { return all_of_bytes(values, kFinite); },
        py::arg("values"), "Whether no float32 of these bytes is NaN or infinite.");
    m.def(
        "are_scales", [](const py::buffer& values) { return all_of_bytes(values, kScale); },
        py::arg("values"), "The same, nor below zero.");

    m.def("score", &score_rows, py::arg("logits").noconvert(), py::arg("targets"),
          "Of float32 logits [T, V]: ln p of targets [T] (float64) and the first largest (int32).");
    m.def("divergence", &divergence_of_rows, py::arg("base").noconvert(), py::arg("logits").noconvert(),
          "KL divergence in nats of every row, float64 [T], of float32 logits [T, V] from those of `base`.");

    py::class_<Sampler>(m, "Sampler", "Draws tokens; see csrc/text/sampler.h for the rules.")
        .def(py::init([](const std::string& level) { return Sampler(cpu::choose(level.c_str())); }),
             py::arg("level") = "", "`level`: the CPU level to use, or empty for the best.")
        .def(
            "sample",
            [](Sampler& self, const py::buffer& logits, float temperature, int64_t top_k, double top_p,
               double draw, double min_p, double typical, bool temperature_first) {
                return self.sample(Vector<float>(logits, "logits", "float32").all(),
                                   {.temperature = temperature,
                                    .top_k = top_k,
                                    .top_p = top_p,
                                    .min_p = min_p,
                                    .typical = typical,
                                    .temperature_first = temperature_first},
                                   draw);
            },
            py::arg("logits"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("draw"),
            py::arg("min_p") = 0.0, py::arg("typical") = 1.0, py::arg("temperature_first") = false,
            "The id that `draw` in [0, 1) falls on, of float32 logits [V].")
        .def(
            "greedy",
            [](const Sampler& self, const py::buffer& logits) {
                return self.greedy(Vector<float>(logits, "logits", "float32").all());
            },
            py::arg("logits"),
            "The id of the first NaN of float32 logits [V], else of the first of the largest.")
        .def_static(
            "bias",
            [](const py::buffer& logits, const py::buffer& tokens, const py::buffer& added) {
                const Vector<float> to(logits, "logits", "float32", true), what(added, "added", "float32");
                const Vector<int32_t> where(tokens, "tokens", "int32");
                add_to(to.all(), where.all(), what.all());
            },
            py::arg("logits"), py::arg("tokens"), py::arg("added"),
            "Add float32 `added` [N] to those float32 logits [V] that the int32 `tokens` [N] name, in "
            "place.");

    py::class_<Penalties>(m, "Penalties", "Counts of generated tokens; see csrc/text/penalties.h.")
        .def(
            py::init([](float presence, float frequency, float repetition, double decay) {
                return Penalties(
                    {.presence = presence, .frequency = frequency, .repetition = repetition, .decay = decay});
            }),
            py::arg("presence"), py::arg("frequency"), py::arg("repetition"), py::arg("decay"))
        .def("observe", &Penalties::observe, py::arg("token"), py::arg("weight"),
             "Let all counts decay, then add `weight` to that of `token`.")
        .def(
            "apply",
            [](const Penalties& self, const py::buffer& logits) {
                self.apply(Vector<float>(logits, "logits", "float32", true).all());
            },
            py::arg("logits"), "Change float32 logits [V] in place.")
        .def("copy", [](const Penalties& self) { return Penalties(self); })
        .def("counts", &Penalties::counts, "(token, count) in the order first seen.")
        .def("restore", &Penalties::restore, py::arg("counts"), "Take over what counts() returned.");
}

} // namespace rwkv::bindings
