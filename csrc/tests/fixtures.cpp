#include "tests/test.h"

#include <cstdlib>

#include "core/half.h"
#include "cpu/features.h"

namespace rwkv::test {

std::vector<Test>& tests() {
    static std::vector<Test> all;
    return all;
}

int& failures() {
    static int count = 0;
    return count;
}

std::vector<const cpu::KernelTable*> levels() {
    const char* setting = std::getenv("RWKV_TEST_LEVELS");
    const std::string also = setting ? setting : "";
    const cpu::Features features = cpu::detect();
    (void)features;
    std::vector<const cpu::KernelTable*> tables{cpu::scalar_table()};
#ifdef RWKV_HAVE_LEVEL_AVX2
    if (also == "avx2" || features.avx2)
        tables.push_back(cpu::avx2_table());
#endif
#ifdef RWKV_HAVE_LEVEL_AVXVNNI
    if (also == "avxvnni" || features.avxvnni)
        tables.push_back(cpu::avxvnni_table());
#endif
#ifdef RWKV_HAVE_LEVEL_AVX512
    if (also == "avx512" || features.avx512vnni)
        tables.push_back(cpu::avx512_table());
#endif
#ifdef RWKV_HAVE_LEVEL_NEON
    if (also == "neon" || features.neon)
        tables.push_back(cpu::neon_table());
#endif
#ifdef RWKV_HAVE_LEVEL_DOTPROD
    if (also == "dotprod" || features.dotprod)
        tables.push_back(cpu::dotprod_table());
#endif
#ifdef RWKV_HAVE_LEVEL_I8MM
    if (also == "i8mm" || features.i8mm)
        tables.push_back(cpu::i8mm_table());
#endif
    return tables;
}

RandomMatrix::RandomMatrix(const std::string& encoding, const std::string& layout, int n, int k,
                           unsigned seed, size_t misalign) {
    const auto up = [](int value, int multiple) {
        return size_t((value + multiple - 1) / multiple * multiple);
    };
    const size_t bits = encoding[0] == 'q' ? size_t(encoding[1] - '0') : 8;
    const size_t group = encoding[0] == 'q' && encoding.substr(2) == "g16" ? 16 : 32;
    if (encoding[0] != 'q') {
        part_sizes = {{"", size_t(n) * size_t(k) * (encoding == "f32" ? 4 : 2)}};
    } else if (layout == "kn") {
        const size_t n_pad = up(n, bits == 8 ? 64 : 128);
        const size_t stride = up(int(n_pad * bits / 8 + n_pad / group), 64);
        part_sizes = {{"q", size_t(k) * stride}, {"d", size_t(k) * 4}};
    } else {
        const size_t n_pad = layout == "row" ? size_t(n) : up(n, 16), elements = n_pad * up(k, 32);
        part_sizes = {{"q", elements * bits / 8}, {"s", elements / group}, {"d", n_pad * 4}};
    }
    if (bits == 4 || bits == 5)
        part_sizes.push_back({"cb", 16});
    size_t total = misalign;
    for (const auto& [name, size] : part_sizes) {
        part_offsets.push_back(total);
        total += up(int(size), 64);
    }
    bytes = AlignedBuffer<uint8_t>(total + 64);
    std::mt19937 generator(seed);
    Parts parts;
    for (size_t i = 0; i < part_sizes.size(); ++i) {
        const auto& [name, size] = part_sizes[i];
        uint8_t* data = bytes.data() + part_offsets[i];
        parts[name] = {data, size};
        if (name.empty()) {
            for (size_t at = 0; at < size; at += encoding == "f32" ? 4 : 2) {
                const float value = normal(generator);
                const uint16_t half = encoding == "bf16" ? uint16_t(float_to_bits(value) >> 16)
                                                         : uint16_t(generator() & 0xbbff); // any f16 below 2
                if (encoding == "f32")
                    std::memcpy(data + at, &value, 4);
                else
                    std::memcpy(data + at, &half, 2);
            }
        } else if (name == "d") {
            for (size_t at = 0; at < size; at += 4) {
                const float value = 1e-6f * (1.0f + float(generator() % 1000));
                std::memcpy(data + at, &value, 4);
            }
        } else if (name == "cb") {
            for (size_t j = 0; j < 16; ++j)
                data[j] = uint8_t(bits == 4 ? 1 + j * 8 + generator() % 6 : 64 + j * 4 + generator() % 4);
        } else {
            // q8 codes are 1..255 and scales -127..127, everything else is any byte
            for (size_t j = 0; j < size; ++j)
                data[j] = uint8_t(generator());
            const bool codes8 = name == "q" && bits == 8;
            if (name == "s" || layout == "kn")
                for (size_t j = 0; j < size; ++j)
                    if (data[j] == 0x80)
                        data[j] = 0x7f;
            if (codes8)
                for (size_t j = 0; j < size; ++j)
                    if (data[j] == 0)
                        data[j] = 255;
        }
    }
    matrix = make_matrix("random", encoding, layout, n, k, parts);
}

double RandomMatrix::at(int n, int k) const {
    const Weight w = weight(n, k);
    return w.scale * w.code;
}

RandomMatrix::Weight RandomMatrix::weight(int n, int k) const {
    const Matrix& m = matrix;
    const auto law = [](int s) { return double(s) * double(s < 0 ? -s : s); };
    if (m.is_float()) {
        const size_t i = size_t(n) * size_t(m.k) + size_t(k);
        float f;
        uint16_t h;
        if (m.encoding == Encoding::kF32) {
            std::memcpy(&f, m.q + 4 * i, 4);
            return {f, 1};
        }
        std::memcpy(&h, m.q + 2 * i, 2);
        return {m.encoding == Encoding::kF16 ? f16_to_float(h) : bf16_to_float(h), 1};
    }
    const bool q8 = m.encoding == Encoding::kQ8;
    // five and six bits: one and two of them stand elsewhere
    const bool q6 = m.encoding == Encoding::kQ6, q5 = m.encoding == Encoding::kQ5;
    const auto number = [&](int byte, bool upper, int above, int shift) {
        const int nibble = upper ? byte >> 4 : byte & 15;
        if (q8)
            return byte - 128;
        if (q6)
            return nibble + (above >> shift & 3) * 16 - 32;
        const int entry = int(m.cb[nibble]) - 64;
        return q5 && (above >> shift & 1) != 0 ? -1 - entry : entry;
    };
    float d;
    if (m.layout == Layout::kKn) {
        const uint8_t* record = m.q + size_t(k) * size_t(m.stride);
        const int per_line = q8 ? 64 : 128, line = n / per_line, in_line = n % per_line, i = in_line / 16;
        const uint8_t byte = record[line * 64 + (in_line % 16) * 4 + (q8 ? i : i / 2)];
        const int v = i / 4 * 2 + i % 2, odd = i / 2 % 2;
        const uint8_t above = q6   ? record[m.n_pad / 2 + line * 32 + in_line % 16 * 2 + odd]
                              : q5 ? record[m.n_pad / 2 + line * 16 + in_line % 16]
                                   : 0;
        const int8_t s = int8_t(record[m.code_bytes(size_t(m.n_pad)) + size_t(n / m.group)]);
        std::memcpy(&d, m.d + k, 4);
        return {double(d) * law(s), number(byte, i % 2 != 0, above, q6 ? 2 * v : 4 * odd + v)};
    }
    std::memcpy(&d, m.d + n, 4);
    if (m.layout == Layout::kRow) {
        const uint8_t* row = m.q + size_t(n) * m.code_bytes(size_t(m.k_pad));
        const int8_t s = m.s[size_t(n) * size_t(m.k_pad / m.group) + size_t(k / m.group)];
        const uint8_t byte = q8 ? row[k] : row[k / 32 * (q6 ? 24 : q5 ? 20 : 16) + k % 16];
        const uint8_t above = q6 ? row[k / 32 * 24 + 16 + k % 8] : q5 ? row[k / 32 * 20 + 16 + k % 4] : 0;
        return {double(d) * law(s), number(byte, k % 32 >= 16, above, q6 ? k % 32 / 8 * 2 : k % 32 / 4)};
    }
    const int8_t s =
        m.s[(size_t(n / 16) * size_t(m.k_pad / m.group) + size_t(k / m.group)) * 16 + size_t(n % 16)];
    const uint8_t* group = m.q + (size_t(n / 16) * size_t(m.k_pad) + size_t(k / 32 * 32)) * 16 / 8 *
                                     size_t(code_bits(m.encoding));
    const int at = n % 16 * 4 + k % 4, in = k % 32;
    const uint8_t byte = group[(q8 ? in / 4 : in / 8) * 64 + at];
    const uint8_t above = q6 ? group[256 + in / 16 * 64 + at] : q5 ? group[256 + at] : 0;
    return {double(d) * law(s), number(byte, in % 8 >= 4, above, q6 ? in % 16 / 4 * 2 : in / 4)};
}

ActsBuffer::ActsBuffer(const cpu::KernelTable& op, const std::vector<float>& x, int rows, int k) {
    acts.k = k;
    acts.k_pad = (k + 31) / 32 * 32;
    acts.width = rows == 1 ? 1 : op.token_block;
    const size_t n =
        size_t(rows + acts.width - 1) / size_t(acts.width) * size_t(acts.width) * size_t(acts.k_pad);
    f = AlignedBuffer<float>(n);
    q = AlignedBuffer<int8_t>(n);
    scale = AlignedBuffer<float>(n / 32);
    split = AlignedBuffer<int8_t>(2 * n);
    bias_q8 = AlignedBuffer<int32_t>(n / 32);
    bias_q4 = AlignedBuffer<int32_t>(n / 16);
    acts.f = f.data();
    acts.q = q.data();
    acts.scale = scale.data();
    acts.split = split.data();
    acts.bias_q8 = bias_q8.data();
    acts.bias_q4 = bias_q4.data();
    for (int t = 0; t < rows; ++t)
        op.set_acts(x.data() + size_t(t) * size_t(k), 0, t, 1, 0, k, acts);
}

int ActsBuffer::code(int t, int k) const {
    const size_t w = size_t(acts.width), block = size_t(t) / w * w * size_t(acts.k_pad);
    return acts.q[block + size_t(k / 4) * 4 * w + size_t(t) % w * 4 + size_t(k % 4)];
}

double ActsBuffer::quantized(int t, int k) const {
    const size_t w = size_t(acts.width), groups = size_t(acts.k_pad / 32);
    return double(code(t, k)) *
           double(acts.scale[(size_t(t) / w * groups + size_t(k / 32)) * w + size_t(t) % w]);
}

} // namespace rwkv::test
