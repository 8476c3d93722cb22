#include "cuda/emulator.h"
#include "cuda/emulator_stream.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "core/os.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define RWKV_FIBER_SANITIZER 1
#endif

#if !defined(__x86_64__) || defined(_WIN32)
#include <ucontext.h>
#endif

namespace rwkv::emulator {

Place place;

namespace {

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "CUDA emulator: %s (block %u, %u; thread %u)\n", what, place.block.x, place.block.y,
                 place.thread.x);
    std::abort();
}

// --- fibers ----------------------------------------------------------------------------------------------

// No power of two: the tops of all stacks would share a few sets of the caches.
#ifdef RWKV_FIBER_SANITIZER
constexpr size_t kStack = (size_t(64) << 10) + 320;
#else
constexpr size_t kStack = (size_t(20) << 10) + 320;
#endif
constexpr uint64_t kCanary = 0x5a5a17c3d9e4b682u; ///< at the end that a stack must not reach

#if defined(__x86_64__) && !defined(_WIN32)
struct Context {
    void* sp = nullptr;
};
extern "C" void rwkv_emulator_switch(void** save, void* load);
asm(R"(
.text
.globl rwkv_emulator_switch
.hidden rwkv_emulator_switch
.type rwkv_emulator_switch, @function
rwkv_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size rwkv_emulator_switch, .-rwkv_emulator_switch
)");
void begin_at(Context& context, char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + kStack) - 2; // rsp is 8 past a multiple of 16 on entry
    *top = reinterpret_cast<void*>(entry);
    for (int i = 1; i <= 6; ++i)
        top[-i] = nullptr;
    context.sp = top - 6;
}
void switch_to(Context& from, Context& to) { rwkv_emulator_switch(&from.sp, to.sp); }
#else
struct Context {
    ucontext_t context;
};
void begin_at(Context& c, char* stack, void (*entry)()) {
    getcontext(&c.context);
    c.context.uc_stack.ss_sp = stack;
    c.context.uc_stack.ss_size = kStack;
    c.context.uc_link = nullptr;
    makecontext(&c.context, entry, 0);
}
void switch_to(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

enum class Wait { kReady, kWarp, kBlock, kDone };

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
};

struct Fiber {
    Context context;
    std::unique_ptr<char[]> stack;
    Wait wait = Wait::kDone;
    unsigned operations = 0;  ///< of the warp, so far
    std::vector<Copy> copies; ///< under way
    void* sanitizer = nullptr;
};

struct Warp {
    uint32_t
        values[2][kMostWords * 32]; // by the parity of the operation: a lane is at most one ahead of another
    unsigned arrived = 0;
};

struct Machine {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Context scheduler;
    unsigned current = 0, count = 0, at_barrier = 0;
    const std::function<void()>* body = nullptr;
    void* shared = nullptr;
    void* sanitizer = nullptr;
    const void* own_stack = nullptr;
    size_t own_size = 0;
};
Machine machine;
std::mutex machine_mutex;

void to_scheduler(bool last) {
    Fiber& fiber = machine.fibers[machine.current];
    (void)last;
#ifdef RWKV_FIBER_SANITIZER
    __sanitizer_start_switch_fiber(last ? nullptr : &fiber.sanitizer, machine.own_stack, machine.own_size);
#endif
    switch_to(fiber.context, machine.scheduler);
#ifdef RWKV_FIBER_SANITIZER
    __sanitizer_finish_switch_fiber(fiber.sanitizer, nullptr, nullptr);
#endif
}

void run_thread() {
#ifdef RWKV_FIBER_SANITIZER
    __sanitizer_finish_switch_fiber(nullptr, &machine.own_stack, &machine.own_size);
#endif
    (*machine.body)();
    machine.fibers[machine.current].wait = Wait::kDone;
    to_scheduler(true);
    fail("a finished thread runs");
}

void resume(unsigned thread) {
    Fiber& fiber = machine.fibers[thread];
    machine.current = place.thread.x = thread;
#ifdef RWKV_FIBER_SANITIZER
    __sanitizer_start_switch_fiber(&machine.sanitizer, fiber.stack.get(), kStack);
#endif
    switch_to(machine.scheduler, fiber.context);
#ifdef RWKV_FIBER_SANITIZER
    __sanitizer_finish_switch_fiber(machine.sanitizer, nullptr, nullptr);
#endif
}

