// A persistent pool owned by a model. One `run` is one token or one prompt chunk; inside it the threads meet
// at barriers. No OpenMP: a second OpenMP runtime in a process that also holds PyTorch's is a known hazard.
#pragma once

#include <atomic>
#include <functional>
#include <memory>

namespace rwkv {

class ThreadPool {
  public:
    /// Throws Error(kThreads) when the system does not give that many; none is left behind then.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }

    /// Runs `task(thread)` on every thread, thread 0 being the caller; returns when all have ended.
    /// The task must not throw. Subnormal floats are flushed to zero inside it. In the child of a fork the
    /// first run starts threads anew, and throws as the constructor does.
    void run(const std::function<void(int)>& task);

    /// Inside a task: returns when all threads have called it. What was written before is visible after.
    void barrier() noexcept;

  private:
    struct Workers;
    void start();
    void stop() noexcept;

    int size_;
    int owner_process_;
    std::unique_ptr<Workers> workers_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> phase_{0};
};

} // namespace rwkv
