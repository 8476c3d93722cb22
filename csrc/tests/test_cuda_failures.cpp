// The CUDA library where something is in the way: requests that cannot be met, too little memory, a device
// that fails, several of them.
#include <optional>
#include <thread>

#include "tests/cuda_fixtures.h"

using namespace rwkv;
using namespace rwkv::test;

TEST(a_stopped_prompt_leaves_the_state_as_it_was) {
    for (const Version version : {Version::k4, Version::k7}) {
        const Config config = config_of(version, 3, 64, 32, 96, 50);
        Reference reference(config, "q8g32", true);
        Gpu gpu(reference);
        GpuState state(gpu);
        std::vector<float> logits(50);
        feed(gpu, std::span(kTokens).first(2), state, logits.data(), false);
        const auto before = state.values();
        for (int polls = 0; polls < 4; ++polls) {
            int left = polls;
            const rwkv_cuda_poll stop = [](void* context) {
                return int((*static_cast<int*>(context))-- <= 0);
            };
            char reason[256] = "";
            const rwkv_cuda_status status =
                rwkv_cuda_forward(gpu.model, kTokens.data(), int(kTokens.size()), state.state, logits.data(),
                                  0, stop, &left, reason, sizeof reason);
            CHECK(status == RWKV_CUDA_CANCELLED, "%d: %s", int(status), reason);
            CHECK(same(state.values(), before), "version %d, after %d polls", int(version), polls);
        }
    }
}

TEST(bad_requests_to_the_gpu_change_nothing) {
    const Config config = config_of(Version::k7, 1, 64, 64, 96, 50);
    Reference reference(config, "q8g32", false);
    Gpu gpu(reference), other(reference);
    GpuState state(gpu), foreign(other);
    const auto before = state.values();
    std::vector<float> logits(100);
    char reason[256] = "";
    const int32_t high[2] = {1, 50}, fine[2] = {1, 2};
    const auto forward = [&](const int32_t* tokens, rwkv_cuda_state* to) {
        return rwkv_cuda_forward(gpu.model, tokens, 2, to, logits.data(), 0, nullptr, nullptr, reason,
                                 sizeof reason);
    };
    CHECK(forward(high, state.state) == RWKV_CUDA_FAILED);
    CHECK(std::strstr(reason, "token 50"), "%s", reason);
    CHECK(forward(fine, foreign.state) == RWKV_CUDA_FAILED);
    CHECK(rwkv_cuda_copy_state(state.state, foreign.state, reason, sizeof reason) == RWKV_CUDA_FAILED);
    rwkv_cuda_state* twice[2] = {state.state, state.state};
    CHECK(rwkv_cuda_forward_batch(gpu.model, fine, twice, 2, logits.data(), reason, sizeof reason) ==
          RWKV_CUDA_FAILED);
    CHECK(same(state.values(), before));
}

TEST(a_model_that_does_not_fit_says_by_how_much) {
    if (!emulated())
        return;
    const auto free_memory = [] {
        rwkv_cuda_device device{};
        char reason[256] = "";
        CHECK(rwkv_cuda_devices(&device, 1, reason, sizeof reason) == 1);
        return device.free_memory;
    };
    Reference reference(config_of(Version::k7, 2, 64, 64, 96, 50), "q8g32", true);
    size_t bytes = 0;
    {
        Gpu gpu(reference);
        bytes = rwkv_cuda_model_bytes(gpu.model);
    }
    {
        const Setting memory("RWKV_CUDA_EMULATED_MEMORY", std::to_string(bytes - 1));
        Gpu gpu(reference, RWKV_CUDA_NO_MEMORY);
        CHECK(std::strstr(gpu.reason, "the model needs ") && std::strstr(gpu.reason, "are free on emulated"),
              "%s", gpu.reason);
        CHECK(free_memory() == bytes - 1, "not everything was freed");
    }
    const Setting memory("RWKV_CUDA_EMULATED_MEMORY", std::to_string(bytes));
    Gpu gpu(reference);
    size_t states = 0;
    char reason[256] = "";
    std::vector<rwkv_cuda_state*> all;
    rwkv_cuda_status status = RWKV_CUDA_OK;
    while (status == RWKV_CUDA_OK && states++ < 10000) {
        rwkv_cuda_state* state = nullptr;
        status = rwkv_cuda_new_state(gpu.model, &state, reason, sizeof reason);
        if (state)
            all.push_back(state);
    }
    CHECK(status == RWKV_CUDA_NO_MEMORY && std::strstr(reason, "a state needs "), "%s", reason);
    for (rwkv_cuda_state* state : all)
        rwkv_cuda_free_state(state);
}

