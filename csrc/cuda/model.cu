#include "cuda/model.h"

#include <algorithm>

#include "cuda/blocks.h"

namespace rwkv::cuda {
namespace {

/// Buffers of a prompt's chunk stay below this, whatever the prompt's length.
constexpr size_t kScratchBudget = size_t(256) << 20;
constexpr int kLongestChunk = 512;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Where the parts of a table for `rows` rows lie.
struct TableLayout {
    size_t tokens = 0, first, last, segments, bytes;
    explicit TableLayout(int rows) {
        const size_t n = size_t(rows);
        first = round_up(n * sizeof(int32_t), 16);
        last = first + n * sizeof(float*);
        segments = round_up(last + n * sizeof(float*), 16);
        bytes = segments + n * sizeof(Segment);
    }
};

/// How many rows a chunk of a prompt has, and what the model takes with buffers for so many.
struct Sizes {
    int chunk;
    size_t bytes;
    Sizes(const Config& config, const DeviceWeights& weights) {
        // Logits and the sums of ffn.value in layout kn take as much for few rows as for many.
        const size_t few = Scratch(config, weights, kLogitRows).bytes(),
                     row = (Scratch(config, weights, 2 * kLogitRows).bytes() - few) / size_t(kLogitRows),
                     fixed = few - row * size_t(kLogitRows),
                     left = kScratchBudget > fixed ? kScratchBudget - fixed : 0;
        chunk = int(std::clamp<size_t>(left / row, 8, kLongestChunk)) / 8 * 8;
        bytes = weights.bytes() + Scratch(config, weights, chunk).bytes() +
                round_up(BatchTable::bytes(chunk), 256) + round_up(BatchTable::bytes(1), 256);
    }
};

} // namespace

DeviceState::DeviceState(const StateLayout& layout, int n_layer, const std::string& device)
    : floats_(layout.layer() * size_t(n_layer)) {
    arena_.cut<float>(floats_);
    require_memory(arena_.bytes(), "a state", device);
    arena_.allocate();
    data_ = arena_.cut<float>(floats_);
}

template <class F>
void CapturedGraph::capture(cudaStream_t stream, F work) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording launches");
    cudaGraph_t graph = nullptr;
    try {
        work();
    } catch (...) {
        if (cudaStreamEndCapture(stream, &graph) == cudaSuccess && graph)
            (void)cudaGraphDestroy(graph);
        throw;
    }
    check(cudaStreamEndCapture(stream, &graph), "recording launches");
    const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
    (void)cudaGraphDestroy(graph);
    check(error, "recording launches");
}

void CapturedGraph::reset() {
    if (exec_)
        (void)cudaGraphExecDestroy(exec_);
    exec_ = nullptr;
}

template <class F>
CapturedGraph* BatchGraphs::of(int rows, cudaStream_t stream, F work) {
    if (rows > kMostRows)
        return nullptr;
    Kept& kept = kept_[rows];
    kept.last_use = ++clock_;
    if (!kept.graph && ++kept.uses > 1) {
        make_room();
        try {
            kept.graph.capture(stream, work);
        } catch (const DeviceError& error) {
            if (error.status() != RWKV_CUDA_NO_MEMORY)
                throw;
            kept.uses = 0; // nothing has run: launches go out one by one
        }
    }
    return kept.graph ? &kept.graph : nullptr;
}

void BatchGraphs::make_room() {
    int count = 0;
    Kept* oldest = nullptr;
    for (Kept& kept : kept_) {
        if (!kept.graph)
            continue;
        ++count;
        if (!oldest || kept.last_use < oldest->last_use)
            oldest = &kept;
    }
    if (count < kMost)
        return;
    oldest->graph.reset();
    oldest->uses = 0;
}

size_t BatchTable::bytes(int rows) { return TableLayout(rows).bytes; }

