// Products with ffn.value in layout "kn" of so many tokens that they fill the device: the arithmetic of
// sparse.cuh. A warp has 256 outputs of a token to itself and adds its blocks of channels up in order, so it
// waits for no other; the warps of a block take the same outputs of neighbouring tokens, which find records
// near that others have just read.
//
// Tensor cores make a block's sums of the codes as they lie in the records. A row of a multiplication is one
// of sixteen dwords; its inputs are the four outputs of half that dword, of eight channels; its columns are
// the lower and the upper byte of what those four outputs are multiplied with. So each column's factors are
// zero but for one of four.
#pragma once

#include "cuda/sparse.cuh"
#include "cuda/tensor.cuh"

namespace rwkv::cuda {

constexpr int kPart = 128;         ///< outputs whose sums are made at once: a line, or two of 8-bit codes
constexpr int kStripe = 2 * kPart; ///< of a warp
constexpr int kStripeWarps = 8, kStripeThreads = 32 * kStripeWarps;
constexpr int kStripeWords = 2 * 2 * kPart / 16 / 2 * kBlockChannels; ///< that a warp shares, at most
constexpr size_t kStripeShared = sizeof(uint32_t) * kStripeWords * kStripeWarps;

/// Whether 32 bits address all records.
inline bool in_reach(const DeviceMatrix& w) { return uint64_t(w.k) * uint64_t(w.stride) <= UINT32_MAX; }

/// c += a b as multiply_32 has them.
__device__ __forceinline__ void accumulate_32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const int before[4] = {c[0], c[1], c[2], c[3]};
    multiply_32(c, a, make_uint2(b0, b1), before);
}

/// What lies `offset` bytes from `base`, which is the same for all lanes: one register an address.
template <class T>
__device__ __forceinline__ T load_at(const void* base, uint32_t offset) {
    return __ldg(reinterpret_cast<const T*>(static_cast<const uint8_t*>(base) + offset));
}

/// The upper half of a word, by a multiplication: the unit that shifts has more than enough to do.
__device__ __forceinline__ uint32_t upper_half(uint32_t word) {
    uint32_t half;
#if defined(__CUDACC__)
    asm("mul.hi.u32 %0, %1, 0x10000;" : "=r"(half) : "r"(word));
#else
    half = word >> 16;
#endif
    return half;
}

/// Four bytes, each plus one where `which` has a byte's lowest bit.
__device__ __forceinline__ uint32_t add_ones(uint32_t bytes, uint32_t which) {
    return ((bytes & 0x7f7f7f7fu) + which) ^ (bytes & 0x80808080u);
}

/// A table of sixteen ascending signed bytes in two halves, of which bytes_or_signs() takes one byte each:
/// that of the half that a code is not in is 0 or -1, by the sign of the byte there. Theirs is the sum, so
/// what has -1 added is stored one larger.
struct HalfTables {
    uint32_t lower[2], upper[2];
    __device__ __forceinline__ explicit HalfTables(const uint32_t* codebook) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            upper[i] = add_ones(codebook[2 + i], codebook[i] >> 7 & 0x01010101u);
            lower[i] = add_ones(codebook[i], upper[i] >> 7 & 0x01010101u);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) { // registers of lanes: those of warps would be copied at every use
            lower[i] = unsigned(__shfl_xor_sync(kAllLanes, int(lower[i]), 1));
            upper[i] = unsigned(__shfl_xor_sync(kAllLanes, int(upper[i]), 1));
        }
    }
};

/// Where a lane finds its part of the lists of a row, in bytes from those of row 0: lane 4 i + j has channels
/// 4 j to 4 j + 3 of a block, and channel 4 j + i / 2 as its own.
struct Lists {
    const SparseRows& active;
    uint32_t channels, own, step;

    static __device__ __forceinline__ unsigned place() { return threadIdx.x % 4 * 4 + threadIdx.x % 32 / 8; }
    __device__ __forceinline__ Lists(const SparseRows& active_, int t) : active(active_) {
        const uint32_t row = uint32_t(t) * uint32_t(active.stride);
        channels = (row + threadIdx.x % 4 * 4) * 4;
        own = (row + place()) * 4;
        step = row / kBlockChannels * 4;
    }
};

/// What a warp reads of sixteen channels at a time, and makes of it. Lane 4 i + j has dwords 2 i and 2 i + 1
/// of the records of its channels, and the scales of one part of its own one.
template <int kForm, int kGroup>
struct Stripe {
    static constexpr int kGroups = kPart / kGroup, kPairs = kGroups / 2;
    static constexpr int kTerms = kForm == kForm4 ? 2 : 1; ///< of a code
    static constexpr int kLines = kForm == kForm8 ? 2 : 1; ///< of a part
    static constexpr int kAbove = kForm == kForm6   ? 2
                                  : kForm == kForm5 ? 1
                                                    : 0; ///< bytes above a dword's nibbles
    using Scales = std::conditional_t<kGroup == 16, uint2, uint32_t>;
    using Above = std::conditional_t<kForm == kForm6, uint32_t, uint16_t>;
    using Shared = uint32_t[2][kPairs][kBlockChannels]; ///< what two groups' outputs are multiplied with

