// What this processor and its operating system can run.
#pragma once

#include <string>

namespace rwkv::cpu {

struct Features {
    bool avx2 = false;       ///< AVX2, FMA and F16C, with the operating system saving the wide registers
    bool avxvnni = false;    ///< AVX2 and the VEX form of VNNI
    bool avx512vnni = false; ///< AVX-512 F, BW, VL, DQ and VNNI
    bool neon = false;       ///< 64-bit ARM, where it is always there
    bool dotprod = false;    ///< NEON with dot products of bytes (ARMv8.2 option, ARMv8.4)
    bool i8mm = false;       ///< dotprod and products of matrices of bytes (ARMv8.2 option, ARMv8.6)
};

Features detect() noexcept;

/// One line for people: the features found, by name.
std::string describe(const Features& features);

} // namespace rwkv::cpu
