// Stands in for librwkv_cuda in tests of the door to it: it reads all weights, computes nothing of a model,
// and fails as it is asked. Token 7 needs too much memory, token 8 breaks the device, device 1 is full; rows
// fail when stand_in_refuse_rows says so.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "cuda/abi.h"

#ifndef STAND_IN_ABI
#define STAND_IN_ABI RWKV_CUDA_ABI
#endif

struct rwkv_cuda_model {
    rwkv_cuda_config config;
    size_t bytes = 0;
    bool broken = false;
};
struct rwkv_cuda_state {
    rwkv_cuda_model* model;
    std::vector<float> values; // the first counts tokens
};

namespace {

std::atomic<int> models{0}, states{0}, inside{0}, overlaps{0};
std::atomic<int> calls_before_refusal{-1}; // of forward_rows, with too little memory
unsigned checksum = 0;

/// One call at a time is the caller's duty.
struct Inside {
    Inside() { overlaps += inside++ != 0; }
    ~Inside() { --inside; }
};

rwkv_cuda_status because(rwkv_cuda_status status, const char* text, char* reason, size_t size) {
    std::snprintf(reason, size, "%s", text);
    return status;
}

void read(const void* p, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i)
        checksum = checksum * 31 + static_cast<const uint8_t*>(p)[i];
}

size_t read(const rwkv_cuda_matrix& m) {
    read(m.q, m.q_bytes);
    read(m.s, m.s_bytes);
    read(m.d, m.d_bytes);
    read(m.cb, m.cb_bytes);
    return m.q_bytes + m.s_bytes + m.d_bytes + m.cb_bytes;
}

rwkv_cuda_status broken(char* reason, size_t size) {
    return because(RWKV_CUDA_FAILED, "the device fell off the bus", reason, size);
}

} // namespace

extern "C" {

/// What the tests ask of the stand-in itself.
RWKV_CUDA_API int stand_in_models() { return models; }
RWKV_CUDA_API int stand_in_states() { return states; }
RWKV_CUDA_API int stand_in_overlaps() { return overlaps; }
RWKV_CUDA_API int stand_in_refuse_first() { return calls_before_refusal = 0; }
RWKV_CUDA_API int stand_in_refuse_second() { return calls_before_refusal = 1; }

RWKV_CUDA_API int rwkv_cuda_abi() { return STAND_IN_ABI; }

RWKV_CUDA_API int rwkv_cuda_devices(rwkv_cuda_device* devices, int room, char* reason, size_t size) {
#ifdef STAND_IN_NO_DRIVER
    (void)devices, (void)room;
    because(RWKV_CUDA_UNAVAILABLE, "there is no driver", reason, size);
    return -1;
#else
    (void)reason, (void)size;
    for (int i = 0; i < 2 && i < room; ++i)
        devices[i] = {"Stand-in", 8, 9, 4, size_t(1) << 33, i == 0 ? size_t(1) << 32 : 1000};
    return 2;
#endif
}

RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_copy_rate(int device, double* rate, char* reason, size_t size) {
    if (device != 0)
        return because(RWKV_CUDA_NO_MEMORY, "device 1 has 1000 bytes free", reason, size);
    *rate = 5e11;
    return RWKV_CUDA_OK;
}

/// A byte for every entry of the matrices.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_required(const rwkv_cuda_config* config, const rwkv_cuda_weights* w,
                                                  size_t* bytes, size_t* state_bytes, char*, size_t) {
    *bytes = size_t(w->emb.n * w->emb.k + w->head.n * w->head.k);
    for (int layer = 0; layer < config->n_layer; ++layer)
        *bytes += size_t(w->blocks[layer].key.n * w->blocks[layer].key.k);
    *state_bytes = size_t(config->n_layer) * 100;
    return RWKV_CUDA_OK;
}

RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_open(const rwkv_cuda_config* config, const rwkv_cuda_weights* w,
                                              int device, rwkv_cuda_model** model, char* reason,
                                              size_t size) {
    if (device == 1)
        return because(RWKV_CUDA_NO_MEMORY, "device 1 has 1000 bytes free", reason, size);
    if (device != 0)
        return because(RWKV_CUDA_UNAVAILABLE, "there is no such device", reason, size);
    auto* opened = new rwkv_cuda_model{*config};
    opened->bytes = read(w->emb) + read(w->head);
    for (int layer = 0; layer < config->n_layer; ++layer) {
        const rwkv_cuda_block& b = w->blocks[layer];
        for (const rwkv_cuda_matrix* m :
             {&b.receptance, &b.key,       &b.value,     &b.gate,      &b.output,    &b.maa_w1,
              &b.maa_w2[0],  &b.maa_w2[1], &b.maa_w2[2], &b.maa_w2[3], &b.maa_w2[4], &b.decay_w1,
              &b.decay_w2,   &b.w1,        &b.w2,        &b.a1,        &b.a2,        &b.v1,
              &b.v2,         &b.g1,        &b.g2,        &b.ffn_key,   &b.ffn_value, &b.ffn_receptance})
            opened->bytes += read(*m);
        for (const float* v :
             {b.ln1.weight, b.ln1.bias, b.ln2.weight, b.ln2.bias,  b.ln_x.weight, b.ln_x.bias,
              b.mix_x,      b.mix_r,    b.mix_w,      b.mix_k,     b.mix_v,       b.mix_a,
              b.mix_g,      b.decay,    b.bonus,      b.w0,        b.a0,          b.v0,
              b.k_k,        b.k_a,      b.r_k,        b.ffn_mix_k, b.ffn_mix_r})
            if (v)
                read(v, size_t(config->n_embd) * sizeof(float));
    }
    ++models;
    *model = opened;
    return RWKV_CUDA_OK;
}

