// The encoders' arithmetic, written as plain loops over 16 lanes that compilers turn into vectors. Lanes are
// rows, so no sum crosses lanes: sums run over ascending k in float32, without fused multiply-adds, as in
// quant/methods/nearest.py. Everything is in the including file's anonymous namespace (see cpu/level_inl.h
// for why).
#pragma once

#include <math.h>

#include "codec/encode_levels.h"
#include "codec/search_inl.h"
#include "codec/writer_inl.h"

namespace rwkv::codec {
namespace {

constexpr float kTiny = 1e-30f;             // rows whose largest weight is below this are zero
constexpr float kLargest = 3.40282347e+38f; // of all finite floats
constexpr float kTop = 127.0f * 127.0f;
constexpr float kCube = 127.0f * 127.0f * 127.0f;

/// Weights of 16 consecutive rows of a matrix, group by group.
struct Reader {
    const float* w;
    size_t row_step; // from one row to the next
    size_t step;     // from one weight of a row to the next
    int rows;        // real ones, 1..16
    int length;
    int group;
    const float* importance; // of a row's columns; or null

    int groups() const { return (length + group - 1) / group; }

    void load(int g, Group& out) const {
        const int begin = g * group, rest = length - begin;
        out.count = rest < group ? rest : group;
        out.h = importance ? importance + begin : nullptr;
        if (step == 1) { // rows lie one after the other: turn them
            for (int l = 0; l < rows; ++l) {
                const float* from = w + size_t(l) * row_step + begin;
                for (int k = 0; k < out.count; ++k)
                    out.x[k].v[l] = from[k];
            }
        } else {
            for (int k = 0; k < out.count; ++k) {
                const float* from = w + size_t(begin + k) * step;
                for (int l = 0; l < rows; ++l)
                    out.x[k].v[l] = from[l];
            }
        }
        for (int k = 0; k < out.count; ++k)
            for (int l = rows; l < kLanes; ++l)
                out.x[k].v[l] = 0;
    }
};

/// Squared errors of a block of rows: float32 within a group (double where that overflows), then double over
/// groups.
struct Losses {
    double error[kLanes], power[kLanes];
    Lane largest;

    void clear() {
        for (int l = 0; l < kLanes; ++l) {
            error[l] = power[l] = 0;
            largest.v[l] = 0;
        }
    }

    void add(const Group& group, const Lane* decoded) {
        Lane lost_sum, power_sum;
        for (int l = 0; l < kLanes; ++l)
            lost_sum.v[l] = power_sum.v[l] = 0;
        for (int k = 0; k < group.count; ++k)
            for (int l = 0; l < kLanes; ++l) {
                const float x = group.x[k].v[l], lost = x - decoded[k].v[l], size = magnitude(lost);
                lost_sum.v[l] += lost * lost;
                power_sum.v[l] += x * x;
                largest.v[l] = size > largest.v[l] ? size : largest.v[l];
            }
        for (int l = 0; l < kLanes; ++l) {
            const bool fits = lost_sum.v[l] <= kLargest && power_sum.v[l] <= kLargest;
            error[l] += fits ? double(lost_sum.v[l]) : wide_sum(group, decoded, l);
            power[l] += fits ? double(power_sum.v[l]) : wide_sum(group, nullptr, l);
        }
    }

