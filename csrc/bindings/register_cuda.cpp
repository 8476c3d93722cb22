// CudaModel and CudaState: Model and State on a CUDA device, by librwkv_cuda, whose file Python names.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bindings/model_door.h"
#include "bindings/register.h"
#include "bindings/unlocked.h"
#include "device/cuda_library.h"
#include "device/cuda_model.h"

namespace py = pybind11;

namespace rwkv::bindings {
namespace {

py::list devices_of(const std::string& library) {
    std::vector<rwkv_cuda_device> found;
    {
        const Unlocked unlocked;
        found = CudaLibrary::at(library).devices();
    }
    py::list result;
    for (const rwkv_cuda_device& device : found) {
        const std::string name(device.name, strnlen(device.name, sizeof device.name));
        py::dict facts;
        facts["name"] = py::reinterpret_steal<py::object>(
            PyUnicode_DecodeUTF8(name.data(), py::ssize_t(name.size()), "replace"));
        facts["major"] = device.major;
        facts["minor"] = device.minor;
        facts["multiprocessors"] = device.multiprocessors;
        facts["memory"] = device.memory;
        facts["free_memory"] = device.free_memory;
        result.append(facts);
    }
    return result;
}

py::dict export_state(const CudaState& state) {
    std::vector<State::Entry> entries;
    {
        const Unlocked unlocked;
        entries = state.export_entries();
    }
    return arrays_of(entries);
}

} // namespace

void register_cuda(py::module_& m) {
    using Released = py::call_guard<Unlocked>;

    m.def("cuda_devices", &devices_of, py::arg("library"),
          "Facts of each device that the driver reports: name, major and minor (compute capability), "
          "multiprocessors, memory and free_memory (bytes).");

    m.def(
        "cuda_copy_rate",
        [](const std::string& library, int device) { return CudaLibrary::at(library).copy_rate(device); },
        py::arg("library"), py::arg("device"), Released(),
        "Bytes that copies on a device read and write a second, measured.");

    m.def(
        "cuda_required",
        [](const std::string& library, const std::string& path, const py::dict& config,
           const std::vector<SpecTuple>& tensors) {
            const Config parsed = config_from(config);
            const TensorSpecs specs = specs_from(tensors);
            CudaRequired required;
            {
                const Unlocked unlocked;
                required = cuda_required(library, path, parsed, specs);
            }
            return py::make_tuple(required.model, required.state);
        },
        py::arg("library"), py::arg("path"), py::arg("config"), py::arg("tensors"),
        "Bytes of a device's memory that the model's last 1, 2, ... layers take, all of them with the "
        "embedding, and bytes of a state. No device is asked.");

    py::class_<CudaState>(m, "CudaState")
        .def("copy", &CudaState::copy, Released())
        .def("assign", &CudaState::assign, py::arg("other"), Released())
        .def("to_numpy", &export_state)
        .def("load_numpy", &import_state<CudaState>)
        .def_property_readonly("nbytes", &CudaState::bytes);

    py::class_<CudaModel>(m, "CudaModel")
        .def(py::init([](const std::string& library, const std::string& path, const py::dict& config,
                         const std::vector<SpecTuple>& tensors, int device, int layers, int threads,
                         const std::string& level) {
                 const Config parsed = config_from(config);
                 const TensorSpecs specs = specs_from(tensors);
                 const Unlocked unlocked;
                 return std::make_unique<CudaModel>(CudaPlace{library, device, layers, threads, level}, path,
                                                    parsed, specs);
             }),
             py::arg("library"), py::arg("path"), py::arg("config"), py::arg("tensors"), py::arg("device"),
             py::arg("layers") = -1, py::arg("threads") = 1, py::arg("level") = "")
        .def("new_state", &CudaModel::new_state, Released())
        .def("forward", &forward<CudaModel, CudaState>, py::arg("tokens"), py::arg("state"),
             py::arg("all_logits") = false)
        .def("forward_batch", &forward_batch<CudaModel, CudaState>, py::arg("tokens"), py::arg("states"))
        .def_property_readonly("layers", &CudaModel::layers)
        .def_property_readonly("level", &CudaModel::level)
        .def_property_readonly("device_bytes", [](const CudaModel& model) {
            const Unlocked unlocked;
            return model.device_bytes();
        });
}

} // namespace rwkv::bindings
