// The reading loop of every level takes every line once and stays inside its buffer; no speed is asserted.
#include "core/check.h"
#include "cpu/bandwidth.h"
#include "tests/test.h"

using namespace rwkv;
using namespace rwkv::test;

TEST(every_line_is_read) {
    for (const cpu::KernelTable* op : levels())
        for (const size_t lines : {1, 2, 3, 4, 5, 64, 71}) {
            AlignedBuffer<int32_t> buffer(lines * 16);
            CHECK(op->read_lines(reinterpret_cast<const uint8_t*>(buffer.data()), lines) == 0.0f);
            for (size_t line = 0; line < lines; ++line) {
                buffer.data()[line * 16 + line % 16] = 3;
                const float sum = op->read_lines(reinterpret_cast<const uint8_t*>(buffer.data()), lines);
                CHECK(sum == 3.0f || sum == -3.0f, "%s: line %zu of %zu", op->name, line, lines);
                buffer.data()[line * 16 + line % 16] = 0;
            }
        }
}

TEST(bandwidth_has_a_figure_for_each_round) {
    for (const cpu::KernelTable* op : levels())
        for (const int threads : {1, 3}) {
            const auto rates = cpu::read_bandwidth(*op, threads, 1 << 16, 4);
            CHECK(rates.size() == 4);
            for (const double rate : rates)
                CHECK(rate > 0);
        }
    bool refused = false;
    try {
        cpu::read_bandwidth(*levels()[0], 2, 64, 1);
    } catch (const Error&) {
        refused = true;
    }
    CHECK(refused);
}
