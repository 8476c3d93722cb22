// A test is a function that registers itself; CHECK reports the line and lets the others run.
#pragma once

#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "cpu/kernels.h"
#include "cpu/levels.h"

namespace rwkv::test {

struct Test {
    const char* name;
    void (*run)();
};
std::vector<Test>& tests();
int& failures();

struct Register {
    Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

#define TEST(name)                                                                                           \
    static void name();                                                                                      \
    static const ::rwkv::test::Register register_##name(#name, name);                                        \
    static void name()

#define CHECK(condition, ...)                                                                                \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            ++::rwkv::test::failures();                                                                      \
            std::printf("%s:%d: CHECK(%s) failed:", __FILE__, __LINE__, #condition);                         \
            std::printf(" " __VA_ARGS__);                                                                    \
            std::printf("\n");                                                                               \
        }                                                                                                    \
    } while (0)

/// Tables of all levels to compare: those this processor reports, and the one that RWKV_TEST_LEVELS names.
std::vector<const cpu::KernelTable*> levels();

/// About a normal distribution, by sums of twelve: the same floats from every compiler and library.
inline float normal(std::mt19937& generator) {
    int sum = 0;
    for (int i = 0; i < 12; ++i)
        sum += int(generator() >> 16);
    return float(sum - 6 * 65535) / 65536.0f;
}

inline std::vector<float> gaussian(size_t n, unsigned seed, float scale = 1.0f) {
    std::mt19937 generator(seed);
    std::vector<float> values(n);
    for (float& v : values)
        v = scale * normal(generator);
    return values;
}

/// A quantized or float matrix with random content, its bytes, and what it decodes to (float64, row-major).
struct RandomMatrix {
    RandomMatrix(const std::string& encoding, const std::string& layout, int n, int k, unsigned seed,
                 size_t misalign = 0);
    Matrix matrix;
    std::vector<std::pair<std::string, size_t>> part_sizes; ///< name, bytes; in the order they lie in `bytes`
    AlignedBuffer<uint8_t> bytes;
    std::vector<size_t> part_offsets;
    struct Weight {
        double scale; ///< row scale times group scale; a float weight itself
        int code;     ///< without its zero point; 1 for float weights
    };
    Weight weight(int n, int k) const;
    double at(int n, int k) const;
};

/// Activations in every form, from rows of floats.
struct ActsBuffer {
    ActsBuffer(const cpu::KernelTable& op, const std::vector<float>& x, int rows, int k);
    cpu::Acts acts;
    AlignedBuffer<float> f, scale;
    AlignedBuffer<int8_t> q, split;
    AlignedBuffer<int32_t> bias_q8, bias_q4;
    int code(int t, int k) const;
    double quantized(int t, int k) const;
};

} // namespace rwkv::test
