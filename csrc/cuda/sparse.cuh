// Products with ffn.value stored by input channel (layout "kn"): channels whose activation is zero are never
// read. The arithmetic of csrc/cpu/sparse_inl.h: sixteen active channels at a time, ascending; their
// activations times scales rounded to 16 bits; an exact integer sum; one fused multiply-add per block and
// output.
#pragma once

#include "cuda/products.cuh"

namespace rwkv::cuda {

constexpr int kBlockChannels = 16;
constexpr int kFindThreads = 512;

/// Of a half warp's sixteen activations times record scales: each in steps of a 16th-bit integer's share, and
/// the step.
struct BlockFactor {
    float factor, step;
};
__device__ __forceinline__ BlockFactor block_factor(float a) {
    const float largest = max_over<kBlockChannels>(fabsf(a));
    const bool used = largest > 1e-30f;
    constexpr float kLargestScale = 127.0f * 127;
    const float factor = a * (used ? kLargestMultiplier / kLargestScale / largest : 0.0f);
    const float sum = fold16(factor); // NaN if any is
    return {factor, sum != sum ? not_a_number()
                    : used     ? largest * (kLargestScale / kLargestMultiplier)
                               : 0.0f};
}

/// Grid: rows. Lists the active channels of each row of x.f and what a block of sixteen needs. d: [k] record
/// scales.
__global__ void __launch_bounds__(kFindThreads) find_active(Acts x, const float* d, SparseRows out) {
    constexpr int kWarps = kFindThreads / 32;
    const int t = int(blockIdx.x), lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
    const float* f = x.f + size_t(t) * size_t(x.k_pad);
    int32_t* channels = out.channels + size_t(t) * size_t(out.stride);
    int* counts = shared_memory<int>(); // [kWarps]
    const int groups = x.k_pad / kActGroup, each = (groups + kWarps - 1) / kWarps;
    const int begin = warp * each, end = begin + each < groups ? begin + each : groups;
    int count = 0;
    for (int g = begin; g < end; ++g)
        count += __popc(__ballot_sync(kAllLanes, __ldg(f + g * kActGroup + lane) != 0.0f));
    if (lane == 0)
        counts[warp] = count;
    __syncthreads();
    int at = 0, total = 0;
    for (int i = 0; i < kWarps; ++i) {
        at += i < warp ? counts[i] : 0;
        total += counts[i];
    }
    for (int g = begin; g < end; ++g) {
        const bool active = __ldg(f + g * kActGroup + lane) != 0.0f;
        const unsigned mask = __ballot_sync(kAllLanes, active);
        if (active)
            channels[at + __popc(mask & ((1u << lane) - 1))] = g * kActGroup + lane;
        at += __popc(mask);
    }
    __syncthreads();
    const int blocks = (total + kBlockChannels - 1) / kBlockChannels;
    if (threadIdx.x == 0)
        out.blocks[t] = blocks;
    const int place = lane % kBlockChannels;
    for (int pair = warp; 2 * pair < blocks; pair += kWarps) { // a half warp a block
        const int block = 2 * pair + lane / kBlockChannels, i = block * kBlockChannels + place;
        const bool present = i < total;
        const int channel = present ? channels[i] : block < blocks ? channels[block * kBlockChannels] : 0;
        const float a = present ? f[channel] * d[channel] : 0.0f;
        const BlockFactor factor = block_factor(a);
        if (block < blocks) {
            if (!present)
                channels[i] = channel;
            out.factors[size_t(t) * size_t(out.stride) + size_t(i)] = factor.factor;
            if (place == 0)
                out.steps[size_t(t) * size_t(out.stride / kBlockChannels) + size_t(block)] = factor.step;
        }
    }
}

constexpr int kSparseThreads = 1024; ///< many: every warp has to hide the way to memory
constexpr int kSparseChunk = 96;     ///< blocks of channels whose sums meet
constexpr size_t kSparseShared = size_t(kSparseChunk * kSparseOutputs) * sizeof(float) +
                                 size_t(kSparseThreads / 32 * 8 * kBlockChannels) * sizeof(int16_t);
// a warp goes on where it would have
static_assert(kSparseChunk % (kSparseThreads / 32) == 0 && kSparseShared <= kSharedLimit);

/// The eight 6-bit codes of a word of nibbles and the 16 bits above them, as signed bytes: of outputs 0 to 3
/// and of 4 to 7.
__device__ __forceinline__ void six_bit_outputs(uint32_t nibbles, uint32_t above, uint32_t* low,
                                                uint32_t* high) {
    const uint32_t both = above | above << 12; // of each byte the upper two pairs, 16 bits further up
    const uint32_t even = six_bits(nibbles, both), odd = six_bits(nibbles >> 4, both >> 2);
    *low = __byte_perm(even, odd, 0x5140);
    *high = __byte_perm(even, odd, 0x7362);
}

/// The signs of the eight 5-bit codes of a word as look_up5 takes them, from the byte that a record has of
/// them.
__device__ __forceinline__ uint32_t sign_pairs(uint32_t byte) {
    const uint32_t half = byte | byte << 4;
    return half | half << 14;
}

/// Half a line of 64 bytes: what a warp makes of sixteen channels of it at a time.
template <int kForm, int kGroup>
struct HalfLine {
    static constexpr int kPerWord = kForm == kForm8 ? 4 : 8, kOutputs = 8 * kPerWord;
    static constexpr int kLineOutputs = 2 * kOutputs, kGroups = kLineOutputs / kGroup;
    static constexpr int kAbove = kForm == kForm6 ? 2 : 1; ///< bytes above a word's nibbles, if any
    int line, half;
    size_t first_scale, first_code, first_above; ///< in a record; codes, and the bits above, are the lane's

