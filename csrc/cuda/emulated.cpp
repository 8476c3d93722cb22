// All of the library as one file for a C++ compiler, against the emulator.
#include "cuda/abi.cu"
#include "cuda/model.cu"
#include "cuda/scratch.cu"
#include "cuda/weights.cu"
