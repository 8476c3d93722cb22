// What processor this is and which kernels it runs: for `rwkv doctor` and the tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/register.h"
#include "bindings/unlocked.h"
#include "cpu/bandwidth.h"
#include "cpu/features.h"
#include "cpu/kernels.h"

namespace py = pybind11;

namespace rwkv::bindings {

void register_cpu(pybind11::module_& m) {
    m.def(
        "cpu_features", [] { return cpu::describe(cpu::detect()); },
        "Names of the features found, one line.");
    m.def(
        "cpu_levels",
        [] {
            int count = 0;
            const char* const* names = cpu::runnable_levels(&count);
            return std::vector<std::string>(names, names + count);
        },
        "Kernel levels that this processor runs, best last.");
    m.def(
        "read_bandwidth",
        [](int threads, size_t bytes, int rounds, const std::string& level) {
            const Unlocked unlocked;
            return cpu::read_bandwidth(cpu::choose(level.c_str()), threads, bytes, rounds);
        },
        py::arg("threads"), py::arg("bytes"), py::arg("rounds"), py::arg("level") = "",
        "Bytes per second of sequential reads of a buffer of `bytes`, one figure for each round.");
}

} // namespace rwkv::bindings
