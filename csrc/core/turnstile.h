// One evaluation at a time.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "core/check.h"
#include "core/os.h"

namespace rwkv {

/// A lock that knows its process and its holder. A lock that was held at a fork belongs to a thread which the
/// child does not have, so the child begins with a new one.
class Turnstile {
    struct Lock {
        std::mutex mutex;
        std::atomic<std::thread::id> holder{};
    };

  public:
    /// Waits for its turn and holds it. With `stop`, asks it now and then, and throws Cancelled when it says
    /// so. Throws Error(kArgument) when this thread is inside already: a signal handler, say.
    class Turn {
      public:
        Turn(Turnstile& gate, const std::function<bool()>& stop) : lock_(gate.current()) {
            require(lock_.holder != std::this_thread::get_id(), Fault::kArgument,
                    "this thread is evaluating the model already");
            if (!stop)
                lock_.mutex.lock();
            for (int tries = 1; stop && !lock_.mutex.try_lock(); ++tries) {
                if (tries % 20 == 0 && stop())
                    throw Cancelled();
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
            lock_.holder = std::this_thread::get_id();
        }
        ~Turn() {
            lock_.holder = std::thread::id();
            lock_.mutex.unlock();
        }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;

      private:
        Lock& lock_;
    };

  private:
    Lock& current() {
        if (process_ != os::process_id()) {
            (void)lock_.release();
            lock_ = std::make_unique<Lock>();
            process_ = os::process_id();
        }
        return *lock_;
    }

    std::unique_ptr<Lock> lock_ = std::make_unique<Lock>();
    int process_ = os::process_id();
};

} // namespace rwkv
