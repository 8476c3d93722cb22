#include "cpu/kernels.h"

#include <algorithm>
#include <string>

#include "core/check.h"
#include "cpu/features.h"
#include "cpu/levels.h"

namespace rwkv::cpu {
namespace {

struct Level {
    const char* name;
    const KernelTable* (*table)();
    bool (*runs)(const Features&);
};

// In order of preference, best last.
constexpr Level kLevels[] = {
    {"scalar", scalar_table, [](const Features&) { return true; }},
#ifdef RWKV_HAVE_LEVEL_AVX2
    {"avx2", avx2_table, [](const Features& f) { return f.avx2; }},
#endif
#ifdef RWKV_HAVE_LEVEL_AVXVNNI
    {"avxvnni", avxvnni_table, [](const Features& f) { return f.avxvnni; }},
#endif
#ifdef RWKV_HAVE_LEVEL_AVX512
    {"avx512", avx512_table, [](const Features& f) { return f.avx512vnni; }},
#endif
#ifdef RWKV_HAVE_LEVEL_NEON
    {"neon", neon_table, [](const Features& f) { return f.neon; }},
#endif
#ifdef RWKV_HAVE_LEVEL_DOTPROD
    {"dotprod", dotprod_table, [](const Features& f) { return f.dotprod; }},
#endif
#ifdef RWKV_HAVE_LEVEL_I8MM
    {"i8mm", i8mm_table, [](const Features& f) { return f.i8mm; }},
#endif
};

} // namespace

size_t product_scratch_bytes(const Matrix& w, int rows) {
    if (w.layout != Layout::kKn) {
        // matmat_inl.h, panel_inl.h: outputs of a unit; of its two tiles the codes of 8 bits, and the groups'
        // scales
        const size_t decoded =
            w.layout == Layout::kTile
                ? size_t(w.k_pad) * kUnitRows + size_t(w.k_pad / w.group) * kUnitRows * sizeof(float)
                : 0;
        return size_t(rows + kWidestBlock) * kUnitRows * sizeof(float) + decoded;
    }
    // sparse_inl.h: of each row outputs, and its active channels with their values; of all of them channels,
    // and a bit for each
    const size_t listed = listed_channels(w);
    return size_t(std::min(rows, kSparseTokens)) *
               (size_t(w.n_pad) * sizeof(float) + listed * (sizeof(int32_t) + sizeof(float))) +
           listed * sizeof(int32_t) + listed / 8;
}

const KernelTable& choose(const char* forced_level) {
    const Features features = detect();
    if (forced_level && *forced_level) {
        std::string wanted = forced_level;
        const bool unchecked = wanted.back() == '!';
        if (unchecked)
            wanted.pop_back();
        for (const Level& level : kLevels) {
            if (wanted != level.name)
                continue;
            require(unchecked || level.runs(features), Fault::kDevice,
                    "RWKV_CPU_LEVEL=" + wanted +
                        ": this processor does not report it (it has: " + describe(features) + ")");
            return *level.table();
        }
        throw Error(Fault::kArgument, "RWKV_CPU_LEVEL=" + wanted + ": no such level in this build");
    }
    const Level* best = &kLevels[0];
    for (const Level& level : kLevels)
        if (level.runs(features))
            best = &level;
    return *best->table();
}

const char* const* runnable_levels(int* count) {
    static const char* names[sizeof kLevels / sizeof kLevels[0]];
    const Features features = detect();
    int n = 0;
    for (const Level& level : kLevels)
        if (level.runs(features))
            names[n++] = level.name;
    *count = n;
    return names;
}

} // namespace rwkv::cpu
