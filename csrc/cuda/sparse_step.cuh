// The product with ffn.value in layout "kn" for a single token: the arithmetic of sparse.cuh. A GPU has more
// multiprocessors than the matrix has lines, so several blocks share the active channels of half a line, and
// the last of them to be done adds all their sums up in order. Which one that is changes nothing.
#pragma once

#include <algorithm>

#include "cuda/sparse.cuh"

namespace rwkv::cuda {

constexpr int kSparseStepThreads = 512;
constexpr int kSparseStepChunk = 96;   ///< blocks of channels that are added up at once
constexpr int kMostSharedBlocks = 160; ///< blocks of channels that a block of threads takes, at most

/// Blocks of threads for half a line: at most two for each multiprocessor in all, so that all run at once,
/// and never too many channels for one.
inline int sparse_shares(int half_lines, int blocks, int multiprocessors) {
    const int wanted = std::max(2 * multiprocessors / half_lines, 1);
    const int needed = (blocks + kMostSharedBlocks - 1) / kMostSharedBlocks;
    return wanted > needed ? wanted : needed;
}

struct SparseStepShared {
    struct Own {
        int channels[kMostSharedBlocks * kBlockChannels];
        float factors[kMostSharedBlocks * kBlockChannels];
    };
    union {
        Own own;
        float sums[kSparseStepChunk * kSparseOutputs];
    };
    float steps[kMostSharedBlocks];
    int counts[kSparseStepThreads], warp_counts[kSparseStepThreads / 32];
    alignas(4) int16_t scaled[kSparseStepThreads / 32][8 * kBlockChannels]; ///< a warp's own: [groups][16]
    unsigned arrived;
};
static_assert(sizeof(SparseStepShared) <= kSharedLimit && kSparseStepChunk <= kMostSharedBlocks);

/// Lists the active channels of blocks [*begin, *end), this block's share, with their factors; returns the
/// number of all blocks.
__device__ __forceinline__ int list_share(const Acts& x, const float* d, int share, int shares,
                                          SparseStepShared& shared, int* begin, int* end) {
    const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int words = x.k_pad / kActGroup, each = (words + kSparseStepThreads - 1) / kSparseStepThreads;
    const int first = thread * each, last = first + each < words ? first + each : words;
    int count = 0;
    for (int i = first; i < last; ++i)
        count += __popc(x.mask[i]);
    shared.counts[thread] = count;
    __syncthreads();
    int at = 0, of_warp = 0;
#pragma unroll 8
    for (int i = 0; i < 32; ++i) {
        const int other = shared.counts[warp * 32 + i];
        at += i < lane ? other : 0;
        of_warp += other;
    }
    if (lane == 0)
        shared.warp_counts[warp] = of_warp;
    __syncthreads();
    int total = 0;
#pragma unroll
    for (int i = 0; i < kSparseStepThreads / 32; ++i) {
        at += i < warp ? shared.warp_counts[i] : 0;
        total += shared.warp_counts[i];
    }
    const int blocks = (total + kBlockChannels - 1) / kBlockChannels;
    *begin = blocks * share / shares, *end = blocks * (share + 1) / shares;
    const int first_place = *begin * kBlockChannels, places = (*end - *begin) * kBlockChannels;
    for (int i = first; i < last; ++i)
        for (unsigned mask = x.mask[i]; mask != 0; mask &= mask - 1, ++at)
            if (at >= first_place && at < first_place + places)
                shared.own.channels[at - first_place] = i * kActGroup + __ffs(int(mask)) - 1;
    __syncthreads();
    const int place = lane % kBlockChannels;
    for (int pair = warp; 2 * pair < *end - *begin; pair += kSparseStepThreads / 32) { // a half warp a block
        const int block = 2 * pair + lane / kBlockChannels, i = block * kBlockChannels + place;
        const bool here = block < *end - *begin, present = here && first_place + i < total;
        const int channel = present ? shared.own.channels[i]
                            : here  ? shared.own.channels[block * kBlockChannels]
                                    : 0;
        const float a = present ? x.f[channel] * d[channel] : 0.0f;
        const BlockFactor factor = block_factor(a);
        if (here) {
            if (!present)
                shared.own.channels[i] = channel;
            shared.own.factors[i] = factor.factor;
            if (place == 0)
                shared.steps[block] = factor.step;
        }
    }
    __syncthreads();
    return blocks;
}

template <int kForm, int kGroup>
__device__ __forceinline__ void sparse_share(const Product& p, const SparseTerms& terms, int half_line,
                                             int share, int shares, SparseStepShared& shared) {
    using Line = HalfLine<kForm, kGroup>;
    constexpr int kWarps = kSparseStepThreads / 32;
    const DeviceMatrix& w = p.w;
    const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
    int begin, end;
    const int blocks = list_share(p.x, w.d, share, shares, shared, &begin, &end);
    float* sums = terms.sums + size_t(half_line) * size_t(terms.blocks) * kSparseOutputs;
    float* steps = terms.steps + size_t(half_line) * size_t(terms.blocks);
    const Line line(w, half_line / 2, half_line % 2);
    typename Line::Codes coming{};
    const auto fetch = [&](int block) {
        coming.load(w, line, shared.own.channels + block * kBlockChannels,
                    shared.own.factors + block * kBlockChannels);
    };
    const int count = end - begin;
    if (warp < count)
        fetch(warp);
    for (int block = warp; block < count; block += kWarps) {
        const typename Line::Codes now = coming;
        if (block + kWarps < count)
            fetch(block + kWarps);
        line.sum(w, now, shared.scaled[warp], [&](int output, float sum) {
            sums[size_t(begin + block) * kSparseOutputs + size_t(output)] = sum;
        });
        if (lane == 0)
            steps[begin + block] = shared.steps[block];
    }
    __threadfence();
    __syncthreads();
    if (thread == 0) {
        shared.arrived = atomicAdd(terms.arrivals + half_line, 1u);
        __threadfence();
    }
    __syncthreads();
    if (shared.arrived + 1 != unsigned(shares))
        return;
    if (thread == 0)
        terms.arrivals[half_line] = 0; // for the next launch
    float total = 0.0f;
    for (int first = 0; first < blocks; first += kSparseStepChunk) {
        const int size = blocks - first < kSparseStepChunk ? blocks - first : kSparseStepChunk;
        const float* from = sums + size_t(first) * kSparseOutputs;
#pragma unroll 4
        for (int i = thread; i < size * kSparseOutputs; i += kSparseStepThreads)
            shared.sums[i] = __ldcg(from + i);
        if (thread < size)
            shared.steps[thread] = __ldcg(steps + first + thread);
        __syncthreads();
        if (thread < Line::kOutputs)
#pragma unroll 8
            for (int i = 0; i < size; ++i)
                total = fmaf(shared.sums[i * kSparseOutputs + thread], shared.steps[i], total);
        __syncthreads();
    }
    finish_half_line(p, line, 0, thread, total);
}

/// Grid: half lines times shares.
__global__ void __launch_bounds__(kSparseStepThreads)
    sparse_step(const __grid_constant__ Product p, SparseTerms terms, int shares) {
    let_next_start();
    const int half_line = int(blockIdx.x) / shares, share = int(blockIdx.x) % shares;
    SparseStepShared& shared = *shared_memory<SparseStepShared>();
    for (int i = int(blockIdx.x) * kSparseStepThreads + int(threadIdx.x); i < p.w.k;
         i += int(gridDim.x) * kSparseStepThreads)
        if (i % 32 == 0)
            prefetch(p.w.d + i);
    wait_for_previous();
    with_format(p.w, [&]<int kForm, int kGroup>() {
        sparse_share<kForm, kGroup>(p, terms, half_line, share, shares, shared);
    });
}

} // namespace rwkv::cuda
