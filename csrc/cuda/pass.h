// One pass over rows: what the formulas of time_mix.h and channel_mix.h are written with. Every call starts
// kernels on the stream and returns.
#pragma once

#include <initializer_list>

#include "cuda/few.cuh"
#include "cuda/matvec.cuh"
#include "cuda/narrow.cuh"
#include "cuda/norm.cuh"
#include "cuda/scan.cuh"
#include "cuda/scratch.h"
#include "cuda/sparse_rows.cuh"
#include "cuda/sparse_step.cuh"
#include "cuda/state_layout.h"
#include "cuda/step7.cuh"
#include "cuda/weights.h"
#include "cuda/wide.cuh"
#include "cuda/wkv.cuh"

namespace rwkv::cuda {

struct Pass {
    const Config& config;
    Scratch& s;
    StateLayout layout;
    cudaStream_t stream;
    Batch batch; ///< what its pointers lead to lies on the device
    int rows, segments;
    int multiprocessors;
    bool early; ///< kernels may start before those before them are done: one row, and a GPU that can

    /// Layer-norms every row of s.x and mixes it with the token before. `offset`: of x_prev in a state.
    void shift(const DeviceNorm& norm, size_t offset, const MixList& list) {
        mix(s.x, norm, s.normed, rows, offset, list);
    }
    /// The input of the head: the final norm of `count` rows from `first` on.
    void final_norm(const DeviceNorm& norm, int first, int count) {
        MixList list{};
        list.into[list.count++] = s.head;
        mix({s.x.data + size_t(first) * size_t(s.x.stride), s.x.stride}, norm, {}, count, 0, list);
    }

    /// Runs products side by side.
    void products(std::initializer_list<Product> all) { products(all, rows, nullptr, 0); }
    /// The same, and the last normed row of every sequence goes to `offset` of its state.
    void products_and_save_shift(std::initializer_list<Product> all, size_t offset) {
        products(all, rows, s.normed.data, offset);
    }

    /// A product whose matrix may be stored by input channel.
    void gathered_product(const Product& p) {
        if (p.w.layout != Layout::kKn)
            return products({p});
        const int half_lines = 2 * (p.w.n_pad / line_outputs(p.w.encoding));
        if (rows == 1) {
            const int shares = sparse_shares(half_lines, s.sparse_terms.blocks, multiprocessors);
            return launch(early, sparse_step, {unsigned(half_lines * shares)}, kSparseStepThreads,
                          sizeof(SparseStepShared), stream, p, s.sparse_terms, shares);
        }
        launch(find_active, {unsigned(rows)}, kFindThreads, kFindThreads / 32 * sizeof(int), stream, p.x,
               p.w.d, s.sparse);
        const int stripes = (p.w.n_pad + kStripe - 1) / kStripe;
        // a warp for each of a multiprocessor's schedulers, or all of the threads that fit
        if (stripes * rows >= 4 * multiprocessors && in_reach(p.w))
            return launch(sparse_rows,
                          {unsigned((rows + kStripeWarps - 1) / kStripeWarps), unsigned(stripes)},
                          kStripeThreads, kStripeShared, stream, p, s.sparse, rows);
        launch(sparse_product, {unsigned(half_lines), unsigned(rows)}, kSparseThreads, kSparseShared, stream,
               p, s.sparse);
    }

    /// s.att_out from the recurrence's inputs.
    void recurrence(const Wkv& wkv) {
        const unsigned sequences = unsigned(segments);
        if (config.version == Version::k4) {
            const unsigned blocks = unsigned((wkv.n + kWkv4Threads - 1) / kWkv4Threads);
            return launch(wkv4, {blocks, sequences}, kWkv4Threads, 0, stream, wkv);
        }
        if (wkv.n == kScanHead && rows > segments)
            return config.version == Version::k7 ? scan_tokens<true>(wkv) : scan_tokens<false>(wkv);
        const Grid grid{unsigned(config.n_head), sequences};
        const int threads = (wkv.n + 31) / 32 * 32;
        const size_t row = size_t(threads) * sizeof(float);
        if (config.version == Version::k7)
            launch(wkv.n == 64 ? wkv7<64> : wkv7<0>, grid, threads, 8 * row, stream, wkv);
        else
            launch(wkv.n == 64 ? wkv5<64> : wkv5<0>, grid, threads, 5 * row, stream, wkv);
        if (wkv.n % kActGroup != 0 && s.att_out.q)
            launch(quantize_slices, {1, unsigned(rows)}, kRowThreads, 0, stream,
                   SliceList{{s.att_out.f, s.att_out.k_pad}, {s.att_out}});
    }

