"""The other end of the protocol: a worker process and what it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Any

from benchmarks.models import ROOT


class Worker:
    """An engine in a process of its own. Use it as a context manager."""

    def __init__(self, label: str, module: str, *args: str, python: str = sys.executable) -> None:
        self.label = label
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.workers.{module}", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self._read()

    def ask(self, test: str, n: int = 0) -> Any:
        """The answer to one request, see protocol.py."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"test": test, "n": n}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label}: the process ended; set BENCH_VERBOSE=1 to see why")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