void run_block(unsigned threads, bool reverse) {
    machine.count = threads;
    machine.at_barrier = 0;
    if (machine.fibers.size() < threads)
        machine.fibers.resize(threads);
    machine.warps.assign(threads / 32, Warp());
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = machine.fibers[i];
        if (!fiber.stack) {
            fiber.stack = std::make_unique<char[]>(kStack);
            std::memcpy(fiber.stack.get(), &kCanary, sizeof kCanary);
        }
        fiber.wait = Wait::kReady;
        fiber.operations = 0;
        begin_at(fiber.context, fiber.stack.get(), run_thread);
    }
    const unsigned warps = threads / 32;
    for (bool progress = true; progress;) {
        progress = false;
        for (unsigned i = 0; i < warps; ++i) {
            const unsigned warp = reverse ? warps - 1 - i : i;
            for (bool again = true; again;) {
                again = false;
                for (unsigned j = 0; j < 32; ++j) {
                    const unsigned thread = warp * 32 + (reverse ? 31 - j : j);
                    if (machine.fibers[thread].wait == Wait::kReady) {
                        resume(thread);
                        again = progress = true;
                    }
                }
            }
        }
    }
    for (unsigned i = 0; i < threads; ++i) {
        place.thread.x = i;
        if (std::memcmp(machine.fibers[i].stack.get(), &kCanary, sizeof kCanary) != 0)
            fail("a thread's stack was too small");
        if (machine.fibers[i].wait == Wait::kBlock)
            fail("a barrier that not all threads of the block reach");
        if (!machine.fibers[i].copies.empty())
            fail("copies that nobody waited for");
        if (machine.fibers[i].wait == Wait::kWarp)
            fail("a warp operation that not all lanes reach");
    }
}

void run_grid(unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared_bytes,
              const std::function<void()>& kernel) {
    const std::lock_guard<std::mutex> lock(machine_mutex);
    const os::FlushDenormals flush;
    const char* order = std::getenv("RWKV_CUDA_EMULATED_ORDER");
    const bool reverse = order && std::strcmp(order, "reverse") == 0;
    machine.body = &kernel;
    place.grid = {grid_x, grid_y, 1};
    place.block_dim = {threads, 1, 1};
    for (unsigned i = 0; i < grid_x * grid_y; ++i) {
        const unsigned block = reverse ? grid_x * grid_y - 1 - i : i;
        place.block = {block % grid_x, block / grid_x, 0};
        machine.shared = std::malloc(shared_bytes + (shared_bytes == 0));
        std::memset(machine.shared, 0xff, shared_bytes);
        run_block(threads, reverse);
        std::free(machine.shared);
    }
}

} // namespace

void* shared_memory() { return machine.shared; }

const uint32_t* meet(const uint32_t* words, unsigned count) {
    Fiber& fiber = machine.fibers[machine.current];
    const unsigned lane = machine.current % 32, first = machine.current - lane;
    Warp& warp = machine.warps[machine.current / 32];
    uint32_t* values = warp.values[fiber.operations++ & 1];
    for (unsigned i = 0; i < count; ++i)
        values[i * 32 + lane] = words[i];
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        for (unsigned i = first; i < first + 32; ++i)
            machine.fibers[i].wait = Wait::kReady;
    } else {
        fiber.wait = Wait::kWarp;
        to_scheduler(false);
    }
    return values;
}

void copy_later(void* to, const void* from, size_t bytes) {
    machine.fibers[machine.current].copies.push_back({to, from, bytes});
}

void finish_copies() {
    auto& copies = machine.fibers[machine.current].copies;
    for (const Copy& copy : copies)
        std::memcpy(copy.to, copy.from, copy.bytes);
    copies.clear();
}

void block_barrier() {
    Fiber& fiber = machine.fibers[machine.current];
    if (++machine.at_barrier == machine.count) {
        machine.at_barrier = 0;
        for (unsigned i = 0; i < machine.count; ++i)
            machine.fibers[i].wait = Wait::kReady;
    } else {
        fiber.wait = Wait::kBlock;
        to_scheduler(false);
    }
}

int code_capability() {
    const char* code = std::getenv("RWKV_CUDA_EMULATED_CODE");
    return code ? std::atoi(code) : 90;
}

cudaError_t launch(bool early, unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared_bytes,
                   cudaStream_t stream, std::function<void()> kernel) {
    if (threads == 0 || threads % 32 != 0 || threads > 1024 || shared_bytes > (size_t(48) << 10) ||
        grid_x == 0 || grid_y == 0 || grid_y > 65535 || (early && code_capability() < 90))
        return cudaErrorInvalidValue;
    if (const char* failure = std::getenv("RWKV_CUDA_EMULATED_FAILURE")) {
        static long launches = 0, since = 0;
        static std::string last;
        ++launches;
        if (last != failure) {
            last = failure;
            since = launches;
        }
        if (launches - since + 1 >= std::atol(failure))
            return std::strstr(failure, "memory") ? cudaErrorMemoryAllocation : cudaErrorLaunchFailure;
    }
    submit(stream,
           [=, kernel = std::move(kernel)] { run_grid(grid_x, grid_y, threads, shared_bytes, kernel); });
    return cudaSuccess;
}

} // namespace rwkv::emulator
