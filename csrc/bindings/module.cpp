#include "bindings/register.h"

#include "core/check.h"

namespace py = pybind11;

PYBIND11_MODULE(_kernels, m) {
    m.doc() = "The C++ engine. Private: use rwkvcli.Model and rwkvcli.State.";

    static PyObject* format_error = py::exception<rwkv::Error>(m, "FormatError").release().ptr();
    static PyObject* device_error = py::exception<rwkv::Error>(m, "DeviceError").release().ptr();
    static PyObject* thread_error =
        py::exception<rwkv::Error>(m, "ThreadError", device_error).release().ptr();
    static PyObject* memory_error =
        py::exception<rwkv::Error>(m, "DeviceMemoryError", device_error).release().ptr();
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p)
                std::rethrow_exception(p);
        } catch (const rwkv::Error& e) {
            switch (e.fault()) {
            case rwkv::Fault::kFormat:
                PyErr_SetString(format_error, e.what());
                break;
            case rwkv::Fault::kDevice:
                PyErr_SetString(device_error, e.what());
                break;
            case rwkv::Fault::kThreads:
                PyErr_SetString(thread_error, e.what());
                break;
            case rwkv::Fault::kMemory:
                PyErr_SetString(memory_error, e.what());
                break;
            case rwkv::Fault::kArgument:
                PyErr_SetString(PyExc_ValueError, e.what());
                break;
            }
        }
    });

    rwkv::bindings::register_codec(m);
    rwkv::bindings::register_cpu(m);
    rwkv::bindings::register_cuda(m);
    rwkv::bindings::register_model(m);
    rwkv::bindings::register_text(m);
}
