// The part of CUDA that these kernels use, on the CPU, for tests: a block's threads are fibers that run in
// turns and meet at barriers and warp operations. Blocks run one after the other. It is exact (warps of 32,
// integer dot products, IEEE arithmetic) and strict: a barrier or a warp operation that not all threads reach
// ends the program; every allocation is a heap block of its own size, filled with NaNs; shared memory too.
//
// Environment variables, read at each use:
//   RWKV_CUDA_EMULATED_MEMORY   bytes that the device has (default 4 GiB)
//   RWKV_CUDA_EMULATED_MULTIPROCESSORS  that it says it has (default 1), which some shapes of blocks depend
//   on RWKV_CUDA_EMULATED_ORDER    "reverse": threads, warps and blocks in descending order. A result that
//                               depends on it has a race.
//   RWKV_CUDA_EMULATED_FAILURE  N: the Nth launch from now on, and all after it, fail; "N memory": for want
//                               of memory
//   RWKV_CUDA_EMULATED_DEVICES  how many there are (default 1)
//   RWKV_CUDA_EMULATED_FULL     the number of one that no process can use any more
//   RWKV_CUDA_EMULATED_OVERLAP  N: kernels that may overlap go as far as their wait before the N kernels
//   before
//                               begin (default 0). A result that depends on it has a race.
//   RWKV_CUDA_EMULATED_LATE     set: what is started on a stream is done when somebody waits for it
//   RWKV_CUDA_EMULATED_CODE     the compute capability, times ten, that kernels are said to be compiled for
//                               (default 90)
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

enum cudaError_t {
    cudaSuccess,
    cudaErrorMemoryAllocation,
    cudaErrorInvalidValue,
    cudaErrorNoDevice,
    cudaErrorInsufficientDriver,
    cudaErrorLaunchFailure
};
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
};
namespace rwkv::emulator {
struct Stream;
struct Graph;
struct Event;
} // namespace rwkv::emulator
using cudaStream_t = rwkv::emulator::Stream*;
using cudaGraph_t = rwkv::emulator::Graph*;
using cudaGraphExec_t = rwkv::emulator::Graph*;
using cudaEvent_t = rwkv::emulator::Event*;

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetLastError();
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMalloc(void** p, size_t bytes);
cudaError_t cudaFree(void* p);
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

namespace rwkv::emulator {

/// `early` is refused where the code is older than 9.0.
cudaError_t launch(bool early, unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared_bytes,
                   cudaStream_t stream, std::function<void()> kernel);
int code_capability();
/// Returns to the thread when all kernels before its own are done.
void wait_for_kernels();
/// Brings all kernels that were launched to their end.
void finish_kernels();
void* shared_memory();

struct Place {
    dim3 thread, block, block_dim, grid;
};
extern Place place; ///< of the thread that runs

constexpr unsigned kMostWords = 6;
/// All lanes of the warp give `count` words and see those of all, [count][32]; until the lane's next
/// operation.
const uint32_t* meet(const uint32_t* words, unsigned count);
inline const uint32_t* meet(uint32_t value) { return meet(&value, 1); }
void block_barrier();

/// mma.sync of signed bytes, m16n8k32 or (kDepth 16) m16n8k16: c = first + a b. Who holds what is the PTX
/// ISA's: lane 4 i + j has four inputs from 4 j on of rows i and i + 8 of a, then the same of inputs 16
/// later; likewise of column i of b; and columns 2 j, 2 j + 1 of rows i and i + 8 of c.
template <int kDepth>
inline void mma(int* c, const uint32_t* a, const uint32_t* b, int first) {
    constexpr unsigned kHalves = kDepth / 16, kWordsA = 2 * kHalves;
    uint32_t mine[kWordsA + kHalves];
    std::memcpy(mine, a, sizeof(uint32_t) * kWordsA);
    std::memcpy(mine + kWordsA, b, sizeof(uint32_t) * kHalves);
    const uint32_t* all = meet(mine, kWordsA + kHalves);
    const unsigned lane = place.thread.x % 32;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        c[i] = first;
        for (unsigned k = 0; k < unsigned(kDepth); ++k) {
            const uint32_t wa = all[(row / 8 + k / 16 * 2) * 32 + row % 8 * 4 + k % 16 / 4],
                           wb = all[(kWordsA + k / 16) * 32 + column * 4 + k % 16 / 4];
            c[i] += int(int8_t(wa >> (k % 4 * 8))) * int(int8_t(wb >> (k % 4 * 8)));
        }
    }
}

/// As late as they may be: what a thread does not wait for is not there.
void copy_later(void* to, const void* from, size_t bytes);
void end_copy_group();
void finish_copies();
void finish_copies(unsigned groups_left);

} // namespace rwkv::emulator

#define threadIdx (::rwkv::emulator::place.thread)
#define blockIdx (::rwkv::emulator::place.block)
#define blockDim (::rwkv::emulator::place.block_dim)
#define gridDim (::rwkv::emulator::place.grid)

inline void __syncthreads() { rwkv::emulator::block_barrier(); }
inline void __syncwarp() { rwkv::emulator::meet(0); }

inline uint32_t __float_as_uint(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline int __shfl_xor_sync(unsigned, int value, int mask) {
    return int(rwkv::emulator::meet(uint32_t(value))[(threadIdx.x % 32) ^ unsigned(mask)]);
}
inline unsigned __shfl_xor_sync(unsigned, unsigned value, int mask) {
    return unsigned(__shfl_xor_sync(0, int(value), mask));
}
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    return __uint_as_float(uint32_t(__shfl_xor_sync(0, int(__float_as_uint(value)), mask)));
}
inline float __shfl_sync(unsigned, float value, int lane) {
    return __uint_as_float(rwkv::emulator::meet(__float_as_uint(value))[lane % 32]);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    const uint32_t* all = rwkv::emulator::meet(predicate != 0);
    unsigned result = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        result |= all[lane] << lane;
    return result;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned atomicAdd(unsigned* p, unsigned x) { return (*p += x) - x; }
inline void __threadfence() {}

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i)
        c += int(int8_t(unsigned(a) >> (8 * i))) * int(int8_t(unsigned(b) >> (8 * i)));
    return c;
}
/// a: two int16; b: four int8, of which the lower (upper) two count.
inline int __dp2a_lo(int a, int b, int c) {
    return c + int(int16_t(a)) * int(int8_t(b)) +
           int(int16_t(unsigned(a) >> 16)) * int(int8_t(unsigned(b) >> 8));
}
inline int __dp2a_hi(int a, int b, int c) { return __dp2a_lo(a, int(unsigned(b) >> 16), c); }
/// Four bytes chosen from those of a (0 to 3) and b (4 to 7). The sign mode of selector bit 3 is not made use
/// of.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t both = uint64_t(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i)
        result |= unsigned(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return result;
}
inline int __float2int_rn(float x) {
    if (x != x)
        return 0;
    if (x >= 2147483648.0f)
        return INT32_MAX;
    return x <= -2147483648.0f ? INT32_MIN : int(lrintf(x));
}
template <class T>
inline T __ldcg(const T* p) {
    return *p;
}
template <class T>
inline T __ldg(const T* p) {
    return *p;
}