    /// RWKV-7: the recurrence, and before it the products that `wkv` reads as w, a, g and v_gate.
    void recurrence_after(const SecondFactors& factors, const Wkv& wkv) {
        const bool residual = wkv.v_gate.data != nullptr;
        if (rows == 1 && wkv.n == kStepHead && in_tiles(factors.w) && in_tiles(factors.a) &&
            in_tiles(factors.g) && (!residual || in_tiles(factors.v_gate)))
            return launch(early, step7, {unsigned(config.n_head)}, kStepThreads, sizeof(StepShared), stream,
                          factors, wkv);
        if (residual)
            products({factors.w, factors.a, factors.g, factors.v_gate});
        else
            products({factors.w, factors.a, factors.g});
        recurrence(wkv);
    }

    static Product product(const DeviceMatrix& w, const Acts& x, Epilogue epilogue, const Rows& out) {
        return {w, x, epilogue, out, {}, {}};
    }
    static Product product_into(const DeviceMatrix& w, const Acts& x, Epilogue epilogue, const Acts& out) {
        return {w, x, epilogue, {}, {}, out};
    }

    void products(std::initializer_list<Product> all, int count, const float* normed, size_t offset) {
        if (count == 1)
            return start_vector_products(all, normed, offset);
        const ProductList tiles = list_of(all, 1, in_tiles),
                          floats = list_of(all, 1, [](const Product& p) { return !in_tiles(p); });
        if (tiles.count > 0)
            start_tiles(tiles, list_of(all, kWideWarps, in_tiles), count, normed, offset);
        const float* left = tiles.count > 0 ? nullptr : normed; // the states need it only once
        if (floats.count > 0 && count <= 4)
            start(cuda::products<4>, floats, {4, kProductThreads<4>, product_shared<4>}, count, left, offset);
        else if (floats.count > 0)
            start(cuda::products<8>, floats, {8, kProductThreads<8>, product_shared<8>}, count, left, offset);
    }

  private:
    static bool in_tiles(const Product& p) { return p.w.layout == Layout::kTile; }

    void start_vector_products(std::initializer_list<Product> all, const float* normed, size_t offset) {
        bool quantizes = false, narrow = false;
        int tiles = 0;
        for (const Product& p : all) {
            quantizes = quantizes || p.quantized.k;
            narrow = narrow || (in_tiles(p) && p.w.group == 16);
            tiles += p.w.n_pad / kTileRows;
        }
        // Few tiles are given a block each; many, rounds of two.
        if (!quantizes && tiles <= 2 * multiprocessors)
            start_units<1>(all, normed, offset, narrow);
        else
            start_units<2>(all, normed, offset, narrow);
    }

    template <int kTiles>
    void start_units(std::initializer_list<Product> all, const float* normed, size_t offset, bool narrow) {
        ProductList list{};
        for (const Product& p : all) {
            int tiles = in_tiles(p) ? kTiles : kUnitRows / kTileRows;
            while (in_tiles(p) && p.w.n_pad / kTileRows > 8 * multiprocessors * tiles)
                tiles += kTiles; // rounds instead of blocks
            const int unit = tiles * kTileRows;
            list.item[list.count] = p;
            list.tiles[list.count] = tiles;
            list.first_unit[list.count + 1] = list.first_unit[list.count] + (p.w.n + unit - 1) / unit;
            ++list.count;
        }
        list.normed = normed;
        list.last = batch.last;
        list.offset = offset;
        list.width = config.n_embd;
        const size_t shared =
            std::max(VectorPlan<kTiles, 32>::kShared, narrow ? VectorPlan<kTiles, 16>::kShared : 0);
        launch(early, vector_products<kTiles>, {unsigned(list.first_unit[list.count] + (normed ? 1 : 0))},
               kVectorThreads, shared, stream, list);
    }

    template <bool kIs7>
    void scan_tokens(const Wkv& wkv) {
        const Scan scan{wkv, s.w, s.b, s.bonus, rows, config.n_head};
        const unsigned all = unsigned((rows * config.n_head + kPairWarps - 1) / kPairWarps);
        launch(prepare_scan<kIs7>, {all}, kPairThreads, 0, stream, scan);
        // A head's parts, in one block, share what they bring; but a multiprocessor's shared memory serves
        // them one after the other, so blocks are as small as leaves one for each multiprocessor.
        const int parts = config.n_head * kScanParts;
        int warps = 1;
        while (warps < kScanParts && parts * segments > multiprocessors * warps)
            warps *= 2;
        launch(cuda::scan<kIs7>, {unsigned(parts / warps), unsigned(segments)}, 32 * warps, kScanShared,
               stream, scan);
        launch(finish_scan<kIs7>, {all}, kPairThreads, 0, stream, scan);
    }

    /// Those products that `takes` says, in blocks of `units`.
    template <class F>
    static ProductList list_of(std::initializer_list<Product> all, int units, F takes) {
        ProductList list{};
        for (const Product& p : all) {
            if (!takes(p))
                continue;
            list.item[list.count] = p;
            const int outputs = units * kUnitRows;
            list.first_unit[list.count + 1] = list.first_unit[list.count] + (p.w.n + outputs - 1) / outputs;
            ++list.count;
        }
        return list;
    }

