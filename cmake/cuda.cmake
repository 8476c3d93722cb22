# The CUDA engine, behind the C interface of csrc/cuda/abi.h: rwkv_cuda for NVIDIA GPUs, and the same sources for a
# C++ compiler against an emulator, rwkv_cuda_emulated. Nothing that goes wrong here may break a CPU install unless
# RWKV_CUDA=ON asks for it.
set(RWKV_CUDA AUTO CACHE STRING "Build the CUDA engine: AUTO (where a working nvcc is found), OFF, or ON (or fail)")
set_property(CACHE RWKV_CUDA PROPERTY STRINGS AUTO OFF ON)
set(RWKV_CUDA_ARCHITECTURES "" CACHE STRING
  "Compute capabilities to compile for, in CMake's notation (75-real;90); empty: all that the compiler knows from 7.5 on")

# How nvcc is asked for C++20, which CMake does not know before 3.26. For this project and for the probe.
set(RWKV_CUDA_DIALECT [[
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
]])
# The arithmetic of the CPU engine: no operation fused or reordered, subnormals flushed, IEEE division and roots.
# Architectures are compiled side by side.
set(RWKV_CUDA_FLAGS --threads=4 --fmad=false --ftz=true --prec-div=true --prec-sqrt=true)
set(RWKV_CUDA_SOURCES csrc/cuda/abi.cu csrc/cuda/model.cu csrc/cuda/scratch.cu csrc/cuda/weights.cu)
# What both libraries need of the engine: no kernels of CPUs, no threads.
set(RWKV_CUDA_COMMON csrc/core/os.cpp csrc/model/config.cpp)

# Sets `result` to the nvcc that CMAKE_CUDA_COMPILER or CUDACXX names, else to all that are found: NVIDIA's wheel
# nvidia-cuda-nvcc in the environment of Python, PATH, CUDA_PATH, /usr/local/cuda.
function(rwkv_cuda_compilers result)
  set(found)
  if(CMAKE_CUDA_COMPILER)
    set(found ${CMAKE_CUDA_COMPILER})
  elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
    set(found $ENV{CUDACXX})
  else()
    find_package(Python 3.11 QUIET COMPONENTS Interpreter)
    file(GLOB wheels ${Python_SITELIB}/nvidia/cu[0-9]*/bin)
    list(SORT wheels COMPARE NATURAL ORDER DESCENDING)
    foreach(folder ${wheels})
      find_program(of_wheel nvcc PATHS ${folder} NO_DEFAULT_PATH NO_CACHE)
      if(of_wheel)
        list(APPEND found ${of_wheel})
      endif()
      unset(of_wheel)
    endforeach()
    find_program(of_system nvcc PATHS ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin NO_CACHE)
    if(of_system)
      list(APPEND found ${of_system})
    endif()
  endif()
  set(${result} ${found} PARENT_SCOPE)
endfunction()