    const uint8_t* records;
    uint32_t codes[2][kLines], above[2], scales; ///< the lane's, in a record
    uint32_t stride;
    HalfTables tables;
    unsigned choice; ///< puts the lane's byte of a factor where its output is

    /// Lines that are not there are the stripe's first once more.
    __device__ __forceinline__ Stripe(const DeviceMatrix& w, int stripe)
        : records(w.q), stride(uint32_t(w.stride)), tables(w.codebook) {
        const unsigned i = threadIdx.x % 32 / 4, first = unsigned(stripe) * 2 * kLines, n = unsigned(w.n_pad);
        const unsigned lines = n / (kPart / kLines);
        const auto there = [&](unsigned line) { return line < lines ? line : first; };
#pragma unroll
        for (unsigned part = 0; part < 2; ++part) {
#pragma unroll
            for (unsigned line = 0; line < kLines; ++line)
                codes[part][line] = there(first + part * kLines + line) * 64 + i * 8;
            above[part] = n / 2 + (there(first + part) * 16 + 2 * i) * kAbove;
        }
        scales = n / 8 * kCodeBits<kForm> + there(first + i % 2 * kLines) * (kGroups / kLines);
        const unsigned output = i / 2, byte = (kGroup == 16 ? output % 2 : output / 2) * 2 + i % 2;
        choice = (0x4444u & ~(15u << (4 * output))) | byte << (4 * output);
    }

    /// The lane's channels of a block, and what its own one is multiplied with.
    struct Listed {
        int4 channels;
        int own;
        float factor, step;

        __device__ __forceinline__ void load(const Lists& lists, int block) {
            const uint32_t first = uint32_t(block) * (kBlockChannels * 4);
            channels = load_at<int4>(lists.active.channels, lists.channels + first);
            own = load_at<int>(lists.active.channels, lists.own + first);
            factor = load_at<float>(lists.active.factors, lists.own + first);
            step = load_at<float>(lists.active.steps, lists.step + uint32_t(block) * 4);
        }
    };

    /// The lane's of a part.
    struct Codes {
        uint2 words[kLines][4];
        Above above[kAbove > 0 ? 4 : 1];

        __device__ __forceinline__ void load(const Stripe& at, int part, const Listed& listed) {
            const int record[4] = {listed.channels.x, listed.channels.y, listed.channels.z,
                                   listed.channels.w};
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const uint32_t begin = uint32_t(record[c]) * at.stride;
#pragma unroll
                for (int line = 0; line < kLines; ++line)
                    words[line][c] = load_at<uint2>(at.records, at.codes[part][line] + begin);
                if constexpr (kAbove > 0)
                    above[c] = load_at<Above>(at.records, at.above[part] + begin);
            }
        }
    };

    __device__ __forceinline__ Scales load_scales(const Listed& listed) const {
        return load_at<Scales>(records, scales + uint32_t(listed.own) * stride);
    }

    /// A number rounded to 16 bits, plus 128: the upper of two bytes is what the number's is if the lower one
    /// has a sign too.
    static __device__ __forceinline__ uint32_t rounded(float x) {
        constexpr float kWhole = 12582912.0f; // sums with it are rounded as __float2int_rn does
        return __float_as_uint(x + (kWhole + 128.0f));
    }

    /// Dword `d` of the lane's channel `c`, as terms of signed bytes: of its lower four outputs, or of the
    /// first line, and of its upper four or of the second line.
    __device__ __forceinline__ void unpack(const Codes& from, int c, int d, uint32_t (&low)[kTerms],
                                           uint32_t (&high)[kTerms]) const {
        const uint32_t word = d == 0 ? from.words[0][c].x : from.words[0][c].y;
        if constexpr (kForm == kForm8) {
            low[0] = word ^ 0x80808080u;
            high[0] = (d == 0 ? from.words[1][c].x : from.words[1][c].y) ^ 0x80808080u;
        } else if constexpr (kForm == kForm6) {
            six_bit_outputs(word, from.above[c] >> (16 * d) & 0xffffu, &low[0], &high[0]);
        } else {
            const uint32_t others = word ^ 0x88888888u;
            const uint32_t first[2] = {bytes_or_signs(tables.lower[0], tables.lower[1], word),
                                       bytes_or_signs(tables.lower[0], tables.lower[1], upper_half(word))};
            const uint32_t second[2] = {bytes_or_signs(tables.upper[0], tables.upper[1], others),
                                        bytes_or_signs(tables.upper[0], tables.upper[1], upper_half(others))};
            if constexpr (kForm == kForm4) {
                low[0] = first[0], low[1] = second[0];
                high[0] = first[1], high[1] = second[1];
            } else { // none is negative, so of the two one is 0
                const uint32_t signs = sign_pairs(unsigned(from.above[c]) >> (8 * d) & 0xffu);
                low[0] = (first[0] | second[0]) ^ low_signs(signs);
                high[0] = (first[1] | second[1]) ^ high_signs(signs);
            }
        }
    }

    /// Of the lane's own channel in a part: factor times scales.
    __device__ __forceinline__ void share(float factor, const Scales& from, Shared& shared) const {
        uint32_t words[kGroups / 4];
        memcpy(words, &from, sizeof words);
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
            const auto multiplier = [&](int which) {
                return rounded(factor * square_law(signed_byte(words[pair / 2], pair % 2 * 2 + which)));
            };
            shared[threadIdx.x / 4 % 2][pair][Lists::place()] =
                __byte_perm(multiplier(0), multiplier(1), 0x5410) ^ 0x800080u;
        }
    }

    /// Adds a block's products to the lane's outputs of a part.
    __device__ __forceinline__ void add(const Codes& from, const uint32_t (&shared)[kPairs][kBlockChannels],
                                        float step, float (&total)[2][2]) const {
        const int lane = int(threadIdx.x % 32), i = lane / 4, j = lane % 4;
        uint32_t b[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int pair = kGroup == 16 ? 2 * half + i / 4 : half;
            const uint4 four = *reinterpret_cast<const uint4*>(&shared[pair][4 * j]);
            const uint32_t each[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int c = 0; c < 4; ++c)
                b[half][c] = __byte_perm(each[c], 0, choice);
        }
        int sum[2][4] = {};
#pragma unroll
        for (int c = 0; c < 4; c += 2) {
            uint32_t low[kTerms][4], high[kTerms][4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                uint32_t low_terms[kTerms], high_terms[kTerms];
                unpack(from, c + k / 2, k % 2, low_terms, high_terms);
#pragma unroll
                for (int term = 0; term < kTerms; ++term)
                    low[term][k] = low_terms[term], high[term][k] = high_terms[term];
            }
#pragma unroll
            for (int term = 0; term < kTerms; ++term) {
                accumulate_32(sum[0], low[term], b[0][c], b[0][c + 1]);
                accumulate_32(sum[1], high[term], b[1][c], b[1][c + 1]);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int d = 0; d < 2; ++d)
                total[half][d] =
                    fmaf(float(sum[half][2 * d] + sum[half][2 * d + 1] * 256), step, total[half][d]);
    }
};

