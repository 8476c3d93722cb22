"""How an engine is measured: a process of its own answers requests, one line of JSON each, on stdin and stdout.

    {"test": "pp", "n": 512}   -> {"ns": [one number]}           a prompt at once, from an empty state
    {"test": "tg", "n": 64}    -> {"ns": [n numbers]}            token after token, from an empty state
    {"test": "logits", "n": 8} -> {"logits": [[V], ...]}         of every position of that prompt
    {"test": "facts"}          -> {"name": ..., "bytes_per_token": ...}

Every engine gets the same token ids. Between requests a process waits in a read and takes no processor time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

Answer = dict[str, Any]


def token_ids(n: int) -> list[int]:
    """The first n of a fixed random sequence of ids that every World vocabulary has."""
    import numpy as np

    return [int(i) for i in np.random.default_rng(0).integers(1, 65529, 1 << 16)[:n]]


def claim_stdout() -> TextIO:
    """The stream of answers; from here on what an engine prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(answers: TextIO, tests: dict[str, Callable[[int], Answer]]) -> None:
    """Say that the engine is ready, and answer requests until stdin ends."""
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(tests[request["test"]](request.get("n", 0))) + "\n")
        answers.flush()
