// A zero-filled array whose first element is 64-byte aligned.
#pragma once

#include <utility>

#include "core/os.h"

namespace rwkv {

template <class T>
class AlignedBuffer {
  public:
    AlignedBuffer() = default;
    explicit AlignedBuffer(size_t count)
        : data_(static_cast<T*>(os::allocate_zeroed(count * sizeof(T)))), count_(count) {}
    AlignedBuffer(AlignedBuffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
    AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        return *this;
    }
    ~AlignedBuffer() {
        if (data_)
            os::free_zeroed(data_, count_ * sizeof(T));
    }

    T* data() { return data_; }
    const T* data() const { return data_; }
    size_t size() const { return count_; }

  private:
    T* data_ = nullptr;
    size_t count_ = 0;
};

} // namespace rwkv