BatchTable::BatchTable(int rows) : rows_(rows), host_(TableLayout(rows).bytes) {
    const TableLayout at(rows);
    arena_.cut<uint8_t>(at.bytes);
    arena_.allocate();
    device_ = arena_.cut<uint8_t>(at.bytes);
    std::memset(host_.data(), 0, at.bytes);
}

void BatchTable::set(std::span<const int32_t> tokens, std::span<const Segment> segments) {
    const TableLayout at(rows_);
    uint8_t* host = host_.data();
    std::memcpy(host + at.tokens, tokens.data(), tokens.size_bytes());
    std::memset(host + at.first, 0, at.segments - at.first);
    for (size_t i = 0; i < segments.size(); ++i) {
        const Segment& segment = segments[i];
        const size_t begin = size_t(segment.begin), end = begin + size_t(segment.count) - 1;
        std::memcpy(host + at.first + begin * sizeof(float*), &segment.state, sizeof(float*));
        std::memcpy(host + at.last + end * sizeof(float*), &segment.state, sizeof(float*));
        std::memcpy(host + at.segments + i * sizeof(Segment), &segment, sizeof(Segment));
    }
}

void BatchTable::send(cudaStream_t stream) const {
    check(cudaMemcpyAsync(device_, host_.data(), host_.size(), cudaMemcpyHostToDevice, stream),
          "copying to the device");
}

Batch BatchTable::batch() const {
    const TableLayout at(rows_);
    return {reinterpret_cast<const int32_t*>(device_ + at.tokens),
            reinterpret_cast<float* const*>(device_ + at.first),
            reinterpret_cast<float* const*>(device_ + at.last),
            reinterpret_cast<const Segment*>(device_ + at.segments)};
}

Model::Model(const rwkv_cuda_config& config, const rwkv_cuda_weights& weights, int device)
    : config_(make_config(config)), layout_(config_), device_((use_device(device), device)),
      weights_((validate(config_), config_), weights) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "the device cannot be asked");
    device_name_ = properties.name;
    // code for older GPUs runs here too, but does not know how to wait
    overlaps_ = code_capability(embed) >= 90 && properties.major >= 9;
    multiprocessors_ = properties.multiProcessorCount;
    const Sizes sizes(config_, weights_);
    const int chunk = sizes.chunk;
    scratch_ = std::make_unique<Scratch>(config_, weights_, chunk);
    bytes_ = sizes.bytes;
    require_memory(bytes_, "the model", device_name_);
    weights_.upload(stream_);
    scratch_->allocate(stream_);
    one_ = std::make_unique<BatchTable>(1);
    many_ = std::make_unique<BatchTable>(chunk);
    logits_ = std::make_unique<Pinned<float>>(size_t(std::min(chunk, BatchGraphs::kMostRows)) *
                                              size_t(config_.vocab_size));
    if (takes_rows())
        rows_ = std::make_unique<Pinned<float>>(2 * size_t(chunk) * size_t(config_.n_embd));
}

Model::Required Model::required(const rwkv_cuda_config& config, const rwkv_cuda_weights& weights) {
    const Config asked = make_config(config);
    validate(asked);
    const DeviceWeights counted(asked, weights);
    const size_t state = StateLayout(asked).layer() * size_t(asked.n_layer) * sizeof(float);
    return {Sizes(asked, counted).bytes, round_up(state, 256)};
}

Model::~Model() {
    (void)cudaSetDevice(device_); // everything is freed on the device that it lies on
    (void)cudaStreamSynchronize(stream_);
}

std::unique_ptr<DeviceState> Model::new_state() {
    enter();
    auto state = std::make_unique<DeviceState>(layout_, config_.n_layer, device_name_);
    std::vector<float> values(state->floats(), 0.0f);
    if (config_.version == Version::k4)
        for (int layer = 0; layer < config_.n_layer; ++layer)
            std::fill_n(values.begin() + long(layout_.heads(layer) + 2 * layout_.c), layout_.c, -1e30f); // pp
    const Turnstile::Turn turn(turnstile_, {});
    upload(*state, values);
    return state;
}