TEST(copies_are_timed) {
    const Setting little("RWKV_CUDA_EMULATED_MEMORY", "64000000"); // large buffers take the emulator long
    rwkv_cuda_device device{};
    char reason[256] = "";
    const int count = rwkv_cuda_devices(&device, 1, reason, sizeof reason);
    double rate = 0.0;
    CHECK(rwkv_cuda_copy_rate(0, &rate, reason, sizeof reason) == RWKV_CUDA_OK && rate > 0.0, "%s", reason);
    CHECK(rwkv_cuda_copy_rate(count, &rate, reason, sizeof reason) == RWKV_CUDA_UNAVAILABLE &&
              std::strstr(reason, "there is no GPU number "),
          "%s", reason);
    if (!emulated())
        return;
    const Setting too_little("RWKV_CUDA_EMULATED_MEMORY", "1000000");
    CHECK(rwkv_cuda_copy_rate(0, &rate, reason, sizeof reason) == RWKV_CUDA_NO_MEMORY);
}

TEST(a_failing_device_is_reported) {
    if (!emulated())
        return;
    Reference reference(config_of(Version::k6, 1, 64, 64, 96, 50), "q8g32", false);
    Gpu gpu(reference);
    GpuState state(gpu);
    std::vector<float> logits(50);
    for (const char* launch : {"1", "3", "9"}) {
        const Setting failure("RWKV_CUDA_EMULATED_FAILURE", launch);
        for (const int count : {1, 5}) {
            char reason[256] = "";
            const rwkv_cuda_status status =
                rwkv_cuda_forward(gpu.model, kTokens.data(), count, state.state, logits.data(), 0, nullptr,
                                  nullptr, reason, sizeof reason);
            CHECK(status == RWKV_CUDA_FAILED && std::strstr(reason, "launch failure"), "%d: %s", int(status),
                  reason);
        }
    }
}

TEST(too_little_memory_midway_leaves_states_as_they_were) {
    if (!emulated())
        return;
    const Config config = config_of(Version::k7, 2, 64, 64, 96, 50);
    Reference reference(config, "q8g32", false);
    Gpu gpu(reference);
    GpuState state(gpu);
    std::vector<float> logits(2 * 50), expected(50);
    State host(config);
    reference.cpu->forward(std::span(kTokens).first(2), host, expected.data(), false, {});
    feed(gpu, std::span(kTokens).first(2), state, logits.data(), false);
    const auto before = state.values();
    const rwkv_cuda_poll never = [](void*) { return 0; };
    char reason[256] = "";
    const auto forward = [&](const char* failure, int count, rwkv_cuda_poll poll) {
        const Setting setting("RWKV_CUDA_EMULATED_FAILURE", failure);
        return rwkv_cuda_forward(gpu.model, &kTokens[2], count, state.state, logits.data(), 0, poll, nullptr,
                                 reason, sizeof reason);
    };
    // a prompt with a way back, in its second layer; a single token, before anything has run
    CHECK(forward("12 memory", 5, never) == RWKV_CUDA_NO_MEMORY, "%s", reason);
    CHECK(same(state.values(), before), "after a prompt");
    CHECK(forward("11 memory", 1, nullptr) == RWKV_CUDA_NO_MEMORY, "%s", reason);
    CHECK(same(state.values(), before), "after a token");
    reference.cpu->forward(std::span(kTokens).subspan(2, 1), host, expected.data(), false, {});
    feed(gpu, std::span(kTokens).subspan(2, 1), state, logits.data(), false);
    CHECK(same(logits.data(), expected.data(), 50), "the token again");
    // without a way back
    CHECK(forward("10 memory", 5, nullptr) == RWKV_CUDA_FAILED && std::strstr(reason, "out of memory"), "%s",
          reason);
    GpuState other(gpu);
    rwkv_cuda_state* batch[2] = {state.state, other.state};
    const auto step = [&](const char* failure) {
        std::optional<Setting> setting;
        if (failure)
            setting.emplace("RWKV_CUDA_EMULATED_FAILURE", failure);
        return rwkv_cuda_forward_batch(gpu.model, kTokens.data(), batch, 2, logits.data(), reason,
                                       sizeof reason);
    };
    CHECK(step("9 memory") == RWKV_CUDA_FAILED, "%s", reason);
    // while launches are recorded: no graph then, but nothing has run
    const auto kept = other.values();
    CHECK(step("5 memory") == RWKV_CUDA_FAILED, "%s", reason);
    CHECK(same(other.values(), kept), "after a batch that was to be recorded");
    State same_host(config);
    GpuState fresh(gpu);
    batch[0] = fresh.state;
    for (int time = 0; time < 3; ++time) {
        reference.cpu->forward(std::span(kTokens).first(1), same_host, expected.data(), false, {});
        CHECK(step(nullptr) == RWKV_CUDA_OK, "%s", reason);
        CHECK(same(logits.data(), expected.data(), 50), "batch %d after that", time);
    }
}

