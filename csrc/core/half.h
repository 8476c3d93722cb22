// bf16 and f16 to float32, one value at a time. `static`: each file keeps its own copy, because files
// compiled for wider instruction sets must share no inline function with baseline code.
#pragma once

#include <cstdint>
#include <cstring>

namespace rwkv {

static inline float bits_to_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t float_to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float bf16_to_float(uint16_t h) { return bits_to_float(uint32_t(h) << 16); }

/// IEEE 754 binary16, subnormals included (they are normal numbers in float32).
static inline float f16_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 0x1fu;
    const uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0) {
        const float magnitude = float(mantissa) * 0x1p-24f;
        return bits_to_float(sign | float_to_bits(magnitude));
    }
    if (exponent == 31)
        return bits_to_float(sign | 0x7f800000u | (mantissa << 13));
    return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

} // namespace rwkv