    struct Shape {
        int columns, threads; ///< of a block
        size_t shared;
    };
    /// A way to run products of several columns.
    struct Form {
        void (*kernel)(ProductList, int);
        const ProductList* list;
        Shape shape;
        int slots;  ///< that a block takes per group of inputs: fitted to times on an H200
        int blocks; ///< that a multiprocessor takes at once
    };
    template <int kTiles>
    static Form narrow_form(const ProductList& units, int slots) {
        using Plan = NarrowPlan<kTiles>;
        return {narrow_products<kTiles>,
                &units,
                {Plan::kColumns, Plan::kThreads, Plan::kShared},
                slots,
                Plan::kBlocks};
    }
    template <int kTiles>
    static Form wide_form(const ProductList& blocks, int slots) {
        int ahead = 0;
        for (int i = 0; i < blocks.count; ++i)
            ahead = std::max(ahead, bytes_ahead(blocks.item[i].w));
        return {wide_products<kTiles>,
                &blocks,
                {8 * kTiles, kWideThreads, WidePlan<kTiles>::shared(ahead)},
                slots,
                WidePlan<kTiles>::kBlocks};
    }
    /// Slots that a multiprocessor's schedulers take for their part of the blocks. Alone, a block waits for
    /// as long as four warps more would work. Of more blocks than there is room for at once, those that are
    /// done leave their time to the others.
    int cost(const Form& form, int count) const {
        const int columns = (count + form.shape.columns - 1) / form.shape.columns,
                  all = form.list->first_unit[form.list->count] * columns,
                  mine = (all + multiprocessors - 1) / multiprocessors, warps = form.shape.threads / 32;
        const auto together = [&](int blocks) { return form.slots * (blocks * warps + 4) / warps; };
        if (mine <= form.blocks)
            return together(mine);
        return int(int64_t(together(form.blocks)) * all / (multiprocessors * form.blocks));
    }

    /// How products of several columns run depends on what it costs: the bits do not.
    void start_tiles(const ProductList& units, const ProductList& blocks, int count, const float* normed,
                     size_t offset) {
        bool bytes = true; // codes that need no unpacking
        for (int i = 0; i < units.count; ++i)
            bytes = bytes && units.item[i].w.encoding == Encoding::kQ8;
        if (count <= (bytes ? 2 : 1) * kFewColumns)
            return start(few_products, units, {kFewColumns, kFewThreads, sizeof(FewShared)}, count, normed,
                         offset);
        const Form forms[] = {narrow_form<2>(units, 225), narrow_form<4>(units, 375),
                              narrow_form<8>(units, 560), wide_form<4>(blocks, 820),
                              wide_form<8>(blocks, 1240)};
        const Form* best = &forms[0];
        for (const Form& form : forms)
            if (cost(form, count) < cost(*best, count))
                best = &form;
        start(best->kernel, *best->list, best->shape, count, normed, offset);
    }

    void start(void (*kernel)(ProductList, int), ProductList list, const Shape& shape, int count,
               const float* normed, size_t offset) {
        list.normed = normed;
        list.last = batch.last;
        list.offset = offset;
        list.width = config.n_embd;
        const int column_blocks = (count + shape.columns - 1) / shape.columns;
        const int blocks = list.first_unit[list.count] * column_blocks + (normed ? count : 0);
        launch(kernel, {unsigned(blocks)}, shape.threads, shape.shared, stream, list, count);
    }

    void mix(const Rows& x, const DeviceNorm& norm, const Rows& normed, int count, size_t offset,
             MixList list) {
        if (count == 1 && config.n_embd <= kWidestRow) {
            const unsigned slices = unsigned((list.into[0].k_pad + kRowThreads - 1) / kRowThreads);
            return launch(early, mix_row, {slices, unsigned(list.count)}, kRowThreads,
                          sizeof(float) * size_t(2 * kRowChains + config.n_embd), stream, list, x, norm,
                          normed, batch, offset, config.n_embd);
        }
        // Two blocks for each multiprocessor; those that share a row norm it each.
        const int wanted = std::max(2 * multiprocessors / count, 1);
        list.slices = std::min((list.into[0].k_pad + kMixChannels - 1) / kMixChannels, wanted);
        const int groups = std::min(list.count, wanted / list.slices); // of mixes
        list.per_block = (list.count + groups - 1) / groups;
        const unsigned parts = unsigned(list.slices * ((list.count + list.per_block - 1) / list.per_block));
        launch(early, config.n_embd % 4 == 0 ? mix_rows<true> : mix_rows<false>, {parts, unsigned(count)},
               kRowThreads, sizeof(RowSums), stream, list, x, norm, normed, batch, offset, config.n_embd);
    }
};

} // namespace rwkv::cuda