    __device__ __forceinline__ HalfLine(const DeviceMatrix& w, int line_, int half_)
        : line(line_), half(half_),
          first_scale(size_t(w.n_pad) / 8 * kCodeBits<kForm> + size_t(line_) * kGroups),
          first_code(size_t(line_) * 64 + size_t(half_) * 32 + size_t(threadIdx.x % 8) * 4),
          first_above(size_t(w.n_pad) / 2 +
                      (size_t(line_) * 16 + size_t(half_) * 8 + size_t(threadIdx.x % 8)) * kAbove) {}

    /// A lane's: four channels' codes of one word; and of one channel every second scale.
    struct Codes {
        uint32_t words[4];
        uint16_t above[kCodeBits<kForm> % 4 != 0 ? 4 : 1]; ///< q6 and q5: the bits above the words' nibbles
        int8_t scales[(kGroups + 1) / 2];
        float factor; ///< of that channel

        __device__ __forceinline__ void load(const DeviceMatrix& w, const HalfLine& at, const int* channels,
                                             const float* factors) {
            const int lane = int(threadIdx.x % 32), quarter = lane / 8;
            factor = factors[lane % kBlockChannels];
            const int4 mine = *reinterpret_cast<const int4*>(channels + quarter * 4);
            const int record[4] = {mine.x, mine.y, mine.z, mine.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
                words[i] = __ldg(reinterpret_cast<const uint32_t*>(
                    w.q + size_t(record[i]) * size_t(w.stride) + at.first_code));
            if constexpr (kForm == kForm6)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    above[i] = __ldg(reinterpret_cast<const uint16_t*>(
                        w.q + size_t(record[i]) * size_t(w.stride) + at.first_above));
            if constexpr (kForm == kForm5)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    above[i] = __ldg(w.q + size_t(record[i]) * size_t(w.stride) + at.first_above);
            const uint8_t* from =
                w.q + size_t(channels[lane % kBlockChannels]) * size_t(w.stride) + at.first_scale;
#pragma unroll
            for (int i = 0; i < (kGroups + 1) / 2; ++i)
                scales[i] = int8_t(__ldg(from + 2 * i + lane / kBlockChannels));
        }
    };

    /// Calls store(output of the half line, sum) for all; `scaled`: [kGroups][16], the warp's own.
    template <class F>
    __device__ __forceinline__ void sum(const DeviceMatrix& w, const Codes& codes, int16_t* scaled,
                                        F store) const {
        const int lane = int(threadIdx.x % 32), word = lane % 8, quarter = lane / 8;
        const int place = lane % kBlockChannels;
#pragma unroll
        for (int i = 0; i < (kGroups + 1) / 2; ++i) // activations times scales, as pairs of 16-bit integers
            scaled[(2 * i + lane / kBlockChannels) * kBlockChannels + place] =
                int16_t(__float2int_rn(codes.factor * square_law(codes.scales[i])));
        __syncwarp();
        int sum[kPerWord] = {};
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
            const uint32_t a = codes.words[2 * pair], b = codes.words[2 * pair + 1];
            const auto add = [&](int first, uint32_t a_bytes, uint32_t b_bytes) { // four outputs
                const int low = int(__byte_perm(a_bytes, b_bytes, 0x5140)),
                          high = int(__byte_perm(a_bytes, b_bytes, 0x7362));
                const auto pair_of = [&](int i) {
                    int both;
                    memcpy(&both, scaled + 16 * i / kGroup * kBlockChannels + 4 * quarter + 2 * pair, 4);
                    return both;
                };
                sum[first] = __dp2a_lo(pair_of(first), low, sum[first]);
                sum[first + 1] = __dp2a_hi(pair_of(first + 1), low, sum[first + 1]);
                sum[first + 2] = __dp2a_lo(pair_of(first + 2), high, sum[first + 2]);
                sum[first + 3] = __dp2a_hi(pair_of(first + 3), high, sum[first + 3]);
            };
            if constexpr (kForm == kForm6) {
                uint32_t a_low, a_high, b_low, b_high;
                six_bit_outputs(a, codes.above[2 * pair], &a_low, &a_high);
                six_bit_outputs(b, codes.above[2 * pair + 1], &b_low, &b_high);
                add(0, a_low, b_low);
                add(4, a_high, b_high);
            } else if constexpr (kLookedUp<kForm>) {
                int a_low, a_high, b_low, b_high;
                if constexpr (kForm == kForm5) {
                    look_up5(w.codebook, a, sign_pairs(codes.above[2 * pair]), &a_low, &a_high);
                    look_up5(w.codebook, b, sign_pairs(codes.above[2 * pair + 1]), &b_low, &b_high);
                } else {
                    look_up(w.codebook, a, &a_low, &a_high);
                    look_up(w.codebook, b, &b_low, &b_high);
                }
                add(0, uint32_t(a_low), uint32_t(b_low));
                add(4, uint32_t(a_high), uint32_t(b_high));
            } else {
                add(0, a ^ 0x80808080u, b ^ 0x80808080u);
            }
        }
        // Four lanes have parts of the same sums: each gives away those that others finish. Quarter q
        // finishes the sums 4 i + q.
        const bool odd = quarter % 2 == 1, upper = quarter / 2 == 1;
        int pairs[kPerWord / 2];
#pragma unroll
        for (int i = 0; i < kPerWord / 2; ++i)
            pairs[i] = (odd ? sum[2 * i + 1] : sum[2 * i]) +
                       __shfl_xor_sync(kAllLanes, odd ? sum[2 * i] : sum[2 * i + 1], 8);
#pragma unroll
        for (int i = 0; i < kPerWord / 4; ++i)
            store((4 * i + quarter) * 8 + word,
                  float((upper ? pairs[2 * i + 1] : pairs[2 * i]) +
                        __shfl_xor_sync(kAllLanes, upper ? pairs[2 * i] : pairs[2 * i + 1], 16)));
        __syncwarp(); // before the next block's products with scales
    }

