// The emulator's streams: work is done at once, or kept for the graph that is being captured.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "cuda/emulator.h"

namespace rwkv::emulator {

struct Graph {
    std::vector<std::function<void()>> work;
};
struct Stream {
    std::unique_ptr<Graph> captured;
};

/// Does the work now, or keeps it for the graph that is being captured.
inline void submit(cudaStream_t stream, std::function<void()> work) {
    if (stream && stream->captured)
        stream->captured->work.push_back(std::move(work));
    else
        work();
}

} // namespace rwkv::emulator
