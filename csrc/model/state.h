// The recurrent state of one sequence: constant in size, whatever the number of tokens seen.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "model/config.h"

namespace rwkv {

/// One array of the canonical form, which files and devices have in common: "blocks.N.att.x_prev" [C],
/// ".att.state" [H, value, key] (v4: ".att.aa", ".bb", ".pp" [C]), ".ffn.x_prev" [C].
struct StateEntry {
    std::string name;
    std::vector<size_t> shape;
    size_t floats() const;
};
/// Of the blocks from `first` on.
std::vector<StateEntry> state_entries(const Config& config, int first = 0);

/// Values and how many there are, by name.
using StateArrays = std::map<std::string, std::pair<const float*, size_t>>;
/// Throws Error(kArgument) unless `arrays` are the entries of such a model's states.
void check_state_arrays(const std::vector<StateEntry>& entries, const StateArrays& arrays);

class State {
  public:
    explicit State(const Config& config); ///< the state before the first token
    State(const State& other);            ///< a copy: this is what branching a conversation costs
    State(State&&) = default;
    State& operator=(const State&) = delete;

    const Config& config() const { return config_; }
    size_t bytes() const { return data_.size() * sizeof(float); }
    void assign(const State& other); ///< takes over the values of a state of the same model

    /// Last layer-normed inputs of the block's time mix and channel mix: [C].
    float* att_x_prev(int layer) { return at(layer); }
    float* ffn_x_prev(int layer) { return at(layer) + c_; }
    /// v4: numerator, denominator (both scaled by e^-pp) and exponent: [C] each.
    float* aa(int layer) { return at(layer) + 2 * c_; }
    float* bb(int layer) { return at(layer) + 3 * c_; }
    float* pp(int layer) { return at(layer) + 4 * c_; }
    /// v5 to v7: one head's matrix [N key, state_stride value].
    float* head(int layer, int head) { return at(layer) + 2 * c_ + size_t(head) * head_floats_; }

    /// The arrays of state_entries(), with values.
    struct Entry {
        std::string name;
        std::vector<size_t> shape;
        std::vector<float> values;
    };
    std::vector<Entry> export_entries() const;
    /// Takes every entry over, or throws Error(kArgument) and changes nothing.
    void import_entries(const StateArrays& arrays);

  private:
    float* at(int layer) { return data_.data() + size_t(layer) * layer_floats_; }

    Config config_;
    size_t c_ = 0; ///< n_embd rounded up to 16, so that every array is 64-byte aligned
    size_t head_floats_ = 0;
    size_t layer_floats_ = 0;
    AlignedBuffer<float> data_;
};

} // namespace rwkv
