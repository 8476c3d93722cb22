"""The tools that made the demo model: a run that is stopped and resumed, the self-check, the packed file."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvcli import Model

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--layers", "2", "--batch", "2", "--window", "32", "--segment", "256", "--threads", "1"]

POWER_CUT = """
import os, runpy, sys

checkpoints = 0

def replace(source, target, real=os.replace):
    global checkpoints
    real(source, target)
    checkpoints += str(target).endswith("checkpoint.pt")
    if checkpoints == 2:
        os._exit(9)

os.replace = replace
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script and ends it, without any clean-up, when the second checkpoint is in its place."""

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


def run(tool: str, *args: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, args)]
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a book of random words."""
    draw = random.Random(1)
    words = ["the", "rain", "had", "stopped", "and", "a", "lamp", "was", "lit"]
    lines = [" ".join(draw.choices(words, k=9)).capitalize() + "." for _ in range(400)]
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "book.txt").write_text("\n\n".join(lines))
    return folder


@needs_torch
def test_a_stopped_run_goes_on_to_the_same_weights(corpus: Path, tmp_path: Path) -> None:
    steps = ["--corpus", corpus, "--steps", "5", "--report-seconds", "0", *SMALL]
    whole = run("train_demo.py", *steps, "--run-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    stopped = tmp_path / "stopped"
    train = [ROOT / "tools" / "train_demo.py", *steps, "--run-dir", stopped]
    cut = subprocess.run([sys.executable, "-c", POWER_CUT, *map(str, train)], check=False, timeout=100)
    assert cut.returncode == 9
    assert not (stopped / "demo-weights.safetensors").exists()
    resumed = run("train_demo.py", *steps, "--run-dir", stopped)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith("resumed at step 2,")
    weights = [tmp_path / name / "demo-weights.safetensors" for name in ("whole", "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    packed = run("pack_demo.py", weights[0], tmp_path / "packed.safetensors")
    assert packed.returncode == 0, packed.stderr
    model = Model.load(tmp_path / "packed.safetensors")
    assert (model.config.version, model.config.n_layer, model.config.vocab_size) == ("7", 2, 256)
    assert "".join(model.generate("The rain", max_tokens=4, temperature=0.0))


@needs_torch
def test_self_check() -> None:
    done = run("train_demo.py", "--self-check")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_torch
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps", "0"], "--steps is at least 1"),
        (["--corpus", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_refusals(corpus: Path, tmp_path: Path, args: list[str], message: str) -> None:
    done = run("train_demo.py", "--corpus", corpus, "--run-dir", tmp_path / "run", *args)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