  private:
    /// The same sum in double: of the errors, or without `decoded` of the weights.
    static double wide_sum(const Group& group, const Lane* decoded, int l) {
        double sum = 0;
        for (int k = 0; k < group.count; ++k) {
            const float x = group.x[k].v[l], value = decoded ? x - decoded[k].v[l] : x;
            sum += double(value) * double(value);
        }
        return sum;
    }
};

inline Reader reader_of(const Request& r, int block) {
    const bool kn = r.layout == Layout::kKn;
    const size_t first = size_t(block) * kLanes, k = size_t(r.k);
    return {r.w + (kn ? first : first * k), kn ? 1 : k, kn ? k : 1,
            rows_in_block(r.rows(), block), r.length(), r.group,
            kn ? nullptr : r.importance}; // a row of kn is one input: all of it counts alike
}

inline void store_rows(const Request& r, int block, const Lane& d, const Losses& losses) {
    const size_t first = size_t(block) * kLanes;
    const int rows = rows_in_block(r.rows(), block);
    for (int l = 0; l < (r.layout == Layout::kTile ? kLanes : rows); ++l)
        r.d[first + size_t(l)] = d.v[l];
    for (int l = 0; l < rows; ++l) {
        r.row_error[first + size_t(l)] = losses.error[l];
        r.row_power[first + size_t(l)] = losses.power[l];
        r.row_largest[first + size_t(l)] = losses.largest.v[l];
    }
}

inline void largest_in_rows(const Reader& in, Group& group, Lane& top) {
    for (int l = 0; l < kLanes; ++l)
        top.v[l] = 0;
    for (int g = 0; g < in.groups(); ++g) {
        Lane reach;
        in.load(g, group);
        largest_of(group, reach);
        for (int l = 0; l < kLanes; ++l)
            top.v[l] = reach.v[l] > top.v[l] ? reach.v[l] : top.v[l];
    }
}

inline void encode8(const Request& request, int block) {
    const Reader in = reader_of(request, block);
    const Writer out(request, block);
    Group group;
    Lane top, d, decoded[kMaxGroup];
    Losses losses;
    uint8_t code[kMaxGroup][kLanes];
    losses.clear();
    out.clear();
    largest_in_rows(in, group, top);
    for (int l = 0; l < kLanes; ++l)
        d.v[l] = top.v[l] >= kTiny ? top.v[l] / kCube : 0;
    for (int g = 0; g < in.groups(); ++g) {
        Lane reach, factor;
        int root[kLanes];
        in.load(g, group);
        largest_of(group, reach);
        for (int l = 0; l < kLanes; ++l) {
            const float ratio = reach.v[l] / (d.v[l] > 0 ? 127.0f * d.v[l] : 1.0f), r = sqrtf(ratio);
            int up = int(r);
            up += float(up) < r ? 1 : 0;
            up = up < 127 ? up : 127;
            root[l] = d.v[l] > 0 ? up : 0;
            factor.v[l] = d.v[l] * (float(root[l]) * float(root[l]));
        }
        for (int k = 0; k < group.count; ++k)
            for (int l = 0; l < kLanes; ++l) {
                const float f = factor.v[l], divided = group.x[k].v[l] / (f > 0 ? f : 1.0f);
                int c = int((f > 0 ? divided : 0.0f) + 128.5f);
                c = c < 1 ? 1 : c;
                c = c > 255 ? 255 : c;
                code[k][l] = uint8_t(c);
                decoded[k].v[l] = f * (float(c) - 128.0f);
            }
        losses.add(group, decoded);
        out.scales(g, root);
        out.codes(g, group.count, code);
    }
    store_rows(request, block, d, losses);
}

/// Divides by the largest weight of each row; rows without one become zero.
inline void to_units(Group& group, const Lane& top) {
    Lane safe;
    for (int l = 0; l < kLanes; ++l)
        safe.v[l] = top.v[l] >= kTiny ? top.v[l] : 1.0f;
    for (int k = 0; k < group.count; ++k)
        for (int l = 0; l < kLanes; ++l) {
            const float unit = group.x[k].v[l] / safe.v[l];
            group.x[k].v[l] = top.v[l] >= kTiny ? unit : 0.0f;
        }
}

/// Codes of 4, 5 or 6 bits: searched scales, rounded to the best of their neighbours.
template <class Grid>
inline void encode_searched(const Request& request, const Grid& book, int block, float* wanted) {
    const Reader in = reader_of(request, block);
    const Writer out(request, block);
    Group group, unit;
    Lane top, step, d, scale, decoded[kMaxGroup];
    Losses losses;
    uint8_t code[kMaxGroup][kLanes];
    losses.clear();
    out.clear();
    largest_in_rows(in, group, top);
    for (int l = 0; l < kLanes; ++l)
        step.v[l] = 0;
    for (int g = 0; g < in.groups(); ++g) {
        in.load(g, unit);
        to_units(unit, top);
        search(unit, book, scale);
        for (int l = 0; l < kLanes; ++l) {
            const float size = magnitude(scale.v[l]);
            wanted[g * kLanes + l] = scale.v[l];
            step.v[l] = size > step.v[l] ? size : step.v[l];
        }
    }
    for (int l = 0; l < kLanes; ++l) {
        step.v[l] = step.v[l] / kTop;
        d.v[l] = top.v[l] >= kTiny ? step.v[l] * top.v[l] : 0.0f;
    }
    for (int g = 0; g < in.groups(); ++g) {
        int root[kLanes];
        in.load(g, group);
        unit = group;
        to_units(unit, top);
        round_scales(unit, book, wanted + g * kLanes, step, root, code);
        Lane factor;
        for (int l = 0; l < kLanes; ++l)
            factor.v[l] = d.v[l] * float(root[l] * (root[l] < 0 ? -root[l] : root[l]));
        for (int k = 0; k < group.count; ++k)
            for (int l = 0; l < kLanes; ++l)
                decoded[k].v[l] = factor.v[l] * entry_of(book, code[k][l]);
        losses.add(group, decoded);
        out.scales(g, root);
        out.codes(g, group.count, code);
    }
    store_rows(request, block, d, losses);
}

void encode_block(const Request& request, const Codebook& book, int block, float* scratch) {
    if (request.encoding == Encoding::kQ4)
        encode_searched(request, book, block, scratch);
    else if (request.encoding == Encoding::kQ5)
        encode_searched(request, MirroredGrid{book}, block, scratch);
    else if (request.encoding == Encoding::kQ6)
        encode_searched(request, EvenGrid{}, block, scratch);
    else
        encode8(request, block);
}

template <class Grid>
inline void assign(const float* sample, int rows, int length, int group_size, const float* importance,
                   const Grid& book, int block, uint8_t* index, float* scale) {
    const size_t first = size_t(block) * kLanes;
    const Reader in{sample + first * size_t(length),
                    size_t(length),
                    1,
                    rows_in_block(rows, block),
                    length,
                    group_size,
                    importance};
    Group group;
    Lane fitted, inverse;
    for (int g = 0; g < in.groups(); ++g) {
        in.load(g, group);
        search(group, book, fitted);
        for (int l = 0; l < in.rows; ++l)
            scale[(first + size_t(l)) * size_t(in.groups()) + size_t(g)] = fitted.v[l];
        for (int l = 0; l < kLanes; ++l)
            inverse.v[l] = 1.0f / (fitted.v[l] != 0 ? fitted.v[l] : 1.0f);
        for (int k = 0; k < group.count; ++k) {
            uint8_t found[kLanes];
            for (int l = 0; l < kLanes; ++l)
                found[l] = uint8_t(nearest_index(book, group.x[k].v[l] * inverse.v[l]));
            for (int l = 0; l < in.rows; ++l)
                index[(first + size_t(l)) * size_t(length) + size_t(g * group_size + k)] = found[l];
        }
    }
}

void assign_block(const float* sample, int rows, int length, int group, const float* importance,
                  const Codebook& book, int block, uint8_t* index, float* scale) {
    if (book.mirrored)
        assign(sample, rows, length, group, importance, MirroredGrid{book}, block, index, scale);
    else
        assign(sample, rows, length, group, importance, book, block, index, scale);
}

constexpr EncodeTable make_table(const char* name) { return {name, encode_block, assign_block}; }

} // namespace
} // namespace rwkv::codec
