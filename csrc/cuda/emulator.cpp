#include "cuda/emulator.h"
#include "cuda/emulator_stream.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
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

enum class Wait { kReady, kWarp, kBlock, kKernels, kDone };

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    unsigned group;
};

struct Fiber {
    Context context;
    std::unique_ptr<char[]> stack;
    Wait wait = Wait::kDone;
    unsigned operations = 0;  ///< of the warp, so far
    std::vector<Copy> copies; ///< under way
    unsigned copy_groups = 0; ///< that are complete
    void* sanitizer = nullptr;
};

struct Warp {
    uint32_t
        values[2][kMostWords * 32]; // by the parity of the operation: a lane is at most one ahead of another
    unsigned arrived = 0;
};

struct Launch {
    bool early;
    unsigned grid_x, grid_y, threads;
    size_t shared_bytes;
    std::function<void()> body;
};

/// A block of threads, at work or waiting for the kernels before its own.
struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    unsigned at_barrier = 0;
    dim3 index;
    std::unique_ptr<char[]> shared;
};

/// A kernel that has been started early, up to its wait, or one that such may follow, not at all.
struct Kernel {
    Launch launch;
    std::vector<std::unique_ptr<Block>> blocks;
};

struct Machine {
    Block* block = nullptr;
    const Launch* launch = nullptr;
    bool released = true; ///< all kernels before are done
    unsigned current = 0;
    Context scheduler;
    std::vector<std::unique_ptr<char[]>> stacks; ///< that no thread has
    std::deque<Kernel> under_way;
    void* sanitizer = nullptr;
    const void* own_stack = nullptr;
    size_t own_size = 0;
};
Machine machine;
std::mutex machine_mutex;

void to_scheduler(bool last) {
    Fiber& fiber = machine.block->fibers[machine.current];
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
    machine.launch->body();
    machine.block->fibers[machine.current].wait = Wait::kDone;
    to_scheduler(true);
    fail("a finished thread runs");
}

void resume(unsigned thread) {
    Fiber& fiber = machine.block->fibers[thread];
    machine.current = place.thread.x = thread;
#ifdef RWKV_FIBER_SANITIZER
    __sanitizer_start_switch_fiber(&machine.sanitizer, fiber.stack.get(), kStack);
#endif
    switch_to(machine.scheduler, fiber.context);
#ifdef RWKV_FIBER_SANITIZER
    __sanitizer_finish_switch_fiber(machine.sanitizer, nullptr, nullptr);
#endif
}

bool is_reverse() {
    const char* order = std::getenv("RWKV_CUDA_EMULATED_ORDER");
    return order && std::strcmp(order, "reverse") == 0;
}

std::unique_ptr<Block> new_block(const Launch& launch, dim3 index) {
    auto block = std::make_unique<Block>();
    block->index = index;
    block->shared = std::make_unique_for_overwrite<char[]>(launch.shared_bytes);
    std::memset(block->shared.get(), 0xff, launch.shared_bytes);
    block->fibers.resize(launch.threads);
    block->warps.resize(launch.threads / 32);
    for (Fiber& fiber : block->fibers) {
        if (machine.stacks.empty()) {
            fiber.stack = std::make_unique<char[]>(kStack);
            std::memcpy(fiber.stack.get(), &kCanary, sizeof kCanary);
        } else {
            fiber.stack = std::move(machine.stacks.back());
            machine.stacks.pop_back();
        }
        fiber.wait = Wait::kReady;
        begin_at(fiber.context, fiber.stack.get(), run_thread);
    }
    return block;
}

/// Runs a block to its end or, where the kernels before are not done, to its wait.
void run_block(const Launch& launch, Block& block, bool released) {
    machine.launch = &launch;
    machine.block = &block;
    machine.released = released;
    place.grid = {launch.grid_x, launch.grid_y, 1};
    place.block_dim = {launch.threads, 1, 1};
    place.block = block.index;
    const bool reverse = is_reverse();
    const unsigned warps = launch.threads / 32;
    for (Fiber& fiber : block.fibers)
        if (released && fiber.wait == Wait::kKernels)
            fiber.wait = Wait::kReady;
    for (bool progress = true; progress;) {
        progress = false;
        for (unsigned i = 0; i < warps; ++i) {
            const unsigned warp = reverse ? warps - 1 - i : i;
            for (bool again = true; again;) {
                again = false;
                for (unsigned j = 0; j < 32; ++j) {
                    const unsigned thread = warp * 32 + (reverse ? 31 - j : j);
                    if (block.fibers[thread].wait == Wait::kReady) {
                        resume(thread);
                        again = progress = true;
                    }
                }
            }
        }
    }
    for (unsigned i = 0; i < launch.threads; ++i) {
        Fiber& fiber = block.fibers[i];
        place.thread.x = i;
        if (std::memcmp(fiber.stack.get(), &kCanary, sizeof kCanary) != 0)
            fail("a thread's stack was too small");
        if (!released) {
            if (fiber.wait != Wait::kKernels)
                fail("a thread of a kernel that starts early does not wait for those before");
            continue;
        }
        if (fiber.wait == Wait::kBlock)
            fail("a barrier that not all threads of the block reach");
        if (!fiber.copies.empty())
            fail("copies that nobody waited for");
        if (fiber.wait == Wait::kWarp)
            fail("a warp operation that not all lanes reach");
        machine.stacks.push_back(std::move(fiber.stack));
    }
}