void Model::upload(DeviceState& state, const std::vector<float>& values) {
    check(cudaMemcpyAsync(state.data(), values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice,
                          stream_),
          "copying a state to the device");
    stream_.wait();
}

void Model::copy_state(DeviceState& to, const DeviceState& from) {
    enter();
    const Turnstile::Turn turn(turnstile_, {});
    check(cudaMemcpyAsync(to.data(), from.data(), from.floats() * sizeof(float), cudaMemcpyDeviceToDevice,
                          stream_),
          "copying a state");
    stream_.wait();
}

namespace {

/// Between [H, key, value] and [H, value, key], in place; the same both ways.
void transpose_heads(const Config& config, const StateLayout& layout, float* state) {
    if (config.version == Version::k4)
        return;
    const size_t n = size_t(config.head_size);
    for (int layer = 0; layer < config.n_layer; ++layer)
        for (size_t h = 0; h < size_t(config.n_head); ++h) {
            float* head = state + layout.heads(layer) + h * n * n;
            for (size_t i = 0; i < n; ++i)
                for (size_t j = 0; j < i; ++j)
                    std::swap(head[i * n + j], head[j * n + i]);
        }
}

} // namespace

void Model::read_state(const DeviceState& state, float* values) {
    enter();
    const Turnstile::Turn turn(turnstile_, {});
    check(cudaMemcpyAsync(values, state.data(), state.floats() * sizeof(float), cudaMemcpyDeviceToHost,
                          stream_),
          "copying a state from the device");
    stream_.wait();
    transpose_heads(config_, layout_, values);
}

void Model::write_state(DeviceState& state, const float* values) {
    enter();
    std::vector<float> turned(values, values + state.floats());
    transpose_heads(config_, layout_, turned.data());
    const Turnstile::Turn turn(turnstile_, {});
    upload(state, turned);
}

void Model::check_tokens(std::span<const int32_t> tokens) const {
    require(!tokens.empty(), Fault::kArgument, "no tokens");
    require(!takes_rows(), Fault::kArgument, "the model has no embedding");
    for (const int32_t token : tokens)
        require(token >= 0 && token < config_.vocab_size, Fault::kArgument,
                "token " + std::to_string(token) + " is outside the vocabulary of " +
                    std::to_string(config_.vocab_size));
}

namespace {

/// Runs `work`, which changes states step by step. Memory can run out midway (drivers load a kernel when it
/// is first launched); then `undo` gives the states back, or says that it cannot: the model is of no more
/// use.
template <class Work, class Undo>
void all_or_nothing(Work work, Undo undo) {
    const auto failed = [](const char* what) { throw DeviceError(RWKV_CUDA_FAILED, what); };
    try {
        work();
    } catch (const DeviceError& error) {
        if (error.status() == RWKV_CUDA_NO_MEMORY && !undo())
            failed(error.what());
        throw;
    } catch (const std::bad_alloc&) {
        if (!undo())
            failed("the host has no memory left");
        throw;
    }
}

} // namespace

void Model::forward(std::span<const int32_t> tokens, DeviceState& state, float* logits, bool all,
                    const Poll& poll) {
    check_tokens(tokens);
    enter();
    const Turnstile::Turn turn(turnstile_, poll);
    if (tokens.size() == 1)
        return decode(tokens[0], state, logits);
    const size_t bytes = state.floats() * sizeof(float), v = size_t(config_.vocab_size);
    if (poll) {
        if (!before_)
            before_ = std::make_unique<DeviceState>(layout_, config_.n_layer, device_name_);
        check(cudaMemcpyAsync(before_->data(), state.data(), bytes, cudaMemcpyDeviceToDevice, stream_),
              "copying a state");
    }
    const auto undo = [&] {
        if (poll) {
            check(cudaMemcpyAsync(state.data(), before_->data(), bytes, cudaMemcpyDeviceToDevice, stream_),
                  "copying a state");
            stream_.wait(); // for what was started, too
        }
        return bool(poll);
    };
    const auto work = [&] {
        for (size_t done = 0; done < tokens.size();) {
            const size_t count = std::min(tokens.size() - done, size_t(scratch_->rows));
            const Segment segment{state.data(), 0, int(count)};
            const bool ends = done + count == tokens.size();
            if (!run(tokens.subspan(done, count), {&segment, 1},
                     all    ? int(count)
                     : ends ? 1
                            : 0,
                     all ? logits + done * v : logits, poll)) {
                undo();
                throw Cancelled();
            }
            done += count;
        }
    };
    all_or_nothing(work, undo);
}

