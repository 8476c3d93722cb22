"""Programs that use a model: signals, forks, daemon threads, and what their memory grows by."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest
from python_programs import interrupt_a_long_prompt, run_python
from small_models import ModelMaker

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

ANONYMOUS = """
def anonymous():  # kB of this process's memory that are no file's
    return sum(int(l.split()[1]) for l in open("/proc/self/smaps_rollup") if l.startswith("Anonymous:"))
"""


def growth(code: str, *args: str) -> int:
    """The kB that a program prints, which has anonymous() to find them out."""
    result = run_python(ANONYMOUS + textwrap.dedent(code), *args)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are delivered differently")
def test_ctrl_c_stops_a_long_prompt_and_keeps_the_state(make_model: ModelMaker) -> None:
    result = interrupt_a_long_prompt(make_model("7", "int8"), threads=2)
    assert (result.stdout, result.returncode) == ("fine\n", 0), result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_child_of_a_fork_computes_too(make_model: ModelMaker) -> None:
    result = run_python(
        """
        import os, sys
        import numpy as np
        from rwkvcli import Model
        model = Model.load(sys.argv[1], threads=3)
        state = model.new_state()
        expected = model.forward([1, 2], state.copy())
        child = os.fork()
        same = np.array_equal(model.forward([1, 2], state.copy()), expected)
        if child == 0:
            os._exit(0 if same else 1)
        _, status = os.waitpid(child, 0)
        sys.exit(0 if same and status == 0 else "the child's logits differ")
        """,
        str(make_model("7", "int8")),
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_child_of_a_fork_computes_while_the_parent_does(make_model: ModelMaker) -> None:
    result = run_python(
        """
        import os, sys, threading, time
        import numpy as np
        from rwkvcli import Model
        model = Model.load(sys.argv[1], threads=2)
        expected = model.forward([1, 2], model.new_state())
        busy = threading.Thread(target=model.forward, args=(np.ones(4_000_000, np.int32), model.new_state()), daemon=True)
        busy.start()
        begin = time.process_time()
        while time.process_time() < begin + 0.3:  # until it computes
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(model.forward([1, 2], model.new_state()), expected) else 1)
        _, status = os.waitpid(child, 0)
        assert busy.is_alive()
        os._exit(0 if status == 0 else 1)
        """,
        str(make_model("7", "int8")),
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals are delivered differently")
def test_waiting_for_the_model_can_be_interrupted(make_model: ModelMaker) -> None:
    result = run_python(
        """
        import os, signal, sys, threading, time
        import numpy as np
        from rwkvcli import Model
        from rwkvcli.errors import UsageError
        model = Model.load(sys.argv[1], threads=1)
        busy = threading.Thread(target=model.forward, args=(np.ones(4_000_000, np.int32), model.new_state()))
        busy.daemon = True
        busy.start()
        begin = time.process_time()
        while time.process_time() < begin + 0.3:  # until it computes
            time.sleep(0.01)
        for call in (lambda: model.forward([1], model.new_state()),
                     lambda: model.forward_batch([1], [model.new_state()])):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                call()
            except KeyboardInterrupt:
                continue
            sys.exit("was not interrupted")
        os._exit(0 if busy.is_alive() else 1)
        """,
        str(make_model("7", "int8")),
    )
    assert result.returncode == 0, result.stderr


def test_a_program_can_end_while_a_daemon_thread_computes(make_model: ModelMaker) -> None:
    for _ in range(3):
        result = run_python(
            """
            import sys, threading, time
            from rwkvcli import Model
            model = Model.load(sys.argv[1], threads=2)
            def work():
                state = model.new_state()
                while True:
                    model.forward([1] * 500, state)
            threading.Thread(target=work, daemon=True).start()
            begin = time.process_time()
            while time.process_time() < begin + 0.2:  # until it computes
                time.sleep(0.01)
            """,
            str(make_model("7", "int8")),
        )
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are delivered differently")
def test_a_signal_handler_cannot_use_the_model_it_interrupts(make_model: ModelMaker) -> None:
    result = run_python(
        """
        import os, signal, sys, threading, time
        import numpy as np
        from rwkvcli import Model
        from rwkvcli.errors import UsageError
        model = Model.load(sys.argv[1], threads=2)
        signal.signal(signal.SIGUSR1, lambda *_: model.forward([1], model.new_state()))
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        try:
            model.forward(np.ones(4_000_000, np.int32), model.new_state())
        except UsageError as error:
            print(error)
        """,
        str(make_model("7", "int8")),
    )
    assert (result.stdout, result.returncode) == ("this thread is evaluating the model already\n", 0), (
        result.stderr
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals are delivered differently")
@pytest.mark.parametrize("method", ["count_active_channels", "collect_inputs"])
def test_who_waits_for_an_evaluation_does_not_keep_it_from_ctrl_c(
    make_model: ModelMaker, method: str
) -> None:
    result = run_python(
        """
        import faulthandler, os, signal, sys, threading
        import numpy as np
        from rwkvcli import Model
        faulthandler.dump_traceback_later(30, exit=True)
        model = Model.load(sys.argv[1], threads=2)
        waits = threading.Timer(0.3, getattr(model.backend, sys.argv[2]), [True])
        waits.start()
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            model.forward(np.ones(4_000_000, np.int32), model.new_state())
        except KeyboardInterrupt:
            waits.join()
            print("fine")
        """,
        str(make_model("7", "int8")),
        method,
    )
    assert (result.stdout, result.returncode) == ("fine\n", 0), result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_prompt(make_model: ModelMaker) -> None:
    grown = growth(
        """
        import sys
        import numpy as np
        from rwkvcli import Model

        model = Model.load(sys.argv[1], threads=2)
        state = model.new_state()
        model.forward(np.ones(600, np.int32), state)
        before = anonymous()
        model.forward(np.ones(20_000, np.int32), state)
        for i in range(300):
            model.forward([i], state)
        assert all(np.isfinite(a).all() for a in state.to_numpy().values())
        print(anonymous() - before)
        """,
        str(make_model("7", "int8")),
    )
    # May stay: the ids twice, 80 each; a state's copy, values and arrays, 33 each; less than 200 of Python's own objects.
    # Must not: the smallest buffer of rows, 48 bytes (32 codes, a scale, three sums) for each token past a chunk, is 925.
    assert grown < 512  # kB


@pytest.mark.skipif(
    sys.platform != "linux" or not LARGE_PAGES.exists(),
    reason="this system has no large pages for whoever asks",
)
def test_the_rows_of_a_prompt_ask_for_large_pages(make_model: ModelMaker) -> None:
    result = run_python(
        """
        import sys
        from pathlib import Path
        from rwkvcli import Model

        model = Model.load(sys.argv[1], threads=1)
        model.forward([1] * 600, model.new_state())
        size = asking = 0
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if line.startswith("Size:"):
                size = int(line.split()[1])
            if line.startswith("VmFlags:") and "hg" in line.split():
                asking += size
        print(asking)
        """,
        str(make_model("7", "int8")),
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 1024  # kB; less comes out of the heap


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_prompts(make_model: ModelMaker) -> None:
    """A prompt takes a copy of the state with it; something small that stays lies in memory after each."""
    grown = growth(
        """
        import sys
        from rwkvcli import Model

        model = Model.load(sys.argv[1], threads=1)
        state = model.new_state()
        kept, sizes = [], []
        for _ in range(10):
            model.forward(list(range(20)), state)
            kept.append(bytearray(10_000))
            sizes.append(anonymous())
        print(sizes[-1] - sizes[0])
        """,
        str(make_model("7", "bf16", n_layer=20, n_embd=256)),
    )
    assert grown < 1024  # kB; a state has 1320