/// What becomes of a lane's outputs: n and the next, and those after another 64.
__device__ __noinline__ void finish_outputs(const Product& p, int t, int n, float4 total) {
    finish_output(p, t, n, total.x);
    finish_output(p, t, n + 1, total.y);
    finish_output(p, t, n + 64, total.z);
    finish_output(p, t, n + 65, total.w);
}

/// Outputs of `stripe` for all active channels of row t.
template <int kForm, int kGroup>
__device__ __forceinline__ void sparse_row(const Product& p, const SparseRows& active, int stripe, int t,
                                           uint32_t* shared) {
    using S = Stripe<kForm, kGroup>;
    const S at(p.w, stripe);
    const Lists lists(active, t);
    typename S::Shared* own = reinterpret_cast<typename S::Shared*>(shared);
    const int last = active.blocks[t] - 1;
    float total[2][2][2] = {};
    if (last >= 0) {
        typename S::Listed listed;
        typename S::Codes codes[2];
        listed.load(lists, 0);
        typename S::Scales scales = at.load_scales(listed);
#pragma unroll
        for (int part = 0; part < 2; ++part)
            codes[part].load(at, part, listed);
        float factor = listed.factor, step = listed.step;
        listed.load(lists, last < 1 ? last : 1);
        for (int block = 0; block <= last; ++block) {    // past the last: once more that one
            typename S::Shared& shared = own[block % 2]; // not that of the block before
            at.share(factor, scales, shared);
            scales = at.load_scales(listed);
            factor = listed.factor;
            __syncwarp();
#pragma unroll
            for (int part = 0; part < 2; ++part) {
                at.add(codes[part], shared[part], step, total[part]);
                codes[part].load(at, part, listed);
            }
            step = listed.step;
            listed.load(lists, block + 2 < last ? block + 2 : last);
        }
    }
    const int lane = int(threadIdx.x % 32);
#pragma unroll
    for (int part = 0; part < 2; ++part)
        finish_outputs(
            p, t, stripe * kStripe + part * kPart + lane % 4 * 16 + lane / 4 * 2,
            make_float4(total[part][0][0], total[part][0][1], total[part][1][0], total[part][1][1]));
}

/// Grid: rows by kStripeWarps, stripes of a record.
__global__ void __launch_bounds__(kStripeThreads, 2)
    sparse_rows(const __grid_constant__ Product p, SparseRows active, int rows) {
    const int warp = int(threadIdx.x / 32), t = int(blockIdx.x) * kStripeWarps + warp;
    if (t >= rows)
        return;
    with_format(p.w, [&]<int kForm, int kGroup>() {
        sparse_row<kForm, kGroup>(p, active, int(blockIdx.y), t,
                                  shared_memory<uint32_t>() + warp * kStripeWords);
    });
}

} // namespace rwkv::cuda
