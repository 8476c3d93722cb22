#include "model/scratch.h"

#include <algorithm>

namespace rwkv {
namespace {

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

bool is_q8_tile(const Matrix& m) { return m.layout == Layout::kTile && m.encoding == Encoding::kQ8; }

/// Whether `m`, the head or a matrix of the last block, or what other blocks have in its place, is in tiles
/// of q8.
bool is_q8_anywhere(const Weights& weights, const Matrix* m) {
    const auto last = Weights::matrices(weights.blocks.back());
    const size_t at = size_t(std::find(last.begin(), last.end(), m) - last.begin());
    if (at == last.size())
        return is_q8_tile(*m);
    const auto there = [at](const Block& block) { return is_q8_tile(*Weights::matrices(block)[at]); };
    return std::any_of(weights.blocks.begin(), weights.blocks.end(), there);
}

/// Cuts pieces from one allocation; with no memory it only counts.
class Cutter {
  public:
    /// `splits`: whether tiles of q8 read Acts::split.
    Cutter(uint8_t* memory, const Weights& weights, int rows, bool splits)
        : memory_(memory), weights_(weights), splits_(splits),
          rows_(rows == 1 ? 1 : round_up(size_t(rows), cpu::kWidestBlock)) {}

    template <class T>
    T* cut(size_t per_row) {
        const size_t offset = used_;
        used_ += round_up(rows_ * per_row * sizeof(T), 64);
        return memory_ ? reinterpret_cast<T*>(memory_ + offset) : nullptr;
    }
    void rows(Rows& to, int width) {
        // An odd number of cache lines: at a power of two apart, one output's rows would share a few sets of
        // the cache.
        to.stride = round_up(size_t(width), 32) + (rows_ > 1 ? 16 : 0);
        to.data = cut<float>(to.stride);
    }
    /// Activations of width k for the given consumers: only the forms they read.
    void acts(cpu::Acts& to, int k, std::initializer_list<const Matrix*> consumers) {
        to = {};
        to.k = k;
        to.k_pad = int(round_up(size_t(k), kActGroup));
        bool floats = false, codes = false, split = false;
        for (const Matrix* m : consumers) {
            if (m->empty())
                continue;
            (m->wants_quantized() ? codes : floats) = true;
            split |= splits_ && rows_ > 1 && is_q8_anywhere(weights_, m);
        }
        const size_t groups = size_t(to.k_pad) / kActGroup;
        if (floats)
            to.f = cut<float>(size_t(to.k_pad));
        if (codes) {
            to.q = cut<int8_t>(size_t(to.k_pad));
            to.scale = cut<float>(groups);
            if (split)
                to.split = cut<int8_t>(2 * size_t(to.k_pad));
            to.bias_q8 = cut<int32_t>(groups);
            to.bias_q4 = cut<int32_t>(2 * groups);
        }
    }
    size_t used() const { return used_; }

  private:
    uint8_t* memory_;
    const Weights& weights_;
    bool splits_;
    size_t rows_;
    size_t used_ = 0;
};

} // namespace

void Scratch::set_width(int width) {
    const auto set = [&](cpu::Acts& acts) { acts.width = width; };
    for (cpu::Acts& acts : mix)
        set(acts);
    for (cpu::Acts& acts : hidden)
        set(acts);
    for (cpu::Acts* acts : {&mix_x, &decay_hidden, &att_out, &ffn_k, &ffn_r, &ffn_hidden})
        set(*acts);
}

void Scratch::build(const Config& config, const Weights& weights, const cpu::KernelTable& op, int rows,
                    int threads, bool measure) {
    const int c = config.n_embd;
    // The last block stands for all: Model has checked that the others take the same forms (block 0 of v7
    // lacks v1, v2).
    const Block& b = weights.blocks.back();
    const auto cut_all = [&](Cutter& cutter) {
        for (Rows* each : {&x, &normed, &r, &k, &v, &y})
            cutter.rows(*each, c);
        if (!b.gate.empty() || config.version == Version::k7)
            cutter.rows(g, c);
        if (config.version == Version::k6 || config.version == Version::k7)
            cutter.rows(w, c);
        if (config.version == Version::k7)
            for (Rows* each : {&a, &this->b, &v_gate, &v_first})
                cutter.rows(*each, c);
        if (config.version != Version::k7)
            cutter.rows(ffn_gate, c);
        cutter.acts(mix[0], c, {&b.receptance});
        cutter.acts(mix[1], c, {&b.w1, &b.decay_w1});
        cutter.acts(mix[2], c, {&b.key});
        cutter.acts(mix[3], c, {&b.value, &b.v1});
        cutter.acts(mix[4], c, {&b.a1});
        cutter.acts(mix[5], c, {&b.gate, &b.g1});
        if (config.version == Version::k6) {
            cutter.acts(mix_x, c, {&b.maa_w1});
            cutter.rows(maa_hidden, b.maa_w1.n);
            for (int i = 0; i < 5; ++i) {
                cutter.rows(delta[i], c);
                cutter.acts(hidden[i], b.maa_w2[i].k, {&b.maa_w2[i]});
            }
            cutter.acts(decay_hidden, b.decay_w2.k, {&b.decay_w2});
        }
        if (config.version == Version::k7) {
            const Matrix* second[4] = {&b.w2, &b.a2, &b.v2, &b.g2};
            for (int i = 0; i < 4; ++i)
                if (!second[i]->empty())
                    cutter.acts(hidden[i], second[i]->k, {second[i]});
        }
        cutter.acts(att_out, c, {&b.output});
        cutter.acts(ffn_k, c, {&b.ffn_key});
        if (!b.ffn_receptance.empty())
            cutter.acts(ffn_r, c, {&b.ffn_receptance});
        cutter.acts(ffn_hidden, config.n_ffn, {&b.ffn_value});
        cutter.acts(head, c, {&weights.head});
    };
    Cutter count(nullptr, weights, rows, op.splits_q8);
    cut_all(count);
    measured_ = count.used();
    if (measure)
        return;

    pool_ = AlignedBuffer<uint8_t>(measured_);
    // a product writes 32 outputs of each row, and the next row's lie pages away
    os::prefer_large_pages(pool_.data(), measured_);
    Cutter cutter(pool_.data(), weights, rows, op.splits_q8);
    cut_all(cutter);
    capacity = rows;

    size_t bytes = cpu::product_scratch_bytes(weights.head, rows);
    for (const Block& block : weights.blocks)
        Weights::each_matrix(
            block, [&](const Matrix& m) { bytes = std::max(bytes, cpu::product_scratch_bytes(m, rows)); });
    thread_stride_ = round_up(bytes, 64) + 64;
    thread_ = AlignedBuffer<uint8_t>(thread_stride_ * size_t(threads));
    row_stride_ = round_up(size_t(std::max(c, b.maa_w1.n)), 32) + 32;
    thread_rows_ = AlignedBuffer<float>(row_stride_ * 2 * size_t(threads));
}

Scratch::Scratch(const Config& config, const Weights& weights, const cpu::KernelTable& op, int rows,
                 int threads) {
    build(config, weights, op, rows, threads, false);
}

size_t Scratch::bytes_per_row(const Config& config, const Weights& weights, const cpu::KernelTable& op) {
    Scratch scratch;
    scratch.build(config, weights, op, 64, 1, true);
    return scratch.measured_ / 64;
}

} // namespace rwkv
