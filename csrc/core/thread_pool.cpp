#include "core/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/os.h"

namespace rwkv {
namespace {

// Between two phases of a token the others are some microseconds away, so a short spin wins. Where cores are
// short (more threads than cores, other programs) a spin holds the core that another thread needs: each wait
// that ends in sleep halves this thread's spin, each that does not doubles it.
constexpr int kLongestSpin = 50; // microseconds
thread_local int spin = kLongestSpin;

void wait_while_equal(const std::atomic<unsigned>& value, unsigned old) noexcept {
    using Clock = std::chrono::steady_clock;
    const auto changed = [&] {
        for (int i = 0; i < 64; ++i) {
            if (value.load(std::memory_order_acquire) != old)
                return true;
            os::spin_pause();
        }
        return false;
    };
    bool done = changed();
    if (!done && spin > 0) {
        const auto deadline = Clock::now() + std::chrono::microseconds(spin);
        while (!(done = changed()) && Clock::now() < deadline) {
        }
    }
    if (done) {
        spin = std::min(2 * spin + 1, kLongestSpin);
        return;
    }
    spin /= 2;
    while (value.load(std::memory_order_acquire) == old)
        value.wait(old, std::memory_order_acquire);
}

} // namespace

struct ThreadPool::Workers {
    std::vector<std::thread> threads;
    const std::function<void(int)>* task = nullptr;
    alignas(64) std::atomic<unsigned> generation{0};
    std::atomic<bool> stop{false};
};

ThreadPool::ThreadPool(int threads) : size_(threads), owner_process_(os::process_id()) { start(); }

void ThreadPool::start() {
    workers_ = std::make_unique<Workers>();
    Workers* workers = workers_.get();
    const auto work = [this, workers](int thread) {
        unsigned seen = 0;
        for (;;) {
            wait_while_equal(workers->generation, seen);
            seen = workers->generation.load(std::memory_order_acquire);
            if (workers->stop.load(std::memory_order_acquire))
                return;
            {
                const os::FlushDenormals flush;
                (*workers->task)(thread);
            }
            barrier();
        }
    };
    workers->threads.reserve(size_t(size_));
    const auto fail = [&] {
        const std::string started = std::to_string(workers->threads.size() + 1);
        stop();
        throw Error(Fault::kThreads,
                    "only " + started + " of " + std::to_string(size_) + " threads could be started");
    };
    try {
        for (int thread = 1; thread < size_; ++thread)
            workers->threads.emplace_back(work, thread);
    } catch (const std::system_error&) {
        fail();
    } catch (const std::bad_alloc&) {
        fail();
    }
}

void ThreadPool::stop() noexcept {
    if (!workers_)
        return;
    workers_->stop.store(true, std::memory_order_release);
    workers_->generation.fetch_add(1, std::memory_order_release);
    workers_->generation.notify_all();
    for (std::thread& thread : workers_->threads)
        thread.join();
    workers_.reset();
}

ThreadPool::~ThreadPool() {
    if (owner_process_ != os::process_id())
        (void)workers_.release(); // after a fork these threads do not exist here: nothing to join
    stop();
}

void ThreadPool::run(const std::function<void(int)>& task) {
    if (owner_process_ != os::process_id()) { // the child of a fork has no workers: make its own
        (void)workers_.release();
        owner_process_ = os::process_id();
        arrived_.store(0);
    }
    if (!workers_) // also after a start in this process that failed
        start();
    if (size_ > 1) {
        workers_->task = &task;
        workers_->generation.fetch_add(1, std::memory_order_release);
        workers_->generation.notify_all();
    }
    {
        const os::FlushDenormals flush;
        task(0);
    }
    barrier();
}

void ThreadPool::barrier() noexcept {
    if (size_ == 1)
        return;
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
    } else {
        wait_while_equal(phase_, phase);
    }
}

} // namespace rwkv