void Model::forward_batch(std::span<const int32_t> tokens, std::span<DeviceState* const> states,
                          float* logits) {
    check_tokens(tokens);
    for (size_t i = 0; i < states.size(); ++i)
        require(std::find(states.begin(), states.begin() + long(i), states[i]) == states.begin() + long(i),
                Fault::kArgument, "the same state stands twice in the batch");
    enter();
    const Turnstile::Turn turn(turnstile_, {});
    if (tokens.size() == 1)
        return decode(tokens[0], *states[0], logits);
    const auto work = [&] {
        std::vector<Segment> segments;
        for (size_t done = 0; done < tokens.size();) {
            const size_t count = std::min(tokens.size() - done, size_t(scratch_->rows));
            segments.clear();
            for (size_t i = 0; i < count; ++i)
                segments.push_back({states[done + i]->data(), int(i), 1});
            step_batch(tokens.subspan(done, count), segments, logits + done * size_t(config_.vocab_size));
            done += count;
        }
    };
    all_or_nothing(work, [] { return false; });
}

void Model::forward_rows(const HostRows& rows, std::span<DeviceState* const> states, float* logits,
                         int wanted) {
    require(takes_rows(), Fault::kArgument, "the model has an embedding");
    for (size_t i = 0; i < states.size(); ++i)
        require(std::find(states.begin(), states.begin() + long(i), states[i]) == states.begin() + long(i),
                Fault::kArgument, "the same state stands twice in the batch");
    enter();
    const Turnstile::Turn turn(turnstile_, {});
    if (rows.count == 1 && wanted == 1) {
        stage(rows, 0, 1);
        return decode(0, *states[0], logits);
    }
    std::vector<Segment> segments;
    for (int done = 0; done < rows.count;) {
        const int count = std::min(rows.count - done, scratch_->rows);
        const int left = rows.count - done - count, here = std::clamp(wanted - left, 0, count);
        stage(rows, done, count);
        segments.clear();
        if (states.size() == 1)
            segments.push_back({states[0]->data(), 0, count});
        for (int i = 0; states.size() > 1 && i < count; ++i)
            segments.push_back({states[size_t(done + i)]->data(), i, 1});
        const std::vector<int32_t> none(static_cast<size_t>(count));
        if (states.size() > 1 && here == count)
            step_batch(none, segments, logits);
        else
            run(none, segments, here, logits, {});
        logits += size_t(here) * size_t(config_.vocab_size);
        done += count;
    }
}

/// Puts rows where start_rows copies them from.
void Model::stage(const HostRows& rows, int first, int count) {
    const size_t c = size_t(config_.n_embd), half = size_t(scratch_->rows) * c;
    for (size_t i = 0; i < size_t(count); ++i) {
        const size_t from = (size_t(first) + i) * rows.stride;
        std::memcpy(rows_->data() + i * c, rows.x + from, c * sizeof(float));
        if (config_.version == Version::k7)
            std::memcpy(rows_->data() + half + i * c, rows.v_first + from, c * sizeof(float));
    }
}

void Model::start_rows(int rows) {
    const size_t c = size_t(config_.n_embd), bytes = size_t(rows) * c * sizeof(float);
    const auto copy = [&](float* to, const float* from) {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "copying rows");
    };
    copy(scratch_->x.data, rows_->data());
    if (config_.version == Version::k7)
        copy(scratch_->v_first.data, rows_->data() + size_t(scratch_->rows) * c);
}

