// Text: bytes in, ids out, and back; logits in, a token out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/register.h"
#include "core/check.h"
#include "text/penalties.h"
#include "text/philox.h"
#include "text/sampler.h"
#include "text/world_tokenizer.h"

namespace py = pybind11;

namespace rwkv::bindings {

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
                    py::gil_scoped_release release;
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

    using Logits = py::array_t<float, py::array::c_style>;
    py::class_<Sampler>(m, "Sampler", "Draws tokens; see csrc/text/sampler.h for the rules.")
        .def(py::init([](const std::string& level) { return Sampler(cpu::choose(level.c_str())); }),
             py::arg("level") = "", "`level`: the CPU level to use, or empty for the best.")
        .def(
            "sample",
            [](Sampler& self, const Logits& logits, float temperature, int64_t top_k, double top_p,
               double draw, double min_p, double typical, bool temperature_first) {
                require(logits.ndim() == 1, Fault::kArgument,
                        "logits must be a one-dimensional array of float32");
                return self.sample({logits.data(), static_cast<size_t>(logits.size())},
                                   {.temperature = temperature,
                                    .top_k = top_k,
                                    .top_p = top_p,
                                    .min_p = min_p,
                                    .typical = typical,
                                    .temperature_first = temperature_first},
                                   draw);
            },
            py::arg("logits").noconvert(), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
            py::arg("draw"), py::arg("min_p") = 0.0, py::arg("typical") = 1.0,
            py::arg("temperature_first") = false,
            "The id that `draw` in [0, 1) falls on, of float32 logits [V].");

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
            [](const Penalties& self, Logits& logits) {
                require(logits.ndim() == 1, Fault::kArgument,
                        "logits must be a one-dimensional array of float32");
                self.apply({logits.mutable_data(), static_cast<size_t>(logits.size())});
            },
            py::arg("logits").noconvert(), "Change float32 logits [V] in place.")
        .def("counts", &Penalties::counts, "(token, count) in the order first seen.")
        .def("restore", &Penalties::restore, py::arg("counts"), "Take over what counts() returned.");
}

} // namespace rwkv::bindings
