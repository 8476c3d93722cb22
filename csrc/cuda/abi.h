// The C interface of librwkv_cuda: a library without Python, and without a word of CUDA in its interface,
// that the extension opens when a GPU is asked for. Nothing here throws: what can fail returns a status and
// leaves its reason, one line without a full stop, in the caller's buffer.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define RWKV_CUDA_API __declspec(dllexport)
#else
#define RWKV_CUDA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/// Both sides are built together; a library of another number is not used.
#define RWKV_CUDA_ABI 3

typedef enum {
    RWKV_CUDA_OK = 0,
    RWKV_CUDA_UNAVAILABLE = 1, ///< no driver, no such device, a device that these kernels do not run on
    RWKV_CUDA_NO_MEMORY = 2,
    RWKV_CUDA_CANCELLED = 3,
    RWKV_CUDA_FAILED = 4, ///< the device failed; the model is of no more use
} rwkv_cuda_status;

typedef struct {
    char name[128];
    int major, minor; ///< compute capability
    int multiprocessors;
    size_t memory, free_memory; ///< bytes
} rwkv_cuda_device;

/// The values of rwkv::Version, rwkv::Encoding and rwkv::Layout.
typedef struct {
    int version, n_layer, n_embd, n_head, head_size, n_ffn, vocab_size;
    float group_norm_eps, layer_norm_eps;
} rwkv_cuda_config;

/// A matrix as rwkv::Matrix describes it, with the bytes of its parts. n is 0 where there is none.
typedef struct {
    int encoding, layout, n, k, group, n_pad, k_pad, stride;
    const uint8_t* q;
    const int8_t* s;
    const float* d;
    const uint8_t* cb;
    size_t q_bytes, s_bytes, d_bytes, cb_bytes;
} rwkv_cuda_matrix;

typedef struct {
    const float *weight, *bias; ///< null where there is none
} rwkv_cuda_norm;

/// rwkv::Block, member by member; pointers in host memory, read while the model is opened and not later.
typedef struct {
    rwkv_cuda_norm ln1, ln2, ln_x;
    const float *mix_x, *mix_r, *mix_w, *mix_k, *mix_v, *mix_a, *mix_g;
    rwkv_cuda_matrix receptance, key, value, gate, output;
    const float *decay, *bonus;
    rwkv_cuda_matrix maa_w1, maa_w2[5], decay_w1, decay_w2;
    rwkv_cuda_matrix w1, w2, a1, a2, v1, v2, g1, g2;
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k;
    const float *ffn_mix_k, *ffn_mix_r;
    rwkv_cuda_matrix ffn_key, ffn_value, ffn_receptance;
} rwkv_cuda_block;

/// Without an embedding (n = 0) these are the last blocks of a model, n_layer of them, and its head: what
/// goes in are rows, and never tokens.
typedef struct {
    rwkv_cuda_matrix emb, head;
    rwkv_cuda_norm ln0, ln_out;
    const rwkv_cuda_block* blocks; ///< [n_layer]
} rwkv_cuda_weights;

typedef struct rwkv_cuda_model rwkv_cuda_model;
typedef struct rwkv_cuda_state rwkv_cuda_state;

/// Returns true to stop; asked on the calling thread between pieces of work.
typedef int (*rwkv_cuda_poll)(void* context);

RWKV_CUDA_API int rwkv_cuda_abi(void);

/// How many devices there are (the first `room` are written), or -1 with a reason. One that cannot be used
/// now has no free memory; when none can, that is the reason.
RWKV_CUDA_API int rwkv_cuda_devices(rwkv_cuda_device* devices, int room, char* reason, size_t reason_size);

/// Bytes that copies on a device read and write a second, measured.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_copy_rate(int device, double* rate, char* reason,
                                                   size_t reason_size);

/// Bytes of a device's memory that rwkv_cuda_open would take, and that a state would. Asks no device.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_required(const rwkv_cuda_config* config,
                                                  const rwkv_cuda_weights* weights, size_t* bytes,
                                                  size_t* state_bytes, char* reason, size_t reason_size);

/// Copies the weights to device number `device`.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_open(const rwkv_cuda_config* config,
                                              const rwkv_cuda_weights* weights, int device,
                                              rwkv_cuda_model** model, char* reason, size_t reason_size);
RWKV_CUDA_API void rwkv_cuda_close(rwkv_cuda_model* model);
/// Bytes on the device that the model holds.
RWKV_CUDA_API size_t rwkv_cuda_model_bytes(const rwkv_cuda_model* model);

/// A state lives on the model's device, and no longer than the model. The new one is that before the first
/// token.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_new_state(rwkv_cuda_model* model, rwkv_cuda_state** state,
                                                   char* reason, size_t reason_size);
RWKV_CUDA_API void rwkv_cuda_free_state(rwkv_cuda_state* state);
/// Takes over the values of a state of the same model.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_copy_state(rwkv_cuda_state* to, const rwkv_cuda_state* from,
                                                    char* reason, size_t reason_size);
/// Between the device and one float32 array in the order of rwkv::State::export_entries: of every block
/// att.x_prev [C], att.state [H, value, key] (v4: att.aa, att.bb, att.pp [C]), ffn.x_prev [C].
RWKV_CUDA_API size_t rwkv_cuda_state_floats(const rwkv_cuda_model* model);
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_read_state(const rwkv_cuda_state* state, float* values, char* reason,
                                                    size_t reason_size);
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_write_state(rwkv_cuda_state* state, const float* values,
                                                     char* reason, size_t reason_size);

/// Feeds `count` >= 1 tokens (each below vocab_size) to `state`. Writes the logits of the last, or of every
/// one when `all`: [count, vocab_size], host memory. When `poll` (it may be null) says so, the status is
/// RWKV_CUDA_CANCELLED. The state is then as it was; likewise when the status is RWKV_CUDA_NO_MEMORY, here
/// and in forward_batch.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_forward(rwkv_cuda_model* model, const int32_t* tokens, int count,
                                                 rwkv_cuda_state* state, float* logits, int all,
                                                 rwkv_cuda_poll poll, void* context, char* reason,
                                                 size_t reason_size);
/// One token for each of `count` different states: logits [count, vocab_size], host memory.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_forward_batch(rwkv_cuda_model* model, const int32_t* tokens,
                                                       rwkv_cuda_state* const* states, int count,
                                                       float* logits, char* reason, size_t reason_size);

/// What the blocks before a model without an embedding leave behind: `count` >= 1 rows of the residual stream
/// [count, n_embd] and, for RWKV-7, of the first block's values beside them, `stride` floats apart, host
/// memory. The rows are consecutive tokens of one sequence when there is one state, else one token for each
/// of `count` different states. Writes the logits of the last `wanted` rows: [wanted, vocab_size], host
/// memory. When it fails, the states are undefined: only the caller can put both parts of one back.
RWKV_CUDA_API rwkv_cuda_status rwkv_cuda_forward_rows(rwkv_cuda_model* model, const float* x,
                                                      const float* v_first, size_t stride, int count,
                                                      rwkv_cuda_state* const* states, int state_count,
                                                      float* logits, int wanted, char* reason,
                                                      size_t reason_size);

#ifdef __cplusplus
}
#endif