    __device__ __forceinline__ int output(int i) const {
        return line * kLineOutputs + i / 8 * 16 + half * 8 + i % 8;
    }
};

/// What becomes of output n of row t, if there is one.
__device__ __forceinline__ void finish_output(const Product& p, int t, int n, float total) {
    if (n >= p.w.n)
        return;
    float& out = p.out.data[size_t(t) * size_t(p.out.stride) + n];
    const float gate =
        p.epilogue == Epilogue::kMulAdd ? p.gate.data[size_t(t) * size_t(p.gate.stride) + n] : 0.0f;
    const bool adds = p.epilogue == Epilogue::kAdd || p.epilogue == Epilogue::kMulAdd;
    out = apply(p.epilogue, total, adds ? out : 0.0f, gate);
}

/// The same of a thread's output, if it has one.
template <class Line>
__device__ __forceinline__ void finish_half_line(const Product& p, const Line& line, int t, int i,
                                                 float total) {
    if (i < Line::kOutputs)
        finish_output(p, t, line.output(i), total);
}

/// Half a line for all active channels of a row.
template <int kForm, int kGroup>
__device__ __forceinline__ void half_line(const Product& p, const SparseRows& active, int line_, int half,
                                          int t, float* shared) {
    using Line = HalfLine<kForm, kGroup>;
    constexpr int kOutputs = Line::kOutputs, kWarps = kSparseThreads / 32, kChunk = kSparseChunk;
    const int warp = int(threadIdx.x / 32);
    float* sums = shared; // [kChunk][kOutputs]
    int16_t* scaled = reinterpret_cast<int16_t*>(shared + kChunk * kOutputs) + warp * 8 * kBlockChannels;
    const int blocks = active.blocks[t];
    const int32_t* channels = active.channels + size_t(t) * size_t(active.stride);
    const float* factors = active.factors + size_t(t) * size_t(active.stride);
    const float* steps = active.steps + size_t(t) * size_t(active.stride / kBlockChannels);
    const Line line(p.w, line_, half);
    typename Line::Codes coming{}; // while the block before is worked on
    if (warp < blocks)
        coming.load(p.w, line, channels + warp * kBlockChannels, factors + warp * kBlockChannels);
    float total = 0.0f;
    for (int begin = 0; begin < blocks; begin += kChunk) {
        const int end = begin + kChunk < blocks ? begin + kChunk : blocks;
        for (int block = begin + warp; block < end; block += kWarps) {
            const typename Line::Codes now = coming;
            if (block + kWarps < blocks)
                coming.load(p.w, line, channels + (block + kWarps) * kBlockChannels,
                            factors + (block + kWarps) * kBlockChannels);
            line.sum(p.w, now, scaled,
                     [&](int output, float sum) { sums[(block - begin) * kOutputs + output] = sum; });
        }
        __syncthreads();
        if (int(threadIdx.x) < kOutputs)
#pragma unroll 8
            for (int block = begin; block < end; ++block)
                total =
                    fmaf(sums[(block - begin) * kOutputs + int(threadIdx.x)], __ldg(steps + block), total);
        __syncthreads();
    }
    finish_half_line(p, line, t, int(threadIdx.x), total);
}

/// Grid: half lines of a record, rows.
__global__ void __launch_bounds__(kSparseThreads)
    sparse_product(const __grid_constant__ Product p, SparseRows active) {
    const int line = int(blockIdx.x) / 2, half = int(blockIdx.x) % 2, t = int(blockIdx.y);
    float* shared = shared_memory<float>();
    with_format(p.w,
                [&]<int kForm, int kGroup>() { half_line<kForm, kGroup>(p, active, line, half, t, shared); });
}

} // namespace rwkv::cuda
