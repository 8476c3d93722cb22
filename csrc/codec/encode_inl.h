// The encoders' arithmetic, written as plain loops over 16 lanes that compilers turn into vectors. Lanes are
// rows, so no sum crosses lanes: sums run over ascending k in float32, without fused multiply-adds, as in
// quant/methods/nearest.py. Everything is in the including file's anonymous namespace (see cpu/level_inl.h
// for why).
#pragma once

#include <math.h>
#include <string.h>

#include "codec/encode_levels.h"

namespace rwkv::codec {
namespace {

constexpr int kMaxGroup = 32;
constexpr float kTiny = 1e-30f;             // rows whose largest weight is below this are zero
constexpr float kSmall = 1e-6f;             // groups below this share of the row's largest weight are zero
constexpr float kLargest = 3.40282347e+38f; // of all finite floats
constexpr float kTop = 127.0f * 127.0f;
constexpr float kCube = 127.0f * 127.0f * 127.0f;

/// Which scales a search tries, as shares of what has the largest weight at the end of the grid, with both
/// signs; and how far from the wanted root it tries others.
constexpr int kSteps = 8;
struct Tries {
    double step[kSteps];
    int end;
    int first_root, last_root;
};
constexpr Tries kTableTries = {{0.80, 0.87, 0.93, 1.0, 1.06, 1.12, 1.19, 1.25}, 63, 0, 1};
constexpr Tries kEvenTries = {{0.955, 0.985, 1.0, 1.016, 1.032, 1.067, 1.123, 1.185}, 32, -4, 5};

/// The grid of six-bit codes: all whole numbers in -32..31.
struct EvenGrid {};
constexpr Tries tries_of(const EvenGrid&) { return kEvenTries; }
constexpr Tries tries_of(const Codebook&) { return kTableTries; }

/// One value per lane.
struct alignas(64) Lane {
    float v[kLanes];
};

/// One group of 16 rows: x[k] holds weight k of each, whose error counts h[k] times (null: once); `count` of
/// them are real.
struct Group {
    Lane x[kMaxGroup];
    const float* h;
    int count;
};

template <int J>
inline float nearest_from(const Codebook& book, float value, float found) {
    if constexpr (J == 15)
        return found;
    else
        return nearest_from<J + 1>(book, value, value > book.middle[J] ? book.entry[J + 1] : found);
}

inline int nearest_index(const EvenGrid&, float value) {
    value = value > -32.0f ? value : -32.0f; // what is no number too
    value = value < 31.0f ? value : 31.0f;
    return int(value + 32.5f);
}
inline float nearest(const EvenGrid& grid, float value) { return float(nearest_index(grid, value)) - 32.0f; }
inline float entry_of(const EvenGrid&, int index) { return float(index) - 32.0f; }
inline float entry_of(const Codebook& book, int index) { return book.entry[index]; }

/// The entry nearest to `value`; the lower one on a tie.
inline float nearest(const Codebook& book, float value) {
    return nearest_from<0>(book, value, book.entry[0]);
}

template <int J>
inline int count_from(const Codebook& book, float value, int found) {
    if constexpr (J == 15)
        return found;
    else
        return count_from<J + 1>(book, value, found + (value > book.middle[J] ? 1 : 0));
}

/// Which entry that is.
inline int nearest_index(const Codebook& book, float value) { return count_from<0>(book, value, 0); }

inline float magnitude(float value) { return value < 0 ? -value : value; }

/// cross = sum of h times x times its entry, square = sum of h times squared entries, for weights divided by
/// `scale`.
template <class Grid>
inline void correlate(const Group& group, const Grid& book, const Lane& scale, Lane& cross, Lane& square) {
    const Grid local = book; // so that no store can be thought to change it
    Lane inverse, a, b;
    for (int l = 0; l < kLanes; ++l) {
        inverse.v[l] = 1.0f / scale.v[l];
        a.v[l] = b.v[l] = 0;
    }
    if (!group.h) {
        for (int k = 0; k < group.count; ++k) {
            const Lane& x = group.x[k];
            for (int l = 0; l < kLanes; ++l) {
                const float entry = nearest(local, x.v[l] * inverse.v[l]);
                a.v[l] += x.v[l] * entry;
                b.v[l] += entry * entry;
            }
        }
    } else {
        for (int k = 0; k < group.count; ++k) {
            const Lane& x = group.x[k];
            const float h = group.h[k];
            for (int l = 0; l < kLanes; ++l) {
                const float entry = nearest(local, x.v[l] * inverse.v[l]);
                a.v[l] += x.v[l] * h * entry;
                b.v[l] += entry * h * entry;
            }
        }
    }
    cross = a;
    square = b;
}

/// Codes for the scale `candidate`, then the scale that suits them best; kept where it explains more than
/// `best`.
template <class Grid>
inline void attempt(const Group& group, const Grid& book, const Lane& candidate, Lane& best, Lane& scale) {
    Lane cross, square;
    correlate(group, book, candidate, cross, square);
    for (int l = 0; l < kLanes; ++l) {
        const float fitted = cross.v[l] / (square.v[l] > 0 ? square.v[l] : 1.0f);
        const float gain = cross.v[l] * fitted;
        const bool better = gain > best.v[l];
        best.v[l] = better ? gain : best.v[l];
        scale.v[l] = better ? fitted : scale.v[l];
    }
}

inline void largest_of(const Group& group, Lane& reach) {
    for (int l = 0; l < kLanes; ++l)
        reach.v[l] = 0;
    for (int k = 0; k < group.count; ++k)
        for (int l = 0; l < kLanes; ++l) {
            const float size = magnitude(group.x[k].v[l]);
            reach.v[l] = size > reach.v[l] ? size : reach.v[l];
        }
}

/// The scale, with sign, that suits each row's group best; 0 for zeros. Weights within -1..1.
template <class Grid>
inline void search(const Group& group, const Grid& book, Lane& scale) {
    constexpr Tries tries = tries_of(Grid{});
    Lane reach, base, best, candidate;
    largest_of(group, reach);
    for (int l = 0; l < kLanes; ++l) {
        base.v[l] = reach.v[l] >= kSmall ? reach.v[l] : 1.0f;
        best.v[l] = -1.0f;
        scale.v[l] = 0;
    }
    for (int i = 0; i < 2 * kSteps; ++i) {
        const float factor = float((i % 2 ? -tries.step[i / 2] : tries.step[i / 2]) / tries.end);
        for (int l = 0; l < kLanes; ++l)
            candidate.v[l] = base.v[l] * factor;
        attempt(group, book, candidate, best, scale);
    }
    for (int l = 0; l < kLanes; ++l)
        candidate.v[l] = scale.v[l] != 0 ? scale.v[l] : 1.0f;
    attempt(group, book, candidate, best, scale);
    for (int l = 0; l < kLanes; ++l)
        scale.v[l] = reach.v[l] >= kSmall ? scale.v[l] : 0;
}

/// How much root^2 units of `step` lessen the squared error.
template <class Grid>
inline void gain_of(const Group& group, const Grid& book, const Lane& factor, Lane& gain) {
    Lane safe, cross, square;
    for (int l = 0; l < kLanes; ++l)
        safe.v[l] = factor.v[l] != 0 ? factor.v[l] : 1.0f;
    correlate(group, book, safe, cross, square);
    for (int l = 0; l < kLanes; ++l) {
        const float f = factor.v[l];
        gain.v[l] = (f + f) * cross.v[l] - (f * f) * square.v[l];
    }
}

/// Signed roots for the wanted scales in units of `step`, the best of the neighbours, and indices [k][lane].
template <class Grid>
inline void round_scales(const Group& group, const Grid& book, const float* wanted, const Lane& step,
                         int* root, uint8_t (*index)[kLanes]) {
    constexpr Tries tries = tries_of(Grid{});
    Lane sign, low, size, factor, gain, best, best_size, best_factor, inverse;
    for (int l = 0; l < kLanes; ++l) {
        const float ratio = magnitude(wanted[l]) / (step.v[l] > 0 ? step.v[l] : 1.0f);
        const float whole = float(int(sqrtf(ratio)));
        low.v[l] = whole < 127.0f ? whole : 127.0f;
        sign.v[l] = wanted[l] < 0 ? -1.0f : 1.0f;
    }
    for (int away = tries.first_root; away <= tries.last_root; ++away) {
        for (int l = 0; l < kLanes; ++l) {
            const float near = low.v[l] + float(away), positive = near > 0 ? near : 0.0f;
            size.v[l] = positive < 127.0f ? positive : 127.0f;
            factor.v[l] = step.v[l] * (size.v[l] * size.v[l]) * sign.v[l];
        }
        gain_of(group, book, factor, gain);
        for (int l = 0; l < kLanes; ++l) {
            const bool better = away == tries.first_root || gain.v[l] > best.v[l];
            best.v[l] = better ? gain.v[l] : best.v[l];
            best_size.v[l] = better ? size.v[l] : best_size.v[l];
            best_factor.v[l] = better ? factor.v[l] : best_factor.v[l];
        }
    }
    int keep[kLanes];
    for (int l = 0; l < kLanes; ++l) {
        const bool dead = !(best.v[l] > 0) || wanted[l] == 0 || best_size.v[l] == 0;
        root[l] = dead ? 0 : int(best_size.v[l] * sign.v[l]);
        keep[l] = dead ? 0 : 255;
        inverse.v[l] = 1.0f / (best_factor.v[l] != 0 ? best_factor.v[l] : 1.0f);
    }
    const Grid local = book;
    for (int k = 0; k < group.count; ++k)
        for (int l = 0; l < kLanes; ++l)
            index[k][l] = uint8_t(nearest_index(local, group.x[k].v[l] * inverse.v[l]) & keep[l]);
}

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

inline int rows_in_block(int rows, int block) {
    const int rest = rows - block * kLanes;
    return rest < kLanes ? rest : kLanes;
}

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
            const bool six = !request.four();
            const int shift = at % 32 / 16 * 4;
            const size_t byte = by_row ? size_t(at / 32 * (six ? 24 : 16) + at % 16)
                                       : size_t(at / 128 * 64 + at % 16 * 4 + at % 128 / 32);
            for (int l = 0; l < rows; ++l)
                row(l)[byte] = uint8_t(row(l)[byte] | (code[k][l] & 15) << shift);
            if (!six)
                continue;
            const int i = at % 128 / 16; // of a line of kn
            const size_t above = by_row ? size_t(at / 32 * 24 + 16 + at % 8)
                                        : size_t(padded / 2 + at / 128 * 32 + at % 16 * 2 + i / 2 % 2);
            const int above_shift = 2 * (by_row ? at % 32 / 8 : i / 4 * 2 + i % 2);
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
        const size_t lines = request.four() ? 4 : 6; // of 32 inputs
        uint8_t* group = base + size_t(k / 32) * lines * 64 + size_t(k % 4);
        uint8_t* target = group + size_t(k % 32 / 8) * 64;
        const int shift = k % 8 / 4 * 4;
        for (int l = 0; l < kLanes; ++l)
            target[4 * l] = uint8_t(target[4 * l] | (code[l] & 15) << shift);
        if (request.four())
            return;
        uint8_t* above = group + size_t(4 + k % 32 / 16) * 64;
        const int above_shift = k % 16 / 4 * 2;
        for (int l = 0; l < kLanes; ++l)
            above[4 * l] = uint8_t(above[4 * l] | code[l] >> 4 << above_shift);
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

/// Codes of 4 or 6 bits: searched scales, rounded to the best of their neighbours.
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
    if (request.four())
        encode_searched(request, book, block, scratch);
    else if (request.encoding == Encoding::kQ6)
        encode_searched(request, EvenGrid{}, block, scratch);
    else
        encode8(request, block);
}

void assign_block(const float* sample, int rows, int length, int group_size, const float* importance,
                  const Codebook& book, int block, uint8_t* index, float* scale) {
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

constexpr EncodeTable make_table(const char* name) { return {name, encode_block, assign_block}; }

} // namespace
} // namespace rwkv::codec
