// A model on a device: weights, buffers, a captured graph for one token. rwkv::Model over there.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "core/turnstile.h"
#include "cuda/abi.h"
#include "cuda/memory.h"
#include "cuda/scratch.h"
#include "cuda/state_layout.h"
#include "cuda/weights.h"

namespace rwkv::cuda {

/// The recurrent state of one sequence, on the device.
class DeviceState {
  public:
    DeviceState(const StateLayout& layout, int n_layer, const std::string& device);
    float* data() const { return data_; }
    size_t floats() const { return floats_; }

  private:
    Arena arena_;
    size_t floats_;
    float* data_;
};

/// A captured sequence of launches.
class CapturedGraph {
  public:
    ~CapturedGraph() { reset(); }
    explicit operator bool() const { return exec_ != nullptr; }
    template <class F>
    void capture(cudaStream_t stream, F work);
    void launch(cudaStream_t stream) { check(cudaGraphLaunch(exec_, stream), "the device failed"); }
    void reset();

  private:
    cudaGraphExec_t exec_ = nullptr;
};

/// The launches of batches of single tokens, recorded when a number of rows comes a second time: they depend
/// on nothing else. The least recently used make room for new ones.
class BatchGraphs {
  public:
    static constexpr int kMostRows = 64;
    /// Those for `rows` rows, which `work` starts; null where they are not recorded, for want of memory too.
    template <class F>
    CapturedGraph* of(int rows, cudaStream_t stream, F work);

  private:
    static constexpr int kMost = 16;
    struct Kept {
        CapturedGraph graph;
        int uses = 0;
        uint64_t last_use = 0;
    };
    void make_room();

    Kept kept_[kMostRows + 1];
    uint64_t clock_ = 0;
};

/// What a pass is about, for up to `rows` rows: written on the host, copied to the device as one piece.
class BatchTable {
  public:
    explicit BatchTable(int rows);
    static size_t bytes(int rows);
    void set(std::span<const int32_t> tokens, std::span<const Segment> segments);
    void send(cudaStream_t stream) const;
    Batch batch() const;

  private:
    int rows_;
    Pinned<uint8_t> host_;
    Arena arena_;
    uint8_t* device_;
};

/// Rows that blocks on the host have made, as in rwkv_cuda_forward_rows.
struct HostRows {
    const float *x, *v_first;
    size_t stride;
    int count;
};

class Model {
  public:
    /// Bytes that a model and a state of it would take.
    struct Required {
        size_t bytes, state_bytes;
    };
    static Required required(const rwkv_cuda_config& config, const rwkv_cuda_weights& weights);

    /// Throws DeviceError, or Error(kFormat).
    Model(const rwkv_cuda_config& config, const rwkv_cuda_weights& weights, int device);
    ~Model();

    size_t bytes() const { return bytes_; }
    size_t state_floats() const { return layout_.layer() * size_t(config_.n_layer); }
    const Config& config() const { return config_; }

    std::unique_ptr<DeviceState> new_state();
    void copy_state(DeviceState& to, const DeviceState& from);
    /// In the order of rwkv::State::export_entries.
    void read_state(const DeviceState& state, float* values);
    void write_state(DeviceState& state, const float* values);

    using Poll = std::function<bool()>;
    void forward(std::span<const int32_t> tokens, DeviceState& state, float* logits, bool all,
                 const Poll& poll);
    void forward_batch(std::span<const int32_t> tokens, std::span<DeviceState* const> states, float* logits);
    /// Of a model without an embedding. One state takes all rows in turn, else each has one.
    void forward_rows(const HostRows& rows, std::span<DeviceState* const> states, float* logits, int wanted);
    /// Wakes no one: only makes this thread use the model's device.
    void enter() const { use_device(device_); }

  private:
    void check_tokens(std::span<const int32_t> tokens) const;
    void upload(DeviceState& state, const std::vector<float>& values);
    void decode(int32_t token, DeviceState& state, float* logits);
    /// A token of each of several sequences, with the logits of all.
    void step_batch(std::span<const int32_t> tokens, std::span<const Segment> segments, float* logits);
    /// Logits of the last `wanted` rows. False when `poll` stopped it.
    bool run(std::span<const int32_t> tokens, std::span<const Segment> segments, int wanted, float* logits,
             const Poll& poll);
    bool start_blocks(const BatchTable& table, int rows, int segments, const Poll& poll);
    void start_logits(int first_row, int rows);
    /// Those of `rows` rows from `first_row` on to the host, at `place` of its rows.
    void bring_logits(int first_row, int rows, int place);
    bool takes_rows() const { return weights_.emb.empty(); }
    void stage(const HostRows& rows, int first, int count);
    void start_rows(int rows);

    Config config_;
    StateLayout layout_;
    int device_;
    std::string device_name_;
    int multiprocessors_ = 0;
    bool overlaps_ = false; ///< kernels may start before those before them are done
    Turnstile turnstile_;   ///< one evaluation at a time: the buffers are the model's
    Stream stream_;
    DeviceWeights weights_;
    std::unique_ptr<Scratch> scratch_;
    std::unique_ptr<BatchTable> one_, many_;
    std::unique_ptr<Pinned<float>> logits_;
    std::unique_ptr<Pinned<float>> rows_; ///< x and v_first of a chunk, where tokens are not what goes in
    std::unique_ptr<DeviceState> before_; ///< a state that a prompt may have to come back to
    CapturedGraph graph_;                 ///< of one token
    BatchGraphs batch_graphs_;
    size_t bytes_ = 0;
};

} // namespace rwkv::cuda
