// Which scale and codes suit a group of weights best, for 16 rows side by side (encode_inl.h).
#pragma once

#include <math.h>

#include "codec/encode_levels.h"

namespace rwkv::codec {
namespace {

constexpr int kMaxGroup = 32;
constexpr float kSmall = 1e-6f; // groups below this share of the row's largest weight are zero

/// Which scales a search tries, as shares of what has the largest weight at the end of the grid, with both
/// signs; and how far from the wanted root it tries others.
constexpr int kSteps = 8;
struct Tries {
    double step[kSteps];
    int end;
    int first_root, last_root;
};
constexpr Tries kTableTries = {{0.80, 0.87, 0.93, 1.0, 1.06, 1.12, 1.19, 1.25}, 63, 0, 1};
constexpr Tries kMirroredTries = {{0.97, 0.99, 1.01, 1.04, 1.12, 1.15, 1.19, 1.29}, 56, 0, 1};
constexpr Tries kEvenTries = {{0.955, 0.985, 1.0, 1.016, 1.032, 1.067, 1.123, 1.185}, 32, -4, 5};

/// The grid of six-bit codes: all whole numbers in -32..31.
struct EvenGrid {};
constexpr Tries tries_of(const EvenGrid&) { return kEvenTries; }
constexpr Tries tries_of(const Codebook&) { return kTableTries; }

/// The grid of five-bit codes: the levels of a mirrored codebook, the mirrored ones from code 16 on.
struct MirroredGrid {
    Codebook half;
};
constexpr Tries tries_of(const MirroredGrid&) { return kMirroredTries; }

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

/// The same of a mirrored codebook: the nearer to -1/2 on a tie, and of the two around it code 0.
inline float nearest(const MirroredGrid& grid, float value) {
    const float centred = value + 0.5f, entry = nearest(grid.half, magnitude(centred));
    return centred < 0 ? -1.0f - entry : entry;
}
inline int nearest_index(const MirroredGrid& grid, float value) {
    const float centred = value + 0.5f;
    return nearest_index(grid.half, magnitude(centred)) + (centred < 0 ? 16 : 0);
}
inline float entry_of(const MirroredGrid& grid, int index) {
    const float entry = grid.half.entry[index % 16];
    return index < 16 ? entry : -1.0f - entry;
}

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

} // namespace
} // namespace rwkv::codec
