// One function per topic; module.cpp only lists them.
#pragma once

#include <pybind11/pybind11.h>

namespace rwkv::bindings {

void register_codec(pybind11::module_& m);
void register_cpu(pybind11::module_& m);
void register_cuda(pybind11::module_& m);
void register_model(pybind11::module_& m);
void register_text(pybind11::module_& m);

} // namespace rwkv::bindings
