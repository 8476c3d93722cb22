// Where things lie in a state on the device.
#pragma once

#include <cstddef>

#include "model/config.h"

namespace rwkv::cuda {

/// A state on the device: of every block att.x_prev [C], then v4 aa, bb, pp [C], others the heads' matrices
/// [H, key, value], then ffn.x_prev [C].
struct StateLayout {
    size_t c = 0, recurrence = 0;

    StateLayout() = default;
    explicit StateLayout(const Config& config)
        : c(size_t(config.n_embd)),
          recurrence(config.version == Version::k4 ? 3 * c : c * size_t(config.head_size)) {}
    size_t layer() const { return 2 * c + recurrence; }
    size_t att_x_prev(int i) const { return size_t(i) * layer(); }
    size_t heads(int i) const { return size_t(i) * layer() + c; }
    size_t ffn_x_prev(int i) const { return size_t(i) * layer() + c + recurrence; }
};

} // namespace rwkv::cuda
