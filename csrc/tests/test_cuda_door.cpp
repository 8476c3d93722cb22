// The door to librwkv_cuda, with stand-ins for it: what is refused, what its statuses become, who waits for
// whom. What it computes is tested from Python, against the engine.
#include <atomic>
#include <thread>

#include "core/check.h"
#include "core/os.h"
#include "device/cuda_library.h"
#include "device/cuda_model.h"
#include "tests/model_writer.h"
#include "tests/test.h"

using namespace rwkv;
using namespace rwkv::test;

namespace {

int ask(const char* question) {
    void* library = os::load_library(STAND_IN);
    return reinterpret_cast<int (*)()>(os::library_symbol(library, question))();
}

/// The fault and message of the Error that `call` throws.
template <class F>
std::pair<int, std::string> error_of(F call) {
    try {
        call();
    } catch (const Error& e) {
        return {int(e.fault()), e.what()};
    }
    return {-1, "nothing was thrown"};
}

void check_refused(const std::pair<int, std::string>& found, Fault fault, const std::string& part) {
    CHECK(found.first == int(fault) && found.second.find(part) != std::string::npos, "%d: %s", found.first,
          found.second.c_str());
}

struct Small {
    explicit Small(Version version, const char* encoding = "q4g16") {
        config.version = version;
        config.n_layer = 2;
        config.n_embd = 72;
        config.n_head = version == Version::k4 ? 0 : 9;
        config.head_size = version == Version::k4 ? 0 : 8;
        config.n_ffn = 104;
        config.vocab_size = 50;
        ModelWriter writer(config, encoding, encoding[0] == 'q' && version != Version::k4);
        writer.write(path);
        specs = writer.specs;
    }
    CudaModel open(int device = 0, int layers = -1) const {
        return CudaModel({STAND_IN, device, layers, 1, ""}, path, config, specs);
    }

    Config config;
    std::string path = temporary();
    TensorSpecs specs;
};

} // namespace

TEST(libraries_that_are_none_are_refused) {
    check_refused(error_of([] { CudaLibrary::at("/nowhere/librwkv_cuda.so"); }), Fault::kDevice,
                  "/nowhere/librwkv_cuda.so");
    check_refused(error_of([] { CudaLibrary::at(STAND_IN_OTHER); }), Fault::kDevice,
                  "another version of rwkv");
    check_refused(error_of([] { CudaLibrary::at(STAND_IN_INCOMPLETE); }), Fault::kDevice,
                  "it has no rwkv_cuda_forward_batch");
    check_refused(error_of([] { CudaLibrary::at(STAND_IN_NO_DRIVER).devices(); }), Fault::kDevice,
                  "there is no driver");
    const auto devices = CudaLibrary::at(STAND_IN).devices();
    CHECK(devices.size() == 2 && std::string(devices[1].name) == "Stand-in" &&
          devices[1].free_memory == 1000);
    CHECK(CudaLibrary::at(STAND_IN).copy_rate(0) == 5e11);
    check_refused(error_of([] { CudaLibrary::at(STAND_IN).copy_rate(1); }), Fault::kMemory,
                  "device 1 has 1000 bytes free");
}

TEST(devices_that_cannot_hold_a_model_say_why) {
    const Small small(Version::k7);
    check_refused(error_of([&] { small.open(1); }), Fault::kMemory, "device 1 has 1000 bytes free");
    check_refused(error_of([&] { small.open(2); }), Fault::kDevice, "there is no such device");
    CHECK(ask("stand_in_models") == 0);
}

TEST(all_weights_reach_the_device) {
    for (const Version version : {Version::k4, Version::k5_0, Version::k6, Version::k7}) {
        for (const char* encoding :
             {"f32", "bf16", "q8g32", "q6g32", "q6g16", "q5g32", "q5g16", "q4g16", "q4g32"}) {
            const Small small(version, encoding);
            size_t bytes = 0; // of the matrices in the file: vectors are f32 and have one dimension
            for (const auto& [name, spec] : small.specs)
                if (spec.shape.size() == 2)
                    for (const auto& part : spec.parts)
                        bytes += part.bytes;
            const size_t held = small.open().device_bytes();
            CHECK(held == bytes, "%s version %d: %zu of %zu bytes", encoding, int(version), held, bytes);
        }
    }
}

TEST(states_of_a_device_go_out_and_in) {
    for (const Version version : {Version::k4, Version::k7}) {
        const Small small(version);
        CudaModel model = small.open();
        const auto state = model.new_state();
        State host(small.config);
        std::map<std::string, std::vector<float>> values;
        StateArrays arrays;
        unsigned seed = 1;
        for (const State::Entry& entry : host.export_entries()) {
            values[entry.name] = gaussian(entry.values.size(), seed++);
            arrays[entry.name] = {values[entry.name].data(), entry.values.size()};
        }
        state->import_entries(arrays);
        const auto twin = state->copy();
        CHECK(twin->bytes() == state->bytes());
        for (const State::Entry& entry : twin->export_entries()) {
            CHECK(entry.values == values[entry.name], "%s", entry.name.c_str());
            CHECK(entry.values.size() == arrays[entry.name].second, "%s", entry.name.c_str());
        }
        arrays.begin()->second.second -= 1;
        check_refused(error_of([&] { state->import_entries(arrays); }), Fault::kArgument, "another size");
        arrays.erase(arrays.begin());
        check_refused(error_of([&] { state->import_entries(arrays); }), Fault::kArgument, "other entries");
    }
}

