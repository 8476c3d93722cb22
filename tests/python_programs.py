"""Programs in a Python of their own, for what a test cannot do to the process it runs in."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

Result = subprocess.CompletedProcess[str]


def run_python(code: str, *args: str) -> Result:
    command = [sys.executable, "-P", "-c", textwrap.dedent(code), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def interrupt_a_long_prompt(model: Path, **options: object) -> Result:
    """Ctrl-C stops a prompt of a model that is loaded with `options`, and the state is then what it was: prints "fine"."""
    return run_python(
        """
        import json, os, signal, sys, threading
        import numpy as np
        from rwkvcli import Model
        model = Model.load(sys.argv[1], **json.loads(sys.argv[2]))
        state = model.new_state()
        model.forward([1, 2, 3], state)
        before = state.to_numpy()
        # on a GPU it waits, and must not be in the way
        other = threading.Thread(target=lambda: model.new_state().copy().to_numpy())
        threading.Timer(0.2, other.start).start()
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            model.forward(np.ones(4_000_000, np.int32), state)
        except KeyboardInterrupt:
            pass
        else:
            sys.exit("was not interrupted")
        after = state.to_numpy()  # after a whole prompt it would be another one
        assert all(np.array_equal(before[k], after[k]) for k in before)
        assert state.tokens_seen == 3
        model.forward([4], state)
        other.join()
        print("fine")
        """,
        str(model),
        json.dumps(options),
    )
