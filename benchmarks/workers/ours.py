"""This engine. Arguments: MODEL THREADS."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.workers.protocol import Answer, claim_stdout, serve, token_ids
from rwkvcli import Model
from rwkvcli.services.benchmarking import bytes_per_token


def main(path: str, threads: int) -> None:
    answers = claim_stdout()
    model = Model.load(Path(path), device="cpu", threads=threads)

    def pp(n: int) -> Answer:
        tokens, state = token_ids(n), model.new_state()
        begin = time.perf_counter_ns()
        model.forward(tokens, state)
        return {"ns": [time.perf_counter_ns() - begin]}

    def tg(n: int) -> Answer:
        state, times = model.new_state(), []
        for token in token_ids(n):
            begin = time.perf_counter_ns()
            model.forward([token], state)
            times.append(time.perf_counter_ns() - begin)
        return {"ns": times}

    def logits(n: int) -> Answer:
        return {"logits": model.forward(token_ids(n), model.new_state(), all_logits=True).tolist()}

    def facts(n: int) -> Answer:
        layers = sum(plan.layout == "kn" for plan in model.file.plan.values())
        density = None
        if layers:
            model.backend.count_active_channels(True)  # type: ignore[attr-defined]
            tg(n)
            model.backend.count_active_channels(False)  # type: ignore[attr-defined]
            density = sum(model.backend.active_channels) / (layers * model.config.n_ffn * n)  # type: ignore[attr-defined]
        state = sum(array.nbytes for array in model.new_state().to_numpy().values())
        return {
            "name": f"rwkv {model.file.recipe}",
            "ffn_density": density,
            "bytes_per_token": bytes_per_token(model.file, state, density),
        }

    serve(answers, {"pp": pp, "tg": tg, "logits": logits, "facts": facts})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
