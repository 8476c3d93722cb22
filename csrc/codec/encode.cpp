#include "codec/encode.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "codec/encode_levels.h"
#include "core/check.h"
#include "cpu/kernels.h"

namespace rwkv::codec {
namespace {

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int blocks_of(int rows) { return (rows + kLanes - 1) / kLanes; }

/// The fixed tables, where learning starts (quant/methods/nearest.py).
constexpr uint8_t kTable[16] = {1, 16, 27, 36, 44, 51, 57, 63, 68, 73, 79, 86, 94, 103, 113, 124};
constexpr uint8_t kMirroredTable[16] = {65, 68, 71, 74, 77, 80, 83, 86, 89, 92, 95, 99, 103, 107, 112, 119};
constexpr float kTiny = 1e-30f;
constexpr double kGrid = 8; ///< entries are multiples of 1/8 while they are learned

constexpr const EncodeTable* (*kTables[])() = {
    scalar_encode_table,
#ifdef RWKV_HAVE_LEVEL_AVX2
    avx2_encode_table,
#endif
#ifdef RWKV_HAVE_LEVEL_AVXVNNI
    avxvnni_encode_table,
#endif
#ifdef RWKV_HAVE_LEVEL_AVX512
    avx512_encode_table,
#endif
};

const EncodeTable& table_of(const std::string& level) {
    const char* name = cpu::choose(level.c_str()).name;
    for (const auto& table : kTables)
        if (std::strcmp(table()->name, name) == 0)
            return *table();
    return *scalar_encode_table();
}

/// task(i, thread) for i in 0..count-1, on up to `threads` threads: fewer when the system gives no more,
/// which changes nothing but the time, since each thread takes the next i. The task must not throw.
void parallel(int count, int threads, const std::function<void(int, int)>& task) {
    std::atomic<int> next{0};
    const auto work = [&](int thread) {
        for (int i = next++; i < count; i = next++)
            task(i, thread);
    };
    std::vector<std::thread> helpers;
    helpers.reserve(size_t(std::min(threads, count)));
    try {
        for (int thread = 1; thread < std::min(threads, count); ++thread)
            helpers.emplace_back(work, thread);
    } catch (const std::system_error&) { // those that run must be joined, whatever happens
    } catch (const std::bad_alloc&) {
    }
    work(0);
    for (std::thread& helper : helpers)
        helper.join();
}

/// How far entries of a mirrored codebook are from what they are mirrored at, beyond their value.
constexpr float away(bool mirrored) { return mirrored ? 0.5f : 0.0f; }

Codebook codebook_of(const float* entries, bool mirrored) {
    Codebook book;
    book.mirrored = mirrored;
    std::copy(entries, entries + 16, book.entry);
    for (int i = 0; i < 15; ++i)
        book.middle[i] = (entries[i + 1] + entries[i]) * 0.5f + away(mirrored);
    return book;
}

Codebook codebook_of(const uint8_t* table, bool mirrored) {
    float entries[16];
    for (int i = 0; i < 16; ++i)
        entries[i] = float(int(table[i]) - kQ4Zero);
    return codebook_of(entries, mirrored);
}

/// Evenly spaced rows of the matrix, one after the other, and how much errors count: of a column, or in kn of
/// a row.
struct Sample {
    int rows = 0;
    std::vector<float> values;
    std::vector<float> column, row; ///< empty: all alike
};

Sample sample_of(const Request& r) {
    const int count = r.rows(), length = r.length();
    const int wanted = std::min(count, std::max(kSampleRows, (kSampleWeights + length - 1) / length));
    Sample sample{wanted, std::vector<float>(size_t(wanted) * size_t(length)), {}, {}};
    if (r.importance && r.layout != Layout::kKn)
        sample.column.assign(r.importance, r.importance + length);
    const size_t row_step = r.layout == Layout::kKn ? 1 : size_t(r.k),
                 step = r.layout == Layout::kKn ? size_t(r.k) : 1;
    for (int i = 0; i < wanted; ++i) {
        const size_t at = size_t(int64_t(i) * count / wanted);
        const float* from = r.w + at * row_step;
        for (int j = 0; j < length; ++j)
            sample.values[size_t(i) * size_t(length) + size_t(j)] = from[size_t(j) * step];
        if (r.importance && r.layout == Layout::kKn)
            sample.row.push_back(r.importance[at]);
    }
    return sample;
}

/// Moves each entry to the mean of its weights, as scales and importance weigh them: sums in double, row by
/// row.
void move_entries(const Sample& sample, int length, int group, const std::vector<uint8_t>& index,
                  const std::vector<float>& scale, bool mirrored, float* entries) {
    const size_t groups = size_t((length + group - 1) / group);
    double moment[16] = {}, weight[16] = {}, centre[16];
    for (size_t i = 0; i < sample.values.size(); ++i) {
        const size_t row = i / size_t(length), column = i % size_t(length);
        const double s = scale[row * groups + column / size_t(group)];
        const double h = !sample.column.empty() ? sample.column[column]
                         : !sample.row.empty()  ? sample.row[row]
                                                : 1.0f;
        double target = double(sample.values[i]);
        if (mirrored)
            target = index[i] > 15 ? -(target + 0.5 * s) : target + 0.5 * s;
        moment[index[i] % 16] += s * target * h;
        weight[index[i] % 16] += s * s * h;
    }
    const double off = double(away(mirrored));
    for (int i = 0; i < 16; ++i)
        centre[i] = weight[i] > 0 ? moment[i] / weight[i] : double(entries[i]) + off;
    std::sort(centre, centre + 16);
    const double fill = (63.0 + off) / std::max(std::fabs(centre[0]), std::fabs(centre[15]));
    const double stretch = mirrored ? std::min(1.0, fill) : fill;
    for (int i = 0; i < 16; ++i)
        entries[i] = float(std::floor(centre[i] * stretch * kGrid + 0.5) / kGrid - off);
}

/// The nearest strictly ascending whole numbers in `least`..63, plus the zero point.
void to_whole(const float* entries, int least, uint8_t* table) {
    int whole[16];
    for (int i = 0; i < 16; ++i) {
        whole[i] = int(std::floor(entries[i] + 0.5f));
        whole[i] = std::max(whole[i], i ? whole[i - 1] + 1 : least);
    }
    for (int i = 15; i >= 0; --i)
        whole[i] = std::min(whole[i], i < 15 ? whole[i + 1] - 1 : 63);
    for (int i = 0; i < 16; ++i)
        table[i] = uint8_t(whole[i] + kQ4Zero);
}

/// Lloyd's rounds on a sample of the rows, as quant/methods/codebook.py says.
void learn(const Request& r, const EncodeTable& kernels, int threads, uint8_t* table) {
    const bool mirrored = r.encoding == Encoding::kQ5;
    const uint8_t* first = mirrored ? kMirroredTable : kTable;
    std::copy(first, first + 16, table);
    if (!r.learn)
        return;
    Sample sample = sample_of(r);
    const int rows = sample.rows;
    float top = 0;
    for (const float value : sample.values)
        top = std::max(top, std::fabs(value));
    if (!(top >= kTiny))
        return;
    for (float& value : sample.values)
        value /= top;
    const int length = r.length();
    std::vector<uint8_t> index(sample.values.size());
    const float* importance = sample.column.empty() ? nullptr : sample.column.data();
    std::vector<float> scale(size_t(rows) * size_t((length + r.group - 1) / r.group));
    Codebook book = codebook_of(table, mirrored);
    for (int round = 0; round < kLearningRounds; ++round) {
        parallel(blocks_of(rows), threads, [&](int block, int) {
            kernels.assign_block(sample.values.data(), rows, length, r.group, importance, book, block,
                                 index.data(), scale.data());
        });
        float entries[16];
        std::copy(book.entry, book.entry + 16, entries);
        move_entries(sample, length, r.group, index, scale, mirrored, entries);
        book = codebook_of(entries, mirrored);
    }
    to_whole(book.entry, mirrored ? 0 : -63, table);
}

} // namespace

int Request::padded() const {
    return round_up(length(), layout != Layout::kKn ? 32 : line_outputs(encoding));
}

size_t Request::stride() const {
    if (layout != Layout::kKn)
        return code_bytes();
    return size_t(round_up(int(code_bytes()) + padded() / group, 64));
}

void encode(const Request& request, int threads, const std::string& level) {
    require(request.n > 0 && request.k > 0, Fault::kArgument, "the matrix is empty");
    require(threads > 0, Fault::kArgument, "threads must be at least 1");
    const EncodeTable& kernels = table_of(level);
    Codebook book{};
    if (has_codebook(request.encoding)) {
        learn(request, kernels, threads, request.cb);
        book = codebook_of(request.cb, request.encoding == Encoding::kQ5);
    }
    const size_t scratch_floats = size_t(request.padded() / request.group) * kLanes;
    std::vector<float> scratch(scratch_floats * size_t(threads));
    parallel(blocks_of(request.rows()), threads, [&](int block, int thread) {
        kernels.encode_block(request, book, block, scratch.data() + size_t(thread) * scratch_floats);
    });
}

} // namespace rwkv::codec
