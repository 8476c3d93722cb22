// The counter-based generator Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// 2011).
#pragma once

#include <array>
#include <cstdint>

namespace rwkv {

/// The high and the low half of a product of 64-bit numbers; not every compiler has a type for it.
struct Product128 {
    uint64_t high, low;
};

inline Product128 multiply(uint64_t a, uint64_t b) {
    const uint64_t a0 = a & 0xFFFFFFFF, a1 = a >> 32, b0 = b & 0xFFFFFFFF, b1 = b >> 32;
    const uint64_t low = a0 * b0, left = a1 * b0, right = a0 * b1;
    const uint64_t middle = (low >> 32) + (left & 0xFFFFFFFF) + (right & 0xFFFFFFFF);
    return {a1 * b1 + (left >> 32) + (right >> 32) + (middle >> 32), (middle << 32) | (low & 0xFFFFFFFF)};
}

inline std::array<uint64_t, 4> philox4x64(std::array<uint64_t, 4> counter, std::array<uint64_t, 2> key) {
    auto [c0, c1, c2, c3] = counter;
    auto [k0, k1] = key;
    for (int round = 0; round < 10; round++) {
        const Product128 p0 = multiply(0xD2E7470EE14C6C93, c0), p1 = multiply(0xCA5A826395121157, c2);
        c0 = p1.high ^ c1 ^ k0;
        c1 = p1.low;
        c2 = p0.high ^ c3 ^ k1;
        c3 = p0.low;
        k0 += 0x9E3779B97F4A7C15;
        k1 += 0xBB67AE8584CAA73B;
    }
    return {c0, c1, c2, c3};
}

/// Draw number `index` of `seed`, in [0, 1), a multiple of 2**-53. The block is index + 1, over 128 bits.
inline double uniform(uint64_t seed, uint64_t index) {
    const uint64_t block = index + 1;
    const uint64_t word = philox4x64({block, block == 0, 0, 0}, {seed, 0})[0];
    return static_cast<double>(word >> 11) * 0x1p-53;
}

} // namespace rwkv