TEST(a_device_computes_in_order_and_can_be_stopped) {
    const Small small(Version::k7);
    CudaModel model = small.open(), other = small.open();
    const auto state = model.new_state(), foreign = other.new_state();
    const std::vector<int32_t> tokens = {3, 0, 49};
    std::vector<float> all(150), one(50);
    model.forward(tokens, *state, all.data(), true, [] { return false; });
    CHECK(all[0] == 1003 && all[50] == 2000 && all[149] == 3049 + 49);
    int asked = 0;
    bool stopped = false;
    try {
        model.forward(tokens, *state, one.data(), false, [&] { return ++asked == 2; });
    } catch (const Cancelled&) {
        stopped = true;
    }
    CHECK(stopped && asked == 2);
    std::string thrown; // an exception of the poll comes through a library in C
    try {
        model.forward(tokens, *state, one.data(), false, []() -> bool { throw std::runtime_error("poll"); });
    } catch (const std::runtime_error& e) {
        thrown = e.what();
    }
    CHECK(thrown == "poll", "%s", thrown.c_str());
    CudaState* pair[2] = {state.get(), foreign.get()};
    CudaState* same[2] = {state.get(), state.get()};
    const std::vector<int32_t> two = {1, 2}, high = {1, 50};
    check_refused(error_of([&] { model.forward_batch(two, pair, all.data(), {}); }), Fault::kArgument,
                  "another model");
    check_refused(error_of([&] { model.forward(two, *foreign, one.data(), false, {}); }), Fault::kArgument,
                  "another model");
    check_refused(error_of([&] { model.forward_batch(two, same, all.data(), {}); }), Fault::kArgument,
                  "twice");
    check_refused(error_of([&] { model.forward(high, *state, one.data(), false, {}); }), Fault::kArgument,
                  "token 50");
    check_refused(error_of([&] { model.forward({}, *state, one.data(), false, {}); }), Fault::kArgument,
                  "no tokens");
    const auto next = model.new_state();
    pair[1] = next.get();
    model.forward_batch(two, pair, all.data(), {});
    CHECK(all[0] == 4001 && all[50] == 1002, "refused and stopped calls changed the state: %g %g",
          double(all[0]), double(all[50]));
}

TEST(a_device_that_failed_is_not_used_again) {
    const Small small(Version::k7);
    CudaModel model = small.open();
    const auto state = model.new_state();
    std::vector<float> logits(50);
    const auto feed = [&](int32_t token) {
        return error_of([&] { model.forward({&token, 1}, *state, logits.data(), false, {}); });
    };
    check_refused(feed(7), Fault::kMemory, "no room for the prompt");
    CHECK(feed(1).first == -1, "too little memory is no failure of the device");
    check_refused(feed(8), Fault::kDevice, "fell off the bus");
    check_refused(feed(1), Fault::kDevice, "loaded again");
    check_refused(error_of([&] { state->copy(); }), Fault::kDevice, "loaded again");
}

TEST(what_fails_on_one_of_two_devices_leaves_both_as_they_were) {
    const Small small(Version::k7);
    CudaModel model = small.open(0, 1);
    CHECK(model.layers() == 1 && !model.level().empty());
    CHECK(small.open().layers() == 2 && small.open(0, 2).level().empty() && small.open(0, 9).layers() == 2);
    const auto state = model.new_state();
    const std::vector<int32_t> tokens(600, 3); // more than one chunk of the CPU's
    std::vector<float> logits(50);
    const auto feed = [&](const std::vector<int32_t>& all, bool stops) {
        return error_of([&] {
            model.forward(all, *state, logits.data(), false,
                          stops ? CudaModel::Poll([] { return false; }) : CudaModel::Poll());
        });
    };
    const auto values = [&] {
        std::vector<std::vector<float>> all;
        for (const State::Entry& entry : state->export_entries())
            all.push_back(entry.values);
        return all;
    };
    CHECK(feed({1, 2}, false).first == -1 && logits[0] == 2000);
    const auto before = values();
    ask("stand_in_refuse_second");
    check_refused(feed(tokens, true), Fault::kMemory, "no room for the rows");
    CHECK(values() == before, "a refused prompt changed the state");
    CHECK(feed(tokens, true).first == -1 && logits[1] == 602001, "%g", double(logits[1]));
    ask("stand_in_refuse_first");
    check_refused(feed({1}, false), Fault::kDevice, "no room for the rows");
    check_refused(feed({1}, false), Fault::kDevice, "loaded again");
}

TEST(the_library_is_asked_what_fits) {
    const Small small(Version::k7);
    const CudaRequired required = cuda_required(STAND_IN, small.path, small.config, small.specs);
    const size_t block = 72 * 72, table = 50 * 72;
    CHECK(required.model == (std::vector<size_t>{table + block, 2 * table + 2 * block}));
    CHECK(required.state == 200, "%zu", required.state);
}

TEST(one_call_at_a_time_and_nothing_is_left) {
    const Small small(Version::k7);
    {
        CudaModel model = small.open();
        std::atomic<int> wrong{0};
        std::vector<std::thread> threads;
        for (int i = 0; i < 4; ++i)
            threads.emplace_back([&, i] {
                const auto state = model.new_state();
                std::vector<float> logits(50);
                const int32_t token = 10 + i;
                for (int n = 1; n <= 200; ++n) {
                    model.forward({&token, 1}, *state, logits.data(), false, {});
                    const auto twin = state->copy();
                    wrong += logits[0] != float(1000 * n + token);
                    wrong += twin->export_entries()[0].values[0] != float(n);
                }
            });
        for (std::thread& thread : threads)
            thread.join();
        CHECK(wrong == 0, "%d", wrong.load());
        model.new_state(); // what was dropped goes with the next call
        CHECK(ask("stand_in_states") <= 1, "%d", ask("stand_in_states"));
    }
    CHECK(ask("stand_in_overlaps") == 0);
    CHECK(ask("stand_in_models") == 0 && ask("stand_in_states") == 0);
}
