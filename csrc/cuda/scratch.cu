#include "cuda/scratch.h"

namespace rwkv::cuda {

Scratch::Scratch(const Config& config, const DeviceWeights& weights, int row_count)
    : rows(row_count), config_(config), weights_(weights) {
    cut(nullptr);
}

void Scratch::allocate(cudaStream_t stream) {
    arena_.allocate();
    allocated_ = true;
    cut(stream);
    check(cudaStreamSynchronize(stream), "clearing memory on the device");
}

void Scratch::cut(cudaStream_t stream) {
    const int c = config_.n_embd;
    const Version version = config_.version;
    const std::vector<DeviceBlock>& blocks = weights_.blocks;
    const DeviceBlock& last = blocks.back(); // block 0 of v7 lacks v1, v2
    const auto row_buffer = [&](Rows& to, int width, int count) {
        to.stride = width;
        to.data = arena_.cut<float>(size_t(count) * size_t(width));
    };
    const auto zeroed = [&]<class T>(size_t count) {
        T* p = arena_.cut<T>(count);
        if (p)
            check(cudaMemsetAsync(p, 0, count * sizeof(T), stream), "clearing memory on the device");
        return p;
    };
    // In the forms that any block's consumers read; `floats` asks for that form in any case.
    const auto acts = [&](Acts& to, int k, int count,
                          std::initializer_list<DeviceMatrix DeviceBlock::*> consumers, bool floats,
                          bool codes) {
        for (const DeviceBlock& block : blocks)
            for (const auto member : consumers)
                if (const DeviceMatrix& m = block.*member; !m.empty())
                    (m.wants_quantized() ? codes : floats) = true;
        to.k = k;
        to.k_pad = (k + kActGroup - 1) / kActGroup * kActGroup;
        const size_t all = size_t(count) * size_t(to.k_pad);
        if (floats)
            to.f = zeroed.template operator()<float>(all);
        if (codes) {
            to.q = zeroed.template operator()<int8_t>(all);
            to.scale = zeroed.template operator()<float>(all / kActGroup);
        }
    };
    using B = DeviceBlock;
    for (Rows* each : {&x, &normed, &r, &k, &v})
        row_buffer(*each, c, rows);
    if (!last.gate.empty() || version == Version::k7)
        row_buffer(g, c, rows);
    const bool scans = version != Version::k4 && config_.head_size == kScanHead;
    if (scans || version == Version::k6 || version == Version::k7)
        row_buffer(w, c, rows);
    if (scans) {
        row_buffer(b, c, rows);
        bonus = arena_.cut<float>(size_t(rows) * size_t(config_.n_head));
    }
    if (version == Version::k7)
        for (Rows* each : {&a, &v_gate, &v_first})
            row_buffer(*each, c, rows);
    else
        row_buffer(ffn_gate, c, rows);
    acts(mix[0], c, rows, {&B::receptance}, false, false);
    acts(mix[2], c, rows, {&B::key}, false, false);
    acts(mix[3], c, rows, {&B::value, &B::v1}, false, false);
    if (!last.w1.empty() || !last.decay_w1.empty())
        acts(mix[1], c, rows, {&B::w1, &B::decay_w1}, false, false);
    if (!last.a1.empty())
        acts(mix[4], c, rows, {&B::a1}, false, false);
    if (!last.gate.empty() || !last.g1.empty())
        acts(mix[5], c, rows, {&B::gate, &B::g1}, false, false);
    if (version == Version::k6) {
        acts(mix_x, c, rows, {&B::maa_w1}, false, false);
        row_buffer(maa_hidden, last.maa_w1.n, rows);
        bool floats = false, codes = false;
        for (const DeviceBlock& block : blocks)
            for (const DeviceMatrix& m : block.maa_w2)
                (m.wants_quantized() ? codes : floats) = true;
        for (int i = 0; i < 5; ++i) {
            row_buffer(delta[i], c, rows);
            acts(hidden[i], last.maa_w2[i].k, rows, {}, floats, codes);
        }
        acts(decay_hidden, last.decay_w2.k, rows, {&B::decay_w2}, false, false);
    }
    if (version == Version::k7) {
        DeviceMatrix B::* const second[4] = {&B::w2, &B::a2, &B::v2, &B::g2};
        for (int i = 0; i < 4; ++i)
            if (const int rank = (last.*second[i]).k)
                acts(hidden[i], rank, rows, {second[i]}, false, false);
    }
    acts(att_out, c, rows, {&B::output}, true,
         false); // the recurrences always write floats where heads are odd
    acts(ffn_k, c, rows, {&B::ffn_key}, false, false);
    if (!last.ffn_receptance.empty())
        acts(ffn_r, c, rows, {&B::ffn_receptance}, false, false);
    acts(ffn_hidden, config_.n_ffn, rows, {&B::ffn_value}, false, false);
    const int logit_rows = std::min(rows, kLogitRows);
    acts(head, c, logit_rows, {}, !weights_.head.wants_quantized(), weights_.head.wants_quantized());
    row_buffer(logits, config_.vocab_size, logit_rows);
    bool gathers = false;
    for (const DeviceBlock& block : blocks)
        gathers = gathers || block.ffn_value.layout == Layout::kKn;
    if (gathers) {
        sparse.stride = (config_.n_ffn + 15) / 16 * 16;
        const size_t all = size_t(rows) * size_t(sparse.stride);
        sparse.channels = arena_.cut<int32_t>(all);
        sparse.factors = arena_.cut<float>(all);
        sparse.steps = arena_.cut<float>(all / 16);
        sparse.blocks = arena_.cut<int32_t>(size_t(rows));
        ffn_hidden.mask = arena_.cut<uint32_t>(size_t(rows) * size_t(ffn_hidden.k_pad / kActGroup));
        const size_t half_lines = size_t((c + 63) / 64 * 2); // of 4-bit codes half as many
        sparse_terms.blocks = sparse.stride / 16;
        const size_t terms = half_lines * size_t(sparse_terms.blocks);
        sparse_terms.sums = arena_.cut<float>(terms * kSparseOutputs);
        sparse_terms.steps = arena_.cut<float>(terms);
        sparse_terms.arrivals = zeroed.template operator()<unsigned>(half_lines);
    }
}

} // namespace rwkv::cuda