void Model::decode(int32_t token, DeviceState& state, float* logits) {
    const Segment segment{state.data(), 0, 1};
    one_->set({&token, 1}, {&segment, 1});
    if (!graph_)
        graph_.capture(stream_, [&] {
            one_->send(stream_);
            start_blocks(*one_, 1, 1, {});
            bring_logits(0, 1, 0);
        });
    graph_.launch(stream_);
    stream_.wait();
    std::memcpy(logits, logits_->data(), size_t(config_.vocab_size) * sizeof(float));
}

void Model::step_batch(std::span<const int32_t> tokens, std::span<const Segment> segments, float* logits) {
    const int rows = int(tokens.size());
    CapturedGraph* const graph = batch_graphs_.of(rows, stream_, [&] {
        many_->send(stream_);
        start_blocks(*many_, rows, rows, {});
        for (int done = 0; done < rows; done += kLogitRows)
            bring_logits(done, std::min(kLogitRows, rows - done), done);
    });
    if (!graph) {
        run(tokens, segments, rows, logits, {});
        return;
    }
    many_->set(tokens, segments);
    graph->launch(stream_);
    stream_.wait();
    std::memcpy(logits, logits_->data(), size_t(rows) * size_t(config_.vocab_size) * sizeof(float));
}

bool Model::run(std::span<const int32_t> tokens, std::span<const Segment> segments, int wanted, float* logits,
                const Poll& poll) {
    const int rows = int(tokens.size());
    many_->set(tokens, segments);
    many_->send(stream_);
    if (!start_blocks(*many_, rows, int(segments.size()), poll)) {
        stream_.wait();
        return false;
    }
    const int piece_rows = std::min(scratch_->rows, kLogitRows);
    for (int done = 0; done < wanted; done += piece_rows) {
        const int piece = std::min(piece_rows, wanted - done);
        const size_t count = size_t(piece) * size_t(config_.vocab_size);
        bring_logits(rows - wanted + done, piece, 0);
        stream_.wait();
        std::memcpy(logits + size_t(done) * size_t(config_.vocab_size), logits_->data(),
                    count * sizeof(float));
    }
    stream_.wait(); // the table on the host is free again
    return !(poll && poll());
}

bool Model::start_blocks(const BatchTable& table, int rows, int segments, const Poll& poll) {
    if (takes_rows())
        start_rows(rows);
    else
        launch(embed, {unsigned(rows)}, kRowThreads, sizeof(RowSums), stream_, weights_.emb, table.batch(),
               weights_.ln0, scratch_->x);
    Pass pass{config_, *scratch_, layout_, stream_, table.batch(), rows, segments, multiprocessors_, false};
    for (int layer = 0; layer < config_.n_layer; ++layer) {
        if (poll && poll())
            return false;
        pass.early = overlaps_ && rows == 1 && (layer > 0 || !takes_rows()); // copies do not overlap
        time_mix(pass, weights_.blocks[size_t(layer)], layer);
        channel_mix(pass, weights_.blocks[size_t(layer)], layer);
    }
    return true;
}

void Model::start_logits(int first_row, int rows) {
    Pass pass{config_, *scratch_, layout_, stream_, {}, rows, rows, multiprocessors_, overlaps_ && rows == 1};
    pass.final_norm(weights_.ln_out, first_row, rows);
    pass.products({Pass::product(weights_.head, scratch_->head, Epilogue::kStore, scratch_->logits)});
}

void Model::bring_logits(int first_row, int rows, int place) {
    start_logits(first_row, rows);
    const size_t v = size_t(config_.vocab_size);
    check(cudaMemcpyAsync(logits_->data() + size_t(place) * v, scratch_->logits.data,
                          size_t(rows) * v * sizeof(float), cudaMemcpyDeviceToHost, stream_),
          "copying logits");
}

} // namespace rwkv::cuda