TEST(a_full_gpu_does_not_hide_the_others) {
    if (!emulated())
        return;
    rwkv_cuda_device devices[2] = {};
    char reason[256] = "";
    const auto count = [&] { return rwkv_cuda_devices(devices, 2, reason, sizeof reason); };
    const Setting full("RWKV_CUDA_EMULATED_FULL", "0");
    CHECK(count() == -1 && std::strstr(reason, "no GPU can be used: out of memory"), "%s", reason);
    const Setting two("RWKV_CUDA_EMULATED_DEVICES", "2");
    CHECK(count() == 2 && devices[0].memory > 0 && devices[0].free_memory == 0, "%s", reason);
    CHECK(devices[1].free_memory > 0);
    Reference reference(config_of(Version::k7, 1, 64, 64, 96, 50), "q8g32", false);
    Gpu gpu(reference, RWKV_CUDA_UNAVAILABLE);
    CHECK(std::strstr(gpu.reason, "the GPU cannot be used: out of memory"), "%s", gpu.reason);
}

TEST(a_model_on_the_second_gpu_is_used_from_any_thread) {
    if (!emulated())
        return;
    const Setting two("RWKV_CUDA_EMULATED_DEVICES", "2");
    const auto free_memory = [](int device) {
        rwkv_cuda_device devices[2] = {};
        char reason[256] = "";
        CHECK(rwkv_cuda_devices(devices, 2, reason, sizeof reason) == 2, "%s", reason);
        return devices[device].free_memory;
    };
    Reference reference(config_of(Version::k7, 1, 64, 64, 96, 50), "q8g32", true);
    const size_t first = free_memory(0), second = free_memory(1);
    std::vector<float> logits(50), found(50), many(kTokens.size() * 50);
    State host(reference.config);
    {
        Gpu gpu(reference, RWKV_CUDA_OK, 1);
        char reason[256] = "";
        const rwkv_cuda_poll never = [](void*) { return 0; };
        const auto on_a_thread = [](auto work) { std::thread(work).join(); };
        std::optional<GpuState> state, copy;
        on_a_thread([&] { state.emplace(gpu); });
        on_a_thread([&] { feed(gpu, std::span(kTokens).first(1), *state, found.data(), false); });
        on_a_thread([&] { copy.emplace(gpu); });
        on_a_thread([&] { rwkv_cuda_copy_state(copy->state, state->state, reason, sizeof reason); });
        on_a_thread(
            [&] { rwkv_cuda_write_state(copy->state, state->values().data(), reason, sizeof reason); });
        on_a_thread([&] {
            CHECK(rwkv_cuda_forward(gpu.model, &kTokens[1], 4, copy->state, many.data(), 0, never, nullptr,
                                    reason, sizeof reason) == RWKV_CUDA_OK,
                  "%s", reason);
        });
        on_a_thread([&] {
            CHECK(rwkv_cuda_forward_batch(gpu.model, &kTokens[5], &copy->state, 1, found.data(), reason,
                                          sizeof reason) == RWKV_CUDA_OK,
                  "%s", reason);
        });
        reference.cpu->forward(std::span(kTokens).first(6), host, logits.data(), false, {});
        CHECK(same(found, logits) && same(copy->values(), values_of(host)));
        CHECK(free_memory(0) == first && free_memory(1) < second);
        on_a_thread([&] { state.reset(); });
    }
    CHECK(free_memory(0) == first && free_memory(1) == second, "not everything was freed");
}
