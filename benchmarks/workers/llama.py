"""llama.cpp, through llama-cpp-python's binding of its C interface. Arguments: MODEL.gguf THREADS.

Only `llama_decode` is timed: no sampling, no Python wrapper classes.
"""

from __future__ import annotations

import ctypes
import sys
import time

import llama_cpp as ll
import numpy as np

from benchmarks.workers.protocol import Answer, claim_stdout, serve, token_ids

CONTEXT = 4096
MOST_LOGITS = 64


def main(path: str, threads: int) -> None:
    answers = claim_stdout()
    silent = ll.llama_log_callback(lambda level, text, data: None)
    ll.llama_log_set(silent, ctypes.c_void_p(0))
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, 2048, 512  # llama-bench's sizes
    params.n_threads = params.n_threads_batch = threads
    params.no_perf = True
    context = ll.llama_init_from_model(model, params)
    if not model or not context:
        raise SystemExit(f"{path}: llama.cpp cannot load it")
    memory = ll.llama_get_memory(context)

    def decode(batch: ll.llama_batch) -> int:
        begin = time.perf_counter_ns()
        code = ll.llama_decode(context, batch)
        ll.llama_synchronize(context)
        end = time.perf_counter_ns()
        if code != 0:
            raise RuntimeError(f"llama_decode: {code}")
        return end - begin

    def pp(n: int) -> Answer:
        ll.llama_memory_clear(memory, True)
        tokens = (ctypes.c_int32 * n)(*token_ids(n))
        return {"ns": [decode(ll.llama_batch_get_one(tokens, n))]}

    def tg(n: int) -> Answer:
        ll.llama_memory_clear(memory, True)
        tokens = (ctypes.c_int32 * n)(*token_ids(n))
        times = []
        for i in range(n):
            one = ctypes.cast(ctypes.addressof(tokens) + 4 * i, ctypes.POINTER(ctypes.c_int32))
            times.append(decode(ll.llama_batch_get_one(one, 1)))
        return {"ns": times}

    def logits(n: int) -> Answer:
        assert n <= MOST_LOGITS
        ll.llama_memory_clear(memory, True)
        batch = ll.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, token in enumerate(token_ids(n)):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        decode(batch)
        vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
        rows = [np.ctypeslib.as_array(ll.llama_get_logits_ith(context, i), (vocabulary,)) for i in range(n)]
        answer = {"logits": [row.tolist() for row in rows]}
        ll.llama_batch_free(batch)
        return answer

    serve(answers, {"pp": pp, "tg": tg, "logits": logits, "facts": lambda n: facts(path)})


def facts(path: str) -> Answer:
    """Bytes of a token: all tensors but the embedding (one row) and block 0's unused ones, and the state twice."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    total, layers, width = 0.0, 0, 0
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            width = int(tensor.shape[0])
            total += tensor.n_bytes / int(tensor.shape[1])
        elif not tensor.name.startswith("blk.0.time_mix_v") or "value" in tensor.name:
            total += tensor.n_bytes
        layers += tensor.name.endswith("time_mix_key.weight")
    head = int(reader.fields["rwkv7.wkv.head_size"].parts[-1][0])
    return {"name": "llama.cpp", "bytes_per_token": round(total + 2 * 4 * layers * width * (2 + head))}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
