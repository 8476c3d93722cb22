"""What a turn of a long conversation costs over HTTP, with states kept and without: `python -m benchmarks.serving MODEL`.

Two servers hold the same conversation, in turns; a program sends all of it with every message, as programs do. Told are
milliseconds to the first token, from sending the request. Then `--parallel` texts at once against one after the other, in tokens
per second.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from statistics import median
from typing import Any
from urllib.parse import urlsplit

WORDS = ["river", "stone", "letter", "window", "garden", "machine", "winter", "music", "answer"]


class Server:
    """`rwkv serve` on a free port."""

    def __init__(self, model: str, cache: str) -> None:
        command = [
            sys.executable,
            "-m",
            "rwkvcli",
            "-q",
            "--json",
            "serve",
            "-m",
            model,
            "--port",
            "0",
            "--cache",
            cache,
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._port = urlsplit(json.loads(self._process.stdout.readline())["url"]).port

    def post(self, path: str, body: dict[str, Any]) -> tuple[float, str, int]:
        """Seconds to the first piece of a stream, its text, and tokens of the prompt."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        begin = time.perf_counter()
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text, first, prompt = "", 0.0, 0
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            for choice in event["choices"]:
                piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
                if piece and not first:
                    first = time.perf_counter() - begin
                text += piece
            if event.get("usage"):
                prompt = event["usage"]["prompt_tokens"]
        connection.close()
        return first, text, prompt

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def conversation(model: str, turns: int, words: int, tokens: int) -> None:
    """The table of turns."""
    servers = {"kept": Server(model, "512MB"), "read anew": Server(model, "0")}
    rng, messages = random.Random(1), []
    print("| turn | tokens of the prompt | " + " | ".join(f"{name}, ms" for name in servers) + " |")
    print("|---:|---:|" + "---:|" * len(servers))
    try:
        for turn in range(1, turns + 1):
            messages.append({"role": "user", "content": " ".join(rng.choices(WORDS, k=words))})
            body = {"messages": messages, "max_tokens": tokens, "seed": turn, "logit_bias": {"0": -1000}}
            told = {name: server.post("/v1/chat/completions", body) for name, server in servers.items()}
            texts = {text for _, text, _ in told.values()}
            assert len(texts) == 1, "what is kept has changed an answer"
            if turn == 1 or not turn % 5:
                times = " | ".join(f"{1000 * first:.0f}" for first, _, _ in told.values())
                print(f"| {turn} | {told['kept'][2]} | {times} |", flush=True)
            messages.append({"role": "assistant", "content": texts.pop()})
    finally:
        for server in servers.values():
            server.stop()


def throughput(model: str, parallel: int, tokens: int, rounds: int = 5) -> None:
    """Texts at once against one after the other."""
    server = Server(model, "0")
    body = {"prompt": "Once upon a time", "max_tokens": tokens, "logit_bias": {"0": -1000}}
    rates: dict[int, list[float]] = {1: [], parallel: []}
    try:
        for _ in range(rounds):
            for count, found in rates.items():
                asks = [
                    threading.Thread(target=server.post, args=("/v1/completions", {**body, "seed": i}))
                    for i in range(count)
                ]
                begin = time.perf_counter()
                for ask in asks:
                    ask.start()
                for ask in asks:
                    ask.join()
                found.append(count * tokens / (time.perf_counter() - begin))
    finally:
        server.stop()
    for count, found in rates.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        print(f"{count} at once: {median(found):.1f} tokens/s ({spread}, {rounds} rounds)")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--words", type=int, default=60, help="of a message")
    parser.add_argument("--tokens", type=int, default=60, help="of an answer")
    parser.add_argument("--parallel", type=int, default=8)
    chosen = parser.parse_args()
    conversation(chosen.model, chosen.turns, chosen.words, chosen.tokens)
    print()
    throughput(chosen.model, chosen.parallel, chosen.tokens)


if __name__ == "__main__":
    main()