RWKV_CUDA_API void rwkv_cuda_close(rwkv_cuda_model* model) {
    --models;
    delete model;
}

RWKV_CUDA_API size_t rwkv_cuda_model_bytes(const rwkv_cuda_model* model) { return model->bytes; }

RWKV_CUDA_API size_t rwkv_cuda_state_floats(const rwkv_cuda_model* model) {
    const rwkv_cuda_config& c = model->config;
    const int per_layer = c.version == 0 ? 5 * c.n_embd : (2 + c.head_size) * c.n_embd;
    return size_t(c.n_layer) * size_t(per_layer);
}

RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_new_state(rwkv_cuda_model* model, rwkv_cuda_state** state, char*,
                                                   size_t) {
    const Inside here;
    *state = new rwkv_cuda_state{model, std::vector<float>(rwkv_cuda_state_floats(model))};
    ++states;
    return RWKV_CUDA_OK;
}

RWKV_CUDA_API void rwkv_cuda_free_state(rwkv_cuda_state* state) {
    const Inside here;
    --states;
    delete state;
}

RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_copy_state(rwkv_cuda_state* to, const rwkv_cuda_state* from, char*,
                                                    size_t) {
    const Inside here;
    to->values = from->values;
    return RWKV_CUDA_OK;
}

RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_read_state(const rwkv_cuda_state* state, float* values, char*,
                                                    size_t) {
    const Inside here;
    std::memcpy(values, state->values.data(), state->values.size() * sizeof(float));
    return RWKV_CUDA_OK;
}

RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_write_state(rwkv_cuda_state* state, const float* values, char*,
                                                     size_t) {
    const Inside here;
    std::memcpy(state->values.data(), values, state->values.size() * sizeof(float));
    return RWKV_CUDA_OK;
}

/// Logits: entry v after the token number n of a sequence, counted from 1, is 1000 n + token + v.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_forward(rwkv_cuda_model* model, const int32_t* tokens, int count,
                                                 rwkv_cuda_state* state, float* logits, int all,
                                                 rwkv_cuda_poll poll, void* context, char* reason,
                                                 size_t size) {
    const Inside here;
    if (model->broken)
        return broken(reason, size);
    const std::vector<float> before = state->values;
    for (int i = 0; i < count; ++i) {
        if (poll && poll(context)) {
            state->values = before;
            return RWKV_CUDA_CANCELLED;
        }
        if (tokens[i] == 7)
            return because(RWKV_CUDA_NO_MEMORY, "no room for the prompt", reason, size);
        if (tokens[i] == 8) {
            model->broken = true;
            return broken(reason, size);
        }
        state->values[0] += 1;
        for (int v = 0; v < model->config.vocab_size; ++v)
            logits[(all ? i : 0) * model->config.vocab_size + v] =
                1000 * state->values[0] + float(tokens[i]) + float(v);
    }
    return RWKV_CUDA_OK;
}

/// Logits: entry v of row number n of a sequence, counted from 1, is 1000 n + v.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_forward_rows(rwkv_cuda_model* model, const float* x,
                                                      const float* v_first, size_t stride, int count,
                                                      rwkv_cuda_state* const* batch, int state_count,
                                                      float* logits, int wanted, char* reason, size_t size) {
    const Inside here;
    if (calls_before_refusal >= 0 && calls_before_refusal-- == 0)
        return because(RWKV_CUDA_NO_MEMORY, "no room for the rows", reason, size);
    for (int i = 0; i < count; ++i) {
        read(x + size_t(i) * stride, size_t(model->config.n_embd) * sizeof(float));
        if (v_first)
            read(v_first + size_t(i) * stride, size_t(model->config.n_embd) * sizeof(float));
        float& seen = batch[state_count == 1 ? 0 : i]->values[0];
        seen += 1;
        for (int v = 0; i >= count - wanted && v < model->config.vocab_size; ++v)
            *logits++ = 1000 * seen + float(v);
    }
    return RWKV_CUDA_OK;
}

#ifndef STAND_IN_INCOMPLETE
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_forward_batch(rwkv_cuda_model* model, const int32_t* tokens,
                                                       rwkv_cuda_state* const* batch, int count,
                                                       float* logits, char* reason, size_t size) {
    for (int i = 0; i < count; ++i) {
        const rwkv_cuda_status status =
            rwkv_cuda_forward(model, tokens + i, 1, batch[i], logits + i * model->config.vocab_size, 0,
                              nullptr, nullptr, reason, size);
        if (status != RWKV_CUDA_OK)
            return status;
    }
    return RWKV_CUDA_OK;
}
#endif

} // extern "C"
