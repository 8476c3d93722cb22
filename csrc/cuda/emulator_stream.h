// The emulator's streams: work is done at once, as late as it may be, or kept for the graph that is being
// captured.
#pragma once

#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/emulator.h"

namespace rwkv::emulator {

struct Graph {
    std::vector<std::function<void()>> work;
};
struct Stream {
    int device = 0;
    std::unique_ptr<Graph> captured;
    std::deque<std::function<void()>> waiting;
    size_t submitted = 0; ///< works so far, those that wait among them
    std::recursive_mutex mutex;

    /// Does the first `count` of all works.
    void finish(size_t count) {
        const std::lock_guard<std::recursive_mutex> lock(mutex);
        while (!waiting.empty() && submitted - waiting.size() < count) {
            const std::function<void()> work = std::move(waiting.front());
            waiting.pop_front();
            work();
        }
    }
};

inline thread_local int current_device = 0;

struct Event {
    Stream* stream = nullptr;
    size_t submitted = 0; ///< on the stream when it was recorded
};

inline void submit(cudaStream_t stream, std::function<void()> work) {
    if (stream && stream->captured) {
        stream->captured->work.push_back(std::move(work));
        return;
    }
    if (!stream)
        return work();
    const std::lock_guard<std::recursive_mutex> lock(stream->mutex);
    ++stream->submitted;
    stream->waiting.push_back(std::move(work));
    if (!std::getenv("RWKV_CUDA_EMULATED_LATE"))
        stream->finish(stream->submitted);
}

} // namespace rwkv::emulator
