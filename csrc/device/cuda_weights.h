// What librwkv_cuda is told of a model: the engine's structures in C.
#pragma once

#include <vector>

#include "cuda/abi.h"
#include "model/config.h"
#include "model/weights.h"

namespace rwkv {

rwkv_cuda_config cuda_config(const Config& config);

/// Pointers into `weights`, which has to live as long: of the blocks from `first` on, and the head. The
/// embedding is among them if these are all blocks.
struct CudaWeights {
    explicit CudaWeights(const Weights& weights, int first = 0);
    CudaWeights(const CudaWeights&) = delete;
    CudaWeights& operator=(const CudaWeights&) = delete;

    std::vector<rwkv_cuda_block> blocks;
    rwkv_cuda_weights all{};
};

} // namespace rwkv
