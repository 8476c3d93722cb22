#include "cpu/features.h"

#ifdef __x86_64__
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace rwkv::cpu {

#ifdef __x86_64__
namespace {

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) noexcept {
    Registers r;
    if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d))
        r = {};
    return r;
}

/// Register sets that the operating system saves (XCR0).
unsigned long long saved_registers() noexcept {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<unsigned long long>(high) << 32) | low;
}

bool bit(unsigned value, int position) noexcept { return (value >> position) & 1u; }

} // namespace

Features detect() noexcept {
    Features f;
    const Registers one = cpuid(1, 0);
    if (!bit(one.c, 27))
        return f; // OSXSAVE: without it XGETBV does not exist
    const unsigned long long saved = saved_registers();
    const Registers seven = cpuid(7, 0), seven1 = seven.a >= 1 ? cpuid(7, 1) : Registers{};
    const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6;
    f.avx2 = ymm && bit(one.c, 28) && bit(one.c, 12) && bit(one.c, 29) && bit(seven.b, 5);
    f.avxvnni = f.avx2 && bit(seven1.a, 4);
    f.avx512vnni = f.avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) &&
                   bit(seven.b, 31) && bit(seven.c, 11);
    return f;
}
#elif defined(__aarch64__)
namespace {

bool has_dot_products() noexcept {
#if defined(__linux__)
    constexpr unsigned long kAsimdDotProducts = 1ul << 20; // of AT_HWCAP
    return (getauxval(AT_HWCAP) & kAsimdDotProducts) != 0;
#elif defined(__APPLE__)
    return true; // every Mac of this architecture
#else
    return false;
#endif
}

bool has_matrix_products() noexcept {
#if defined(__linux__)
    constexpr unsigned long kInt8MatrixProducts = 1ul << 13; // of AT_HWCAP2
    return (getauxval(AT_HWCAP2) & kInt8MatrixProducts) != 0;
#elif defined(__APPLE__)
    int value = 0; // the name is not known before macOS 12, nor is any processor that has them
    size_t size = sizeof value;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &value, &size, nullptr, 0) == 0 && value != 0;
#else
    return false;
#endif
}

} // namespace

Features detect() noexcept {
    Features f;
    f.neon = true;
    f.dotprod = has_dot_products();
    f.i8mm = f.dotprod && has_matrix_products();
    return f;
}
#else
Features detect() noexcept { return {}; }
#endif

std::string describe(const Features& f) {
    std::string text;
    if (f.avx2)
        text += "avx2 fma f16c ";
    if (f.avxvnni)
        text += "avxvnni ";
    if (f.avx512vnni)
        text += "avx512vnni ";
    if (f.neon)
        text += "neon ";
    if (f.dotprod)
        text += "dotprod ";
    if (f.i8mm)
        text += "i8mm ";
    if (text.empty())
        return "baseline";
    text.pop_back();
    return text;
}

} // namespace rwkv::cpu
