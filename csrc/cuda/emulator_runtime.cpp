// The runtime calls of the emulator: devices, memory, streams, graphs, events.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>

#include "cuda/emulator.h"
#include "cuda/emulator_stream.h"

using namespace rwkv::emulator;

namespace {

size_t setting(const char* name, size_t otherwise) {
    const char* text = std::getenv(name);
    return text ? size_t(std::strtoull(text, nullptr, 10)) : otherwise;
}

std::mutex memory_mutex;
struct Allocation {
    size_t bytes;
    int device;
};
std::map<void*, Allocation> allocations;
std::map<int, size_t> allocated; ///< on a device
std::mutex streams_mutex;
std::set<Stream*> streams;

bool is_device(int device) {
    return device >= 0 && size_t(device) < setting("RWKV_CUDA_EMULATED_DEVICES", 1);
}
size_t device_memory() { return setting("RWKV_CUDA_EMULATED_MEMORY", size_t(4) << 30); }

} // namespace

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorLaunchFailure:
        return "unspecified launch failure";
    }
    return "unknown error";
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = int(setting("RWKV_CUDA_EMULATED_DEVICES", 1));
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (!is_device(device))
        return cudaErrorInvalidValue;
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "emulated");
    properties->totalGlobalMem = device_memory();
    properties->major = 9;
    properties->multiProcessorCount = int(setting("RWKV_CUDA_EMULATED_MULTIPROCESSORS", 4));
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (!is_device(device))
        return cudaErrorInvalidValue;
    if (size_t(device) == setting("RWKV_CUDA_EMULATED_FULL", size_t(-1)))
        return cudaErrorMemoryAllocation;
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    const std::lock_guard<std::mutex> lock(memory_mutex);
    *total = device_memory();
    const size_t used = allocated[current_device];
    *free = *total > used ? *total - used : 0;
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, size_t bytes) {
    const std::lock_guard<std::mutex> lock(memory_mutex);
    if (allocated[current_device] + bytes > device_memory())
        return cudaErrorMemoryAllocation;
    *p = std::malloc(bytes);
    std::memset(*p, 0xff, bytes);
    allocations[*p] = {bytes, current_device};
    allocated[current_device] += bytes;
    return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
    {
        const std::lock_guard<std::mutex> lock(streams_mutex);
        for (Stream* stream : streams) // as devices do
            stream->finish(size_t(-1));
    }
    finish_kernels();
    const std::lock_guard<std::mutex> lock(memory_mutex);
    if (!p)
        return cudaSuccess;
    const auto found = allocations.find(p);
    if (found == allocations.end())
        return cudaErrorInvalidValue;
    allocated[found->second.device] -= found->second.bytes;
    allocations.erase(found);
    std::free(p);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
    *p = std::malloc(bytes);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* p) {
    std::free(p);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    submit(stream, [=] {
        finish_kernels();
        std::memcpy(to, from, bytes);
    });
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
    submit(stream, [=] {
        finish_kernels();
        std::memset(p, value, bytes);
    });
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = new Stream();
    (*stream)->device = current_device;
    const std::lock_guard<std::mutex> lock(streams_mutex);
    streams.insert(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    {
        const std::lock_guard<std::mutex> lock(streams_mutex);
        streams.erase(stream);
    }
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (stream->captured)
        return cudaErrorInvalidValue;
    stream->finish(size_t(-1));
    finish_kernels();
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (stream->captured)
        return cudaErrorInvalidValue;
    stream->captured = std::make_unique<Graph>();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    if (!stream->captured)
        return cudaErrorInvalidValue;
    *graph = stream->captured.release();
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    *exec = new Graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    for (const auto& work : exec->work)
        submit(stream, work);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = new Event();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    *event = {stream, stream->submitted};
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (event->stream)
        event->stream->finish(event->submitted);
    return cudaSuccess;
}
