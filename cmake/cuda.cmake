# The CUDA engine, behind the C interface of csrc/cuda/abi.h: rwkv_cuda for NVIDIA GPUs, and the same sources for a
# C++ compiler against an emulator, rwkv_cuda_emulated. Nothing that goes wrong here may break a CPU install unless
# RWKV_CUDA=ON asks for it.
set(RWKV_CUDA OFF CACHE STRING "Build the CUDA engine: OFF, AUTO (where a working nvcc is found) or ON (or fail)")
set_property(CACHE RWKV_CUDA PROPERTY STRINGS OFF AUTO ON)
set(RWKV_CUDA_ARCHITECTURES "" CACHE STRING
  "Compute capabilities to compile for, in CMake's notation (75-real;90); empty: all that the compiler knows from 7.5 on")

# The arithmetic of the CPU engine: no operation fused or reordered, subnormals flushed, IEEE division and roots.
set(RWKV_CUDA_FLAGS --fmad=false --ftz=true --prec-div=true --prec-sqrt=true)
set(RWKV_CUDA_SOURCES csrc/cuda/abi.cu csrc/cuda/model.cu csrc/cuda/scratch.cu csrc/cuda/weights.cu)
# What both libraries need of the engine: no kernels of CPUs, no threads.
set(RWKV_CUDA_COMMON csrc/core/os.cpp csrc/model/config.cpp)

# Sets `result` to whether nvcc is there and compiles a kernel. Speaks of nothing but a status line.
function(rwkv_find_cuda result)
  set(${result} FALSE PARENT_SCOPE)
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(STATUS "CUDA engine: not built, no nvcc was found")
    return()
  endif()
  # A whole project of its own, so that a broken toolkit fails there and not here.
  set(probe ${CMAKE_BINARY_DIR}/cuda_probe)
  file(WRITE ${probe}/CMakeLists.txt
    "cmake_minimum_required(VERSION 3.24)\nproject(probe LANGUAGES CXX CUDA)\nset(CMAKE_CUDA_STANDARD 20)\n"
    "set(CMAKE_CUDA_STANDARD_REQUIRED ON)\nadd_library(probe STATIC probe.cu)\n")
  file(WRITE ${probe}/probe.cu
    "#include <cuda_runtime.h>\n#include <span>\n__global__ void k(int* p) { *p = __dp4a(1, 2, *p); }\n"
    "void start(int* p) { k<<<1, 1>>>(p); }\n")
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S ${probe} -B ${probe}/build -G ${CMAKE_GENERATOR} -DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}
            -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DCMAKE_CUDA_COMPILER=${CMAKE_CUDA_COMPILER}
            -DCMAKE_CUDA_ARCHITECTURES=75
    RESULT_VARIABLE failed OUTPUT_VARIABLE configured ERROR_VARIABLE configured)
  if(NOT failed)
    execute_process(COMMAND ${CMAKE_COMMAND} --build ${probe}/build
      RESULT_VARIABLE failed OUTPUT_VARIABLE built ERROR_VARIABLE built)
  endif()
  set(works TRUE)
  if(failed)
    set(works FALSE)
    file(WRITE ${probe}/output.txt "${configured}${built}")
    message(STATUS "CUDA engine: not built, ${CMAKE_CUDA_COMPILER} does not compile (${probe}/output.txt)")
  endif()
  set(${result} ${works} PARENT_SCOPE)
endfunction()

# Sets `result` to what RWKV_CUDA_ARCHITECTURES says, or to machine code for every generation from Turing on that
# this nvcc knows, and PTX of the newest, which drivers compile for later ones.
function(rwkv_cuda_architectures result)
  if(RWKV_CUDA_ARCHITECTURES)
    set(${result} ${RWKV_CUDA_ARCHITECTURES} PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  set(all)
  foreach(capability 75 80 86 89 90 100 120)
    if(known MATCHES "sm_${capability}([^0-9a-z]|$)")
      list(APPEND all ${capability}-real)
      set(newest ${capability})
    endif()
  endforeach()
  if(all)
    list(APPEND all ${newest}-virtual)
  else()
    set(all 75)
  endif()
  set(${result} ${all} PARENT_SCOPE)
endfunction()

function(rwkv_cuda_library target)
  add_library(${target} SHARED ${ARGN} ${RWKV_CUDA_COMMON})
  target_include_directories(${target} PRIVATE csrc)
  target_link_libraries(${target} PRIVATE Threads::Threads)
endfunction()

set(RWKV_HAVE_CUDA FALSE)
if(NOT RWKV_CUDA STREQUAL "OFF")
  rwkv_find_cuda(RWKV_HAVE_CUDA)
  if(RWKV_CUDA STREQUAL "ON" AND NOT RWKV_HAVE_CUDA)
    message(FATAL_ERROR " RWKV_CUDA=ON needs a working CUDA toolkit 12 or newer (nvcc on PATH, or CUDACXX)")
  endif()
endif()
if(RWKV_HAVE_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES 75) # of the language's check; targets have their own
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  rwkv_cuda_library(rwkv_cuda ${RWKV_CUDA_SOURCES})
  rwkv_cuda_architectures(architectures)
  message(STATUS "CUDA engine: for ${architectures}")
  set_target_properties(rwkv_cuda PROPERTIES CUDA_ARCHITECTURES "${architectures}" CUDA_RUNTIME_LIBRARY Static)
  target_compile_options(rwkv_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${RWKV_CUDA_FLAGS}>")
  if(RWKV_WERROR)
    target_compile_options(rwkv_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>")
  endif()
endif()

if(CMAKE_SYSTEM_NAME STREQUAL "Linux") # what the emulator's fibers are written for
  rwkv_cuda_library(rwkv_cuda_emulated csrc/cuda/emulated.cpp csrc/cuda/emulator.cpp csrc/cuda/emulator_runtime.cpp)
  target_compile_options(rwkv_cuda_emulated PRIVATE $<$<NOT:$<CXX_COMPILER_ID:MSVC>>:-Wno-unknown-pragmas>)
  set_target_properties(rwkv_cuda_emulated PROPERTIES EXCLUDE_FROM_ALL TRUE)
endif()