# Sets CMAKE_CUDA_COMPILER to the first nvcc that compiles a kernel and `result` to TRUE; or `result` to FALSE and `why` to
# a line about it.
function(rwkv_find_cuda result why)
  set(${result} FALSE PARENT_SCOPE)
  rwkv_cuda_compilers(compilers)
  if(NOT compilers)
    set(${why} "no nvcc was found on PATH, nor in CUDACXX, nor a wheel nvidia-cuda-nvcc" PARENT_SCOPE)
    return()
  endif()
  # A whole project of its own, so that a broken toolkit fails there and not here.
  set(probe ${CMAKE_BINARY_DIR}/cuda_probe)
  file(WRITE ${probe}/CMakeLists.txt
    "cmake_minimum_required(VERSION 3.24)\nproject(probe LANGUAGES CXX CUDA)\n${RWKV_CUDA_DIALECT}"
    "add_library(probe STATIC probe.cu)\n")
  file(WRITE ${probe}/probe.cu
    "#include <cuda_runtime.h>\n#include <span>\n__global__ void k(int* p) { *p = __dp4a(1, 2, *p); }\n"
    "void start(int* p) { k<<<1, 1>>>(p); }\n")
  set(complaints)
  foreach(compiler ${compilers})
    file(REMOVE_RECURSE ${probe}/build)
    execute_process(
      COMMAND ${CMAKE_COMMAND} -S ${probe} -B ${probe}/build -G ${CMAKE_GENERATOR} -DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}
              -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DCMAKE_CUDA_COMPILER=${compiler} -DCMAKE_CUDA_ARCHITECTURES=75
      RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(NOT failed)
      execute_process(COMMAND ${CMAKE_COMMAND} --build ${probe}/build
        RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
    endif()
    if(NOT failed)
      set(${result} TRUE PARENT_SCOPE)
      set(CMAKE_CUDA_COMPILER ${compiler} CACHE FILEPATH "nvcc")
      return()
    endif()
    # CMake keeps the words of a compiler that it cannot identify to itself.
    execute_process(COMMAND ${compiler} -std=c++20 -c ${probe}/probe.cu -o ${probe}/probe.o
      RESULT_VARIABLE alone OUTPUT_VARIABLE words ERROR_VARIABLE words)
    if(alone)
      string(APPEND output "${words}\n${compiler}: ${alone}\n")
    endif()
    string(APPEND complaints "${output}")
  endforeach()
  file(WRITE ${probe}/output.txt "${complaints}")
  list(JOIN compilers " nor " names)
  list(LENGTH compilers count)
  if(count GREATER 1)
    set(${why} "neither ${names} compiles (${probe}/output.txt)" PARENT_SCOPE)
  else()
    set(${why} "${names} does not compile (${probe}/output.txt)" PARENT_SCOPE)
  endif()
endfunction()

# Sets `result` to the last lines of the failed probe's output, indented; to nothing if there was no probe.
function(rwkv_cuda_complaint result)
  set(${result} "" PARENT_SCOPE)
  if(EXISTS ${CMAKE_BINARY_DIR}/cuda_probe/output.txt)
    file(STRINGS ${CMAKE_BINARY_DIR}/cuda_probe/output.txt lines REGEX "[^ ]")
    list(LENGTH lines count)
    if(count GREATER 15)
      math(EXPR first "${count} - 15")
      list(SUBLIST lines ${first} 15 lines)
    endif()
    list(JOIN lines "\n   " text)
    set(${result} "\n   ${text}" PARENT_SCOPE)
  endif()
endfunction()

# Sets `result` to what RWKV_CUDA_ARCHITECTURES says, or to machine code for every generation from Turing on that
# this nvcc knows, and PTX, which drivers compile for all others: that of 9.0, because no kernel asks for more, and
# drivers compile that of 12.0 neither for 11.0 nor for any other between.
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
      if(capability LESS_EQUAL 90)
        set(newest ${capability})
      endif()
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

# How what nvcc compiles of a target is compiled.
function(rwkv_cuda_compiled target)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${architectures}" CUDA_RUNTIME_LIBRARY Static)
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${RWKV_CUDA_FLAGS}>")
  if(RWKV_WERROR)
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>")
  endif()
endfunction()

set(RWKV_HAVE_CUDA FALSE)
if(WIN32 AND RWKV_CUDA STREQUAL "AUTO")
  message(STATUS "CUDA engine: not built, nvcc would need Microsoft's compiler; GPUs are used from within WSL")
elseif(RWKV_CUDA) # AUTO counts as true
  file(REMOVE ${CMAKE_BINARY_DIR}/cuda_probe/output.txt)
  rwkv_find_cuda(RWKV_HAVE_CUDA why)
  if(NOT RWKV_HAVE_CUDA AND RWKV_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA engine: not built, ${why}")
  elseif(NOT RWKV_HAVE_CUDA)
    rwkv_cuda_complaint(complaint)
    # the space at the beginning keeps CMake from wrapping the lines
    message(FATAL_ERROR " RWKV_CUDA=${RWKV_CUDA} needs a working CUDA toolkit 12 or newer: ${why}${complaint}")
  endif()
endif()
if(RWKV_HAVE_CUDA AND RWKV_CUDA STREQUAL "AUTO")
  # The probe is a few lines; that the engine compiles too is found out by the build, in a build of its own.
  set(library ${CMAKE_SHARED_LIBRARY_PREFIX}rwkv_cuda${CMAKE_SHARED_LIBRARY_SUFFIX})
  set(RWKV_CUDA_ATTEMPT ${CMAKE_BINARY_DIR}/cuda_engine/${library})
  string(REPLACE ";" "," architectures "${RWKV_CUDA_ARCHITECTURES}")
  add_custom_target(rwkv_cuda_attempt ALL
    COMMAND ${CMAKE_COMMAND} -DSOURCE=${CMAKE_CURRENT_SOURCE_DIR} -DBUILD=${CMAKE_BINARY_DIR}/cuda_engine
            -DGENERATOR=${CMAKE_GENERATOR} -DMAKE_PROGRAM=${CMAKE_MAKE_PROGRAM} -DCXX_COMPILER=${CMAKE_CXX_COMPILER}
            -DCUDA_COMPILER=${CMAKE_CUDA_COMPILER} -DBUILD_TYPE=${CMAKE_BUILD_TYPE} -DARCHITECTURES=${architectures}
            -DLIBRARY=${library} -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/cuda_attempt.cmake
    BYPRODUCTS ${RWKV_CUDA_ATTEMPT} COMMENT "Building the CUDA engine, if its code compiles" VERBATIM)
elseif(RWKV_HAVE_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES 75) # of the language's check; targets have their own
  enable_language(CUDA)
  cmake_language(EVAL CODE "${RWKV_CUDA_DIALECT}")
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  rwkv_cuda_library(rwkv_cuda ${RWKV_CUDA_SOURCES})
  rwkv_cuda_architectures(architectures)
  message(STATUS "CUDA engine: for ${architectures}")
  rwkv_cuda_compiled(rwkv_cuda)
endif()

if(CMAKE_SYSTEM_NAME STREQUAL "Linux") # what the emulator's fibers are written for
  rwkv_cuda_library(rwkv_cuda_emulated csrc/cuda/emulated.cpp csrc/cuda/emulator.cpp csrc/cuda/emulator_runtime.cpp)
  # Clang knows `#pragma unroll`, and says where it did not unroll; GCC does not know it.
  target_compile_options(rwkv_cuda_emulated PRIVATE
    $<$<CXX_COMPILER_ID:Clang,AppleClang>:-Wno-pass-failed> -Wno-unknown-pragmas)
  set_target_properties(rwkv_cuda_emulated PROPERTIES EXCLUDE_FROM_ALL TRUE)
endif()
