// One pass over rows: what the formulas of time_mix.h and channel_mix.h are written with. Every call starts
// kernels on the stream and returns.
#pragma once

#include <initializer_list>

#include "cuda/matmat.cuh"
#include "cuda/norm.cuh"
#include "cuda/scratch.h"
#include "cuda/sparse.cuh"
#include "cuda/state_layout.h"
#include "cuda/weights.h"
#include "cuda/wkv.cuh"

namespace rwkv::cuda {

struct Pass {
    const Config& config;
    Scratch& s;
    StateLayout layout;
    cudaStream_t stream;
    const Batch* batch; ///< on the device
    float* const* last; ///< the batch's, on the device
    int rows, segments;
    bool each_begins; ///< every row is the first of its sequence

    /// Layer-norms every row of s.x and mixes it with the token before. `offset`: of x_prev in a state.
    void shift(const DeviceNorm& norm, size_t offset, const MixList& list) {
        const int c = config.n_embd;
        const size_t row_bytes = size_t(c) * sizeof(float);
        const bool together = each_begins && row_bytes <= kSharedLimit;
        if (!together)
            launch(norm_rows, {unsigned(rows)}, kRowThreads, 0, stream, s.x, norm, s.normed, c);
        launch(mix_rows, {unsigned(list.count), unsigned(rows)}, kRowThreads, together ? row_bytes : 0,
               stream, list, s.x, together ? norm : DeviceNorm(), s.normed, batch, offset, c);
    }
    /// Mixes rows that a shift has normed already.
    void shift_again(size_t offset, const MixList& list) {
        launch(mix_rows, {unsigned(list.count), unsigned(rows)}, kRowThreads, size_t(0), stream, list, s.x,
               DeviceNorm(), s.normed, batch, offset, config.n_embd);
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
        launch(find_active, {unsigned(rows)}, kFindThreads, kFindThreads / 32 * sizeof(int), stream, p.x,
               p.w.d, s.sparse);
        const int lines = p.w.n_pad / (p.w.encoding == Encoding::kQ4 ? 128 : 64);
        launch(sparse_product, {unsigned(2 * lines), unsigned(rows)}, kSparseThreads, kSparseShared, stream,
               p, s.sparse);
    }

    /// s.att_out from the recurrence's inputs.
    void recurrence(const Wkv& wkv) {
        const unsigned sequences = unsigned(segments);
        if (config.version == Version::k4) {
            const unsigned blocks = unsigned((wkv.n + kWkv4Threads - 1) / kWkv4Threads);
            return launch(wkv4, {blocks, sequences}, kWkv4Threads, 0, stream, wkv);
        }
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

    static Product product(const DeviceMatrix& w, const Acts& x, Epilogue epilogue, const Rows& out) {
        return {w, x, epilogue, out, {}, {}};
    }
    static Product product_into(const DeviceMatrix& w, const Acts& x, Epilogue epilogue, const Acts& out) {
        return {w, x, epilogue, {}, {}, out};
    }

    void products(std::initializer_list<Product> all, int count, const float* normed, size_t offset) {
        ProductList list{};
        for (const Product& p : all) {
            list.item[list.count] = p;
            list.first_unit[list.count + 1] =
                list.first_unit[list.count] + (p.w.n + kUnitRows - 1) / kUnitRows;
            ++list.count;
        }
        list.normed = normed;
        list.last = last;
        list.offset = offset;
        list.width = config.n_embd;
        const int columns = count == 1 ? 1 : count <= 4 ? 4 : 8;
        const unsigned blocks =
            unsigned(list.first_unit[list.count] * ((count + columns - 1) / columns) + (normed ? count : 0));
        if (columns == 1)
            launch(cuda::products<1>, {blocks}, kProductThreads<1>, kProductShared<1>, stream, list, count);
        else if (columns == 4)
            launch(cuda::products<4>, {blocks}, kProductThreads<4>, kProductShared<4>, stream, list, count);
        else
            launch(cuda::products<8>, {blocks}, kProductThreads<8>, kProductShared<8>, stream, list, count);
    }
};

} // namespace rwkv::cuda
