// Where codes and scales lie in the layouts of the file (quant/container/FORMAT.md).
#pragma once

#include <string.h>

#include "codec/encode_levels.h"

namespace rwkv::codec {
namespace {

inline int rows_in_block(int rows, int block) {
    const int rest = rows - block * kLanes;
    return rest < kLanes ? rest : kLanes;
}

/// Where the codes and scales of one block of rows go.
struct Writer {
    const Request& request;
    int block;
    int rows;
    int padded;
    size_t stride;

    Writer(const Request& r, int b)
        : request(r), block(b), rows(rows_in_block(r.rows(), b)), padded(r.padded()), stride(r.stride()) {}

    uint8_t* row(int l) const { return request.q + (size_t(block) * kLanes + size_t(l)) * stride; }

    /// Codes of zero, scales of zero.
    void clear() const {
        const int fill = request.eight() ? kQ8Zero : 0;
        const size_t groups = size_t(padded / request.group);
        if (request.layout == Layout::kTile) {
            const size_t bytes = request.code_bytes() * kLanes;
            memset(request.q + size_t(block) * bytes, fill, bytes);
            memset(request.s + size_t(block) * kLanes * groups, 0, kLanes * groups);
            return;
        }
        for (int l = 0; l < rows; ++l) {
            memset(row(l), fill, request.code_bytes());
            memset(row(l) + request.code_bytes(), 0, stride - request.code_bytes());
        }
        if (request.layout == Layout::kRow)
            memset(request.s + size_t(block) * kLanes * groups, 0, size_t(rows) * groups);
    }

    void scales(int g, const int* root) const {
        const size_t groups = size_t(padded / request.group);
        for (int l = 0; l < (request.layout == Layout::kTile ? kLanes : rows); ++l) {
            const int8_t s = int8_t(root[l]);
            if (request.layout == Layout::kTile)
                request.s[(size_t(block) * groups + size_t(g)) * kLanes + size_t(l)] = s;
            else if (request.layout == Layout::kRow)
                request.s[(size_t(block) * kLanes + size_t(l)) * groups + size_t(g)] = s;
            else
                row(l)[request.code_bytes() + size_t(g)] = uint8_t(s);
        }
    }

    void codes(int g, int count, const uint8_t (*code)[kLanes]) const {
        const int begin = g * request.group;
        if (request.layout == Layout::kTile) {
            for (int k = 0; k < count; ++k)
                tile(begin + k, code[k]);
            return;
        }
        for (int k = 0; k < count; ++k) {
            const int at = begin + k;
            const bool by_row = request.layout == Layout::kRow;
            if (request.eight()) {
                const size_t byte = by_row ? size_t(at) : size_t(at / 64 * 64 + at % 16 * 4 + at % 64 / 16);
                for (int l = 0; l < rows; ++l)
                    row(l)[byte] = code[k][l];
                continue;
            }
            const int shift = at % 32 / 16 * 4, upper = code_bits(request.encoding) - 4;
            const int width = 4 * upper; // bytes for the upper bits of 32 weights of a row
            const size_t byte = by_row ? size_t(at / 32 * (16 + width) + at % 16)
                                       : size_t(at / 128 * 64 + at % 16 * 4 + at % 128 / 32);
            for (int l = 0; l < rows; ++l)
                row(l)[byte] = uint8_t(row(l)[byte] | (code[k][l] & 15) << shift);
            if (upper == 0)
                continue;
            const int i = at % 128 / 16, v = i / 4 * 2 + i % 2, m = i / 2 % 2; // of a line of kn
            const size_t above =
                by_row
                    ? size_t(at / 32 * (16 + width) + 16 + at % width)
                    : size_t(padded / 2 + at / 128 * 16 * upper + (upper == 2 ? at % 16 * 2 + m : at % 16));
            const int above_shift = by_row ? upper * (at % 32 / width) : upper == 2 ? 2 * v : 4 * m + v;
            for (int l = 0; l < rows; ++l)
                row(l)[above] = uint8_t(row(l)[above] | code[k][l] >> 4 << above_shift);
        }
    }

  private:
    void tile(int k, const uint8_t* code) const {
        uint8_t* base = request.q + size_t(block) * kLanes * request.code_bytes();
        if (request.eight()) {
            uint8_t* target = base + size_t(k / 4) * 64 + size_t(k % 4);
            for (int l = 0; l < kLanes; ++l)
                target[4 * l] = code[l];
            return;
        }
        const int upper = code_bits(request.encoding) - 4;
        const size_t lines = size_t(4 + upper); // of 32 inputs
        uint8_t* group = base + size_t(k / 32) * lines * 64 + size_t(k % 4);
        uint8_t* target = group + size_t(k % 32 / 8) * 64;
        const int shift = k % 8 / 4 * 4;
        for (int l = 0; l < kLanes; ++l)
            target[4 * l] = uint8_t(target[4 * l] | (code[l] & 15) << shift);
        if (upper == 0)
            return;
        const int together = 32 / upper; // inputs whose upper bits fill a line
        uint8_t* above = group + size_t(4 + k % 32 / together) * 64;
        const int above_shift = k % together / 4 * upper;
        for (int l = 0; l < kLanes; ++l)
            above[4 * l] = uint8_t(above[4 * l] | code[l] >> 4 << above_shift);
    }
};

} // namespace
} // namespace rwkv::codec
