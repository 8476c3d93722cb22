// Owners of what a device lends, and the way from mapped pages to the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cuda/platform.h"

namespace rwkv::cuda {

/// Makes `device` this thread's.
inline void use_device(int device) { check(cudaSetDevice(device), "the device cannot be used"); }

class Stream {
  public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "no stream on the device"); }
    ~Stream() { (void)cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    operator cudaStream_t() const { return stream_; }
    void wait() const { check(cudaStreamSynchronize(stream_), "the device failed"); }

  private:
    cudaStream_t stream_ = nullptr;
};

/// Memory of the host that the device copies from and to while other work goes on.
template <class T>
class Pinned {
  public:
    explicit Pinned(size_t count) : count_(count) {
        void* p = nullptr;
        check(cudaHostAlloc(&p, count * sizeof(T), cudaHostAllocDefault), "no pinned host memory");
        data_ = static_cast<T*>(p);
    }
    ~Pinned() { (void)cudaFreeHost(data_); }
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;
    T* data() const { return data_; }
    size_t size() const { return count_; }

  private:
    T* data_ = nullptr;
    size_t count_;
};

class Event {
  public:
    Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "no event on the device"); }
    ~Event() { (void)cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "the device failed"); }
    void wait() { check(cudaEventSynchronize(event_), "the device failed"); }

  private:
    cudaEvent_t event_ = nullptr;
};

/// One allocation that pieces are cut from. Cut everything twice: first to count, then, after allocate(), for
/// good.
class Arena {
  public:
    Arena() = default;
    ~Arena() {
        for (void* block : blocks_)
            (void)cudaFree(block);
    }
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    size_t bytes() const { return counted_; }

    /// Throws DeviceError(RWKV_CUDA_NO_MEMORY).
    void allocate() {
        allocated_ = true;
        if (!kSeparateAllocations && counted_ > 0)
            blocks_.push_back(allocate(counted_));
    }

    /// Null while counting.
    template <class T>
    T* cut(size_t count) {
        const size_t bytes = count * sizeof(T), padded = (bytes + 255) / 256 * 256;
        if (!allocated_) {
            counted_ += padded;
            return nullptr;
        }
        if (bytes == 0)
            return nullptr;
        if (kSeparateAllocations) {
            blocks_.push_back(allocate(bytes));
            return static_cast<T*>(blocks_.back());
        }
        uint8_t* p = static_cast<uint8_t*>(blocks_.front()) + used_;
        used_ += padded;
        return reinterpret_cast<T*>(p);
    }

  private:
    static void* allocate(size_t bytes) {
        void* p = nullptr;
        const cudaError_t error = cudaMalloc(&p, bytes);
        if (error != cudaSuccess)
            (void)cudaGetLastError(); // an allocation that failed is no failure of later calls
        check(error, "memory on the device");
        return p;
    }

    std::vector<void*> blocks_;
    size_t counted_ = 0, used_ = 0;
    bool allocated_ = false;
};

/// "3.2 GB"
inline std::string gigabytes(size_t bytes) {
    char text[32];
    std::snprintf(text, sizeof text, bytes < 100'000'000 ? "%.3f GB" : "%.1f GB", double(bytes) / 1e9);
    return text;
}

/// Throws DeviceError(RWKV_CUDA_NO_MEMORY) with the arithmetic when `bytes` more do not fit.
inline void require_memory(size_t bytes, const std::string& what, const std::string& device) {
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "the device's memory cannot be read");
    if (bytes > free)
        throw DeviceError(RWKV_CUDA_NO_MEMORY, what + " needs " + gigabytes(bytes) + ", " + gigabytes(free) +
                                                   " of " + gigabytes(total) + " are free on " + device);
}

/// Copies from pageable memory (mapped files) in pieces, through two pinned buffers in turn.
class Uploader {
  public:
    explicit Uploader(cudaStream_t stream) : stream_(stream), first_(kPiece), second_(kPiece) {}

    void copy(void* to, const void* from, size_t bytes) {
        for (size_t done = 0; done < bytes;) {
            const size_t piece = std::min(kPiece, bytes - done);
            Pinned<uint8_t>& buffer = turn_ ? second_ : first_;
            Event& free_again = turn_ ? second_free_ : first_free_;
            if (++pieces_ > 2)
                free_again.wait();
            std::memcpy(buffer.data(), static_cast<const uint8_t*>(from) + done, piece);
            check(cudaMemcpyAsync(static_cast<uint8_t*>(to) + done, buffer.data(), piece,
                                  cudaMemcpyHostToDevice, stream_),
                  "copying to the device");
            free_again.record(stream_);
            turn_ = !turn_;
            done += piece;
        }
    }

  private:
    static constexpr size_t kPiece = size_t(8) << 20;
    cudaStream_t stream_;
    Pinned<uint8_t> first_, second_;
    Event first_free_, second_free_;
    bool turn_ = false;
    size_t pieces_ = 0;
};

} // namespace rwkv::cuda
