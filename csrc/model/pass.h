// One thread's view of a pass: the shared buffers, its share of rows, units and heads, and the meeting
// points. A block reads as a sequence of phases with a barrier after each.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/kernels.h"
#include "model/input_statistics.h"
#include "model/lookahead.h"
#include "model/scratch.h"
#include "model/state.h"
#include "model/weights.h"

namespace rwkv {

/// Rows [begin, begin + count) of a pass are consecutive tokens of one sequence.
struct Segment {
    State* state;
    int begin;
    int count;
};

struct Pass {
    const Config& config;
    const cpu::KernelTable& op;
    Scratch& s;
    ThreadPool& pool;
    const std::vector<Segment>& segments;
    int rows;
    int thread;
    uint64_t* active_channels =
        nullptr; ///< [n_layer], where thread 0 counts what a kn ffn.value reads; or null
    InputStatistics* inputs = nullptr; ///< where the inputs of all products are added up; or null
    Lookahead* ahead = nullptr;        ///< what to keep of the one sequence, whose state stays; or null

    void barrier() { pool.barrier(); }

    /// This thread's part of `count` equal pieces of work.
    int share(int count, int who) const { return int(int64_t(count) * who / pool.size()); }
    template <class F>
    void each_of(int count, F f) {
        for (int i = share(count, thread), end = share(count, thread + 1); i < end; ++i)
            f(i);
    }

    /// Runs products side by side, split over threads by the bytes of weights they read.
    void products(std::initializer_list<cpu::Product> all) {
        size_t total = 0;
        for (const cpu::Product& p : all)
            total += cost(p);
        const size_t begin = total * size_t(thread) / size_t(pool.size());
        const size_t end = total * size_t(thread + 1) / size_t(pool.size());
        size_t base = 0;
        for (const cpu::Product& p : all) {
            const int units = p.w->units();
            const size_t each = cost(p) / size_t(units);
            const auto unit_at = [&](size_t position) {
                return position <= base ? 0
                                        : int(std::min(size_t(units), (position - base + each - 1) / each));
            };
            op.product(p, unit_at(begin), unit_at(end), rows, s.thread_bytes(thread));
            base += cost(p);
            if (inputs)
                inputs->add(p, rows, share(p.w->k, thread), share(p.w->k, thread + 1));
        }
    }

    /// Layer-norms each row and hands it on together with the previous token's normed row, a few rows at a
    /// time: f(first row, Shifted [count] of C channels, count). `x_prev` is the State member that holds the
    /// token before the pass.
    template <class F>
    void shifted_rows(const Norm& norm, int layer, float* (State::*x_prev)(int), F f) {
        const int begin = share(rows, thread), end = share(rows, thread + 1), c = config.n_embd;
        size_t segment = 0;
        cpu::Shifted block[cpu::kWidestBlock];
        int held = 0;
        for (int t = begin; t < end; ++t) {
            while (t >= segments[segment].begin + segments[segment].count)
                ++segment;
            float* now = s.normed.row(t);
            op.layer_norm(s.x.row(t), norm.weight, norm.bias, kLayerNormEps, c, now);
            const float* previous;
            if (t == segments[segment].begin) {
                previous = (segments[segment].state->*x_prev)(layer);
            } else if (t ==
                       begin) { // the row before belongs to another thread, which may not have come to it
                float* own = s.thread_row(thread, 0);
                op.layer_norm(s.x.row(t - 1), norm.weight, norm.bias, kLayerNormEps, c, own);
                previous = own;
            } else {
                previous = s.normed.row(t - 1);
            }
            block[held++] = {now, previous};
            if ((t + 1) % cpu::kWidestBlock == 0 || t + 1 == end) {
                f(t + 1 - held, block, held);
                held = 0;
            }
        }
    }

    /// After the barrier that follows shifted_rows: the last normed row of each sequence becomes its shift
    /// state.
    void save_shift(int layer, float* (State::*x_prev)(int)) {
        if (thread != 0)
            return;
        if (ahead) {
            const bool att = x_prev == &State::att_x_prev;
            return keep(layer, att ? Lookahead::kAttShift : Lookahead::kFfnShift, s.normed, 0, config.n_embd);
        }
        for (const Segment& segment : segments)
            std::copy_n(s.normed.row(segment.begin + segment.count - 1), config.n_embd,
                        (segment.state->*x_prev)(layer));
    }

    /// Keeps channels [begin, end) of all rows, if the pass looks ahead.
    void keep(int layer, Lookahead::Row which, const Rows& from, int begin, int end) {
        for (int t = 0; ahead && t < rows; ++t)
            std::copy(from.row(t) + begin, from.row(t) + end, ahead->row(layer, which, t) + begin);
    }

    /// What a head's recurrence works on: the state, or a copy of it if the pass looks ahead.
    float* head(const Segment& segment, int layer, int number) {
        float* own = segment.state->head(layer, number);
        const int n = config.head_size;
        return ahead ? ahead->copy_of(own, size_t(n) * size_t(cpu::state_stride(n)), thread) : own;
    }

    void shift_into(cpu::Acts& acts, int t, const cpu::Shifted* block, int count, const float* mix) {
        op.shift_acts(block, count, mix, config.n_embd, t, acts);
    }

    /// f(segment, channel begin, channel end) over pieces of whole heads and whole activation groups.
    template <class F>
    void each_head_group(F f) {
        int channels = kActGroup;
        if (config.head_size > 0) {
            channels = config.head_size;
            while (channels % kActGroup != 0)
                channels += config.head_size;
        }
        const int c = config.n_embd, pieces = (c + channels - 1) / channels;
        each_of(pieces * int(segments.size()), [&](int i) {
            const int begin = i % pieces * channels;
            f(segments[size_t(i / pieces)], begin, std::min(c, begin + channels));
        });
    }

    static cpu::Product product(const Matrix& w, const cpu::Acts& x, cpu::Epilogue epilogue,
                                const Rows& out) {
        return {&w, &x, epilogue, out.data, out.stride, nullptr, 0, nullptr};
    }
    static cpu::Product product_into(const Matrix& w, const cpu::Acts& x, cpu::Epilogue epilogue,
                                     cpu::Acts& out) {
        return {&w, &x, epilogue, nullptr, 0, nullptr, 0, &out};
    }

  private:
    static size_t cost(const cpu::Product& p) {
        return std::max<size_t>(1, p.w->bytes() / size_t(p.w->units())) * size_t(p.w->units());
    }
};

/// x += TimeMix(LN1(x)) and x += ChannelMix(LN2(x)) for one block.
void time_mix_v4(Pass& p, const Block& block, int layer);
void time_mix_v5(Pass& p, const Block& block, int layer);
void time_mix_v6(Pass& p, const Block& block, int layer);
void time_mix_v7(Pass& p, const Block& block, int layer);
void channel_mix(Pass& p, const Block& block, int layer);

} // namespace rwkv