template <class F>
void each_block(const Launch& launch, F f) {
    const unsigned count = launch.grid_x * launch.grid_y;
    for (unsigned i = 0; i < count; ++i) {
        const unsigned block = is_reverse() ? count - 1 - i : i;
        f(dim3{block % launch.grid_x, block / launch.grid_x, 0});
    }
}

/// Lets the kernel that has been under way for longest come to its end.
void finish_first() {
    const os::FlushDenormals flush;
    Kernel& kernel = machine.under_way.front();
    for (const std::unique_ptr<Block>& block : kernel.blocks)
        run_block(kernel.launch, *block, true);
    if (kernel.blocks.empty())
        each_block(kernel.launch,
                   [&](dim3 index) { run_block(kernel.launch, *new_block(kernel.launch, index), true); });
    machine.under_way.pop_front();
}

void start(const Launch& launch) {
    const std::lock_guard<std::mutex> lock(machine_mutex);
    const char* overlap = std::getenv("RWKV_CUDA_EMULATED_OVERLAP");
    const size_t most = overlap ? size_t(std::atol(overlap)) : 0;
    while (!launch.early && !machine.under_way.empty())
        finish_first();
    machine.under_way.push_back({launch, {}});
    if (launch.early && most > 0) {
        const os::FlushDenormals flush;
        Kernel& kernel = machine.under_way.back();
        each_block(kernel.launch, [&](dim3 index) {
            kernel.blocks.push_back(new_block(kernel.launch, index));
            run_block(kernel.launch, *kernel.blocks.back(), false);
        });
    }
    while (machine.under_way.size() > most)
        finish_first();
}

} // namespace

void finish_kernels() {
    const std::lock_guard<std::mutex> lock(machine_mutex);
    while (!machine.under_way.empty())
        finish_first();
}

void wait_for_kernels() {
    if (machine.released)
        return;
    machine.block->fibers[machine.current].wait = Wait::kKernels;
    to_scheduler(false);
}

void* shared_memory() { return machine.block->shared.get(); }

const uint32_t* meet(const uint32_t* words, unsigned count) {
    Block& block = *machine.block;
    Fiber& fiber = block.fibers[machine.current];
    const unsigned lane = machine.current % 32, first = machine.current - lane;
    Warp& warp = block.warps[machine.current / 32];
    uint32_t* values = warp.values[fiber.operations++ & 1];
    for (unsigned i = 0; i < count; ++i)
        values[i * 32 + lane] = words[i];
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        for (unsigned i = first; i < first + 32; ++i)
            block.fibers[i].wait = Wait::kReady;
    } else {
        fiber.wait = Wait::kWarp;
        to_scheduler(false);
    }
    return values;
}

void copy_later(void* to, const void* from, size_t bytes) {
    Fiber& fiber = machine.block->fibers[machine.current];
    fiber.copies.push_back({to, from, bytes, fiber.copy_groups});
}

void end_copy_group() { ++machine.block->fibers[machine.current].copy_groups; }

void finish_copies(unsigned groups_left) {
    Fiber& fiber = machine.block->fibers[machine.current];
    std::erase_if(fiber.copies, [&](const Copy& copy) {
        if (copy.group + groups_left >= fiber.copy_groups)
            return false;
        std::memcpy(copy.to, copy.from, copy.bytes);
        return true;
    });
}

void finish_copies() {
    end_copy_group();
    finish_copies(0);
}

void block_barrier() {
    Block& block = *machine.block;
    Fiber& fiber = block.fibers[machine.current];
    if (++block.at_barrier == block.fibers.size()) {
        block.at_barrier = 0;
        for (Fiber& each : block.fibers)
            each.wait = Wait::kReady;
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
        grid_x == 0 || grid_y == 0 || grid_y > 65535 || (early && code_capability() < 90) ||
        (stream && stream->device != current_device))
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
           [all = Launch{early, grid_x, grid_y, threads, shared_bytes, std::move(kernel)}] { start(all); });
    return cudaSuccess;
}

} // namespace rwkv::emulator
