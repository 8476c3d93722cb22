"""`rwkv serve` as a process, and a question to it."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cli_runner import RWKV, environment, start

ASKED = {"messages": [{"role": "user", "content": "Hello"}], "seed": 1, "max_tokens": 30}


@contextmanager
def served(
    *args: str, command: Sequence[str] = RWKV, **env: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command on a free port, and the address that it tells."""
    arguments = ("serve", "-m", "demo", "--port", "0", "--json", *args)
    process = start(*arguments, command=command, env=environment(**env))
    try:
        assert process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            more = process.stdout.read(1)
            assert more, process.communicate()
            line += more
        said = json.loads(line)
        assert said["model"] == "demo"
        yield process, said["url"]
    finally:
        process.kill()
        process.communicate()


def ask(url: str, body: Any = ASKED, **headers: str) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        f"{url}/chat/completions", data, {"Content-Type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
