// What goes into each matrix while a text is read: the data that quantizers weigh errors with.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace rwkv {

/// Sums over all tokens since the collecting began, of every matrix that a product was made with. Only inputs
/// in float32 are seen: those of unquantized matrices and of kn ones.
class InputStatistics {
  public:
    struct Sums {
        std::vector<double> squares;   ///< [k] of each input's square
        std::vector<uint64_t> nonzero; ///< [k] how often it was not 0
    };

    /// Makes room for the inputs of `w`. Call it before any thread adds.
    void prepare(const Matrix& w) {
        Sums& sums = by_name_[w.name];
        sums.squares.assign(size_t(w.k), 0.0);
        sums.nonzero.assign(size_t(w.k), 0);
    }

    /// Channels [begin, end) of `rows` rows. Tokens are added in ascending order, each channel by one thread,
    /// so the sums depend neither on the number of threads nor on how a text is cut.
    void add(const cpu::Product& p, int rows, int begin, int end) {
        if (!p.x->f)
            return;
        Sums& sums = by_name_.find(p.w->name)->second;
        for (int t = 0; t < rows; ++t) {
            const float* x = p.x->f + size_t(t) * size_t(p.x->k_pad);
            for (int c = begin; c < end; ++c) {
                sums.squares[size_t(c)] += double(x[c]) * double(x[c]);
                sums.nonzero[size_t(c)] += x[c] != 0.0f;
            }
        }
    }

    const std::map<std::string, Sums>& all() const { return by_name_; }

  private:
    std::map<std::string, Sums> by_name_;
};

} // namespace rwkv
