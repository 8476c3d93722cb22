"""The PyPI package `rwkv`. Arguments: MODEL.pth THREADS STRATEGY (such as "cpu fp32")."""

from __future__ import annotations

import os
import sys
import time

from benchmarks.workers.protocol import Answer, claim_stdout, serve, token_ids

os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}


def main(path: str, threads: int, strategy: str) -> None:
    answers = claim_stdout()
    import torch
    from rwkv.model import RWKV

    torch.set_num_threads(threads)
    model = RWKV(model=path.removesuffix(".pth"), strategy=strategy)

    def pp(n: int) -> Answer:
        tokens = token_ids(n)
        begin = time.perf_counter_ns()
        model.forward(tokens, None)
        return {"ns": [time.perf_counter_ns() - begin]}

    def tg(n: int) -> Answer:
        state, times = None, []
        for token in token_ids(n):
            begin = time.perf_counter_ns()
            _, state = model.forward([token], state)
            times.append(time.perf_counter_ns() - begin)
        return {"ns": times}

    def logits(n: int) -> Answer:
        return {"logits": model.forward(token_ids(n), None, full_output=True)[0].float().tolist()}

    serve(
        answers,
        {"pp": pp, "tg": tg, "logits": logits, "facts": lambda n: {"name": f"rwkv package, {strategy}"}},
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
