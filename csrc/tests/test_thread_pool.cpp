// The pool under more threads than cores, many short runs, and long waits; meant for the thread sanitizer
// too.
#include <chrono>
#include <thread>

#include "core/thread_pool.h"
#include "tests/test.h"

using namespace rwkv;

TEST(barriers_order_writes) {
    for (const int threads : {1, 2, 3, 8}) {
        ThreadPool pool(threads);
        std::vector<int> slots(size_t(threads), 0);
        for (int repeat = 0; repeat < 200; ++repeat) {
            pool.run([&](int thread) {
                for (int phase = 1; phase <= 5; ++phase) {
                    slots[size_t(thread)] = repeat * 10 + phase;
                    pool.barrier();
                    for (const int slot : slots)
                        CHECK(slot == repeat * 10 + phase);
                    pool.barrier();
                }
            });
        }
    }
}

TEST(sleeping_workers_wake) {
    ThreadPool pool(3);
    std::vector<int> slots(3, 0);
    for (int repeat = 1; repeat <= 5; ++repeat) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5)); // past the spin
        pool.run([&](int thread) {
            if (thread == 0)
                std::this_thread::sleep_for(std::chrono::milliseconds(2));
            pool.barrier();
            slots[size_t(thread)] = repeat;
        });
        for (const int slot : slots)
            CHECK(slot == repeat);
    }
}
