"""`rwkv state`: built, looked at, compared, converted, refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Outcome, Terminal, environment, rwkv_inside, start
from quant_models import checkpoint, quantized

from quant.checkpoints import open_checkpoint
from quant.checkpoints.write import write_pth, write_safetensors
from quant.synthetic import synthetic_arch
from rwkvcli import Model, State

TEXT = "It was a fine day. " * 30
MODEL = ["-m", "small.safetensors"]


@pytest.fixture
def built(folder: Path) -> Path:
    """A folder with manual.state, which has read TEXT."""
    (folder / "manual.txt").write_text(TEXT + "\n")
    done = rwkv_inside("state", "build", *MODEL, "-f", "manual.txt", "-o", "manual.state", cwd=folder)
    assert (done.code, done.out) == (0, "manual.state\n")
    assert done.err.startswith("570 tokens seen, ")
    return folder


def test_a_built_state_continues_as_the_text_would(built: Path) -> None:
    short = ["--seed", "2", "--max-tokens", "20"]
    for new in ([], ["And then"]):
        done = rwkv_inside("generate", *MODEL, *short, "--state", "manual.state", *new, cwd=built)
        whole = rwkv_inside("generate", *MODEL, *short, TEXT + "".join(new), cwd=built)
        assert (done.code, done.err) == (0, "")
        assert done.out == whole.out
    model = Model.load(built / "small.safetensors")
    state = State.load(built / "manual.state", model)
    expected = model.new_state()
    model.forward(list(TEXT.encode()), expected)
    assert state.tokens_seen == 570
    assert all((state.to_numpy()[name] == value).all() for name, value in expected.to_numpy().items())


def test_the_same_text_gives_the_same_bytes(built: Path) -> None:
    def build(*args: str) -> bytes:
        done = rwkv_inside("-q", "state", "build", *MODEL, *args, "-o", "x.state", "--force", cwd=built)
        assert (done.code, done.err) == (0, "")
        return (built / "x.state").read_bytes()

    whole = (built / "manual.state").read_bytes()
    assert build("-f", "manual.txt", "-t", "1") == whole
    (built / "a.txt").write_text(TEXT[:99])
    (built / "b.txt").write_text(TEXT[99:])
    build("-f", "a.txt")
    (built / "x.state").rename(built / "a.state")
    assert build("-f", "b.txt", "--state", "a.state") == whole


def test_info_and_verify(built: Path) -> None:
    done = rwkv_inside("state", "info", "manual.state", "--json", cwd=built)
    found = json.loads(done.out)
    assert found["tokens_seen"] == 570
    assert found["bytes"] == (built / "manual.state").stat().st_size
    assert (found["goes_on"], found["ended"], found["seed"], found["draws"]) == (True, False, None, 0)
    assert found["model"]["version"] == "7"
    assert found["source"] == "small.pth"
    page = rwkv_inside("state", "info", "manual.state", cwd=built).out
    assert "RWKV-7, made from small.pth" in page
    assert "it goes on where it was left" in page
    args = ["generate", *MODEL, "--seed", "9", "--max-tokens", "5", "--presence-penalty", "1"]
    assert rwkv_inside(*args, "--state", "manual.state", "--save-state", "on.state", cwd=built).code == 0
    later = json.loads(rwkv_inside("state", "info", "on.state", "--json", cwd=built).out)
    assert (later["tokens_seen"], later["seed"], later["draws"]) == (575, 9, 5)
    assert later["penalized"] > 0
    assert "seed 9, 5 draws" in rwkv_inside("state", "info", "on.state", cwd=built).out
    done = rwkv_inside("state", "verify", "manual.state", "on.state", cwd=built)
    assert (done.code, done.err) == (0, "")
    assert done.out == "manual.state: sound, 570 tokens seen\non.state: sound, 575 tokens seen\n"
    done = rwkv_inside("state", "verify", "on.state", *MODEL, "--json", cwd=built)
    assert json.loads(done.out) == {"path": "on.state", "sound": True, "model": "small.safetensors"}
    for args in (
        ["state", "verify", "on.state", "-m", "demo"],
        ["-m", "demo", "state", "verify", "on.state"],
    ):
        other = rwkv_inside(*args, cwd=built)
        assert (other.code, other.out) == (4, "")
        assert other.err.startswith("error: on.state: the state of another model (small.pth, RWKV-7, ")
    default = rwkv_inside("state", "verify", "on.state", cwd=built, env={"RWKV_MODEL": "demo"})
    assert (default.code, default.out) == (0, "on.state: sound, 575 tokens seen\n")


def test_every_damaged_byte_is_found(built: Path) -> None:
    data = (built / "manual.state").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    draw = np.random.default_rng(1)
    spots = [*draw.integers(8, header - 64, 8), *draw.integers(header, len(data), 8)]
    from rwkvcli.errors import FormatError
    from rwkvcli.services.states import verify

    for spot in map(int, spots):
        (built / "bad.state").write_bytes(data[:spot] + bytes([data[spot] ^ 4]) + data[spot + 1 :])
        with pytest.raises(FormatError):
            verify(built / "bad.state")
    (built / "bad.state").write_bytes(data[:-7])
    done = rwkv_inside("state", "verify", "bad.state", cwd=built)
    assert (done.code, done.out) == (4, "")
    assert done.err == "error: bad.state: not a state file, or a damaged one\n"


def test_every_state_is_verified(built: Path) -> None:
    data = (built / "manual.state").read_bytes()
    (built / "bad.state").write_bytes(data[:-1] + bytes([data[-1] ^ 4]))
    damaged = "bad.state: its checksum is wrong: the state file is damaged\n"
    sound = "manual.state: sound, 570 tokens seen\n"
    one = rwkv_inside("state", "verify", "bad.state", "manual.state", cwd=built)
    assert one == Outcome(4, damaged + sound, f"error: {damaged}")
    both = rwkv_inside("state", "verify", "bad.state", "bad.state", "manual.state", "--json", cwd=built)
    assert [json.loads(line)["sound"] for line in both.out.splitlines()] == [False, False, True]
    several = rwkv_inside("state", "verify", "bad.state", "small.safetensors", cwd=built)
    assert (several.code, several.err) == (4, "error: 2 refused: bad.state, small.safetensors\n")
    as_any_file = rwkv_inside("verify", "bad.state", "manual.state", cwd=built)
    assert (as_any_file.code, as_any_file.err) == (4, f"error: {damaged}")
    assert as_any_file.out.splitlines()[1].startswith("manual.state: sound, sha256 ")


def test_diff(built: Path) -> None:
    same = rwkv_inside("state", "diff", "manual.state", "manual.state", "--json", cwd=built)
    found = json.loads(same.out)
    assert (found["equal"], found["relative"], found["same_model"]) == (True, 0.0, True)
    assert rwkv_inside("state", "build", *MODEL, "-o", "b.state", stdin="other", cwd=built).code == 0
    found = json.loads(rwkv_inside("state", "diff", "manual.state", "b.state", "--json", cwd=built).out)
    a, b = (
        State.load(built / n, Model.load(built / "small.safetensors")) for n in ("manual.state", "b.state")
    )
    x, y = (s.to_numpy()["blocks.1.att.state"].astype(np.float64) for s in (a, b))
    expected = math.sqrt(((x - y) ** 2).sum() / (((x**2).sum() + (y**2).sum()) / 2))
    assert found["layers"][1]["att.state"] == pytest.approx(expected)
    assert (found["equal"], found["tokens_seen"]) == (False, [570, 5])
    page = rwkv_inside("state", "diff", "manual.state", "b.state", cwd=built).out.splitlines()
    assert page[0].split() == ["layer", "att.state", "att.x_prev", "ffn.x_prev"]
    assert len(page) == 4
    assert page[-1].endswith("; 570 and 5 tokens seen")
    rwkv_inside("state", "build", "-m", "demo", "-o", "d.state", stdin="other", cwd=built)
    other = rwkv_inside("state", "diff", "manual.state", "d.state", cwd=built)
    assert (other.code, other.out) == (4, "")
    assert "are states of other sizes" in other.err


def tuned(folder: Path) -> dict[str, np.ndarray]:
    """Matrices as state tuning makes them for small.safetensors, exact in bfloat16."""
    draw = np.random.default_rng(3)
    values = {f"blocks.{i}.att.time_state": draw.integers(-8, 8, (2, 64, 64)) for i in range(2)}
    return {name: (matrix / 16).astype(np.float32) for name, matrix in values.items()}


@pytest.mark.parametrize("name", ["t.pth", "t.safetensors", "t.st", "t.state"])
def test_tuned_states_are_imported(folder: Path, name: str) -> None:
    matrices = tuned(folder)
    turned = name in ("t.st", "t.state")
    stored = {key: np.ascontiguousarray(m.transpose(0, 2, 1)) if turned else m for key, m in matrices.items()}
    if name.endswith(".pth"):
        write_pth(folder / name, stored, "bf16")
    else:
        write_safetensors(folder / name, stored, "f16")
    done = rwkv_inside("state", "import", name, *MODEL, "-o", "new.state", cwd=folder)
    assert (done.code, done.out) == (0, "new.state\n")
    assert ("[head, key, value]" in done.err) == turned
    model = Model.load(folder / "small.safetensors")
    state = State.load(folder / "new.state", model)
    assert state.tokens_seen == 0
    for key, value in state.to_numpy().items():
        wanted = matrices.get(key.replace(".state", ".time_state"))
        assert (value == (0 if wanted is None else wanted)).all()
    other = rwkv_inside(
        "state",
        "import",
        name,
        *MODEL,
        "-o",
        "o.state",
        "--not-transposed" if turned else "--transposed",
        cwd=folder,
    )
    assert other.code == 0
    swapped = State.load(folder / "o.state", model).to_numpy()["blocks.0.att.state"]
    assert (swapped == matrices["blocks.0.att.time_state"].transpose(0, 2, 1)).all()
    used = rwkv_inside(
        "generate", *MODEL, "--state", "new.state", "--seed", "1", "--max-tokens", "9", "x", cwd=folder
    )
    assert used.out == "".join(model.generate("x", 9, seed=1, state=state))


def test_export_and_back(built: Path) -> None:
    model = Model.load(built / "small.safetensors")
    whole = State.load(built / "manual.state", model).to_numpy()
    for name, exact in (("o.pth", True), ("o.safetensors", True), ("o.st", False)):
        done = rwkv_inside("state", "export", "manual.state", "-o", name, cwd=built)
        assert (done.code, done.out) == (0, f"{name}\n")
        with open_checkpoint(built / name) as file:
            assert file.names == ("blocks.0.att.time_state", "blocks.1.att.time_state")
            found = file.read("blocks.1.att.time_state")
            expected = whole["blocks.1.att.state"]
            if exact:
                assert (found == expected).all()
            else:
                assert (found.transpose(0, 2, 1) == expected.astype(np.float16)).all()
        back = rwkv_inside("state", "import", name, *MODEL, "-o", "back.state", "--force", cwd=built)
        assert back.code == 0
        matrix = State.load(built / "back.state", model).to_numpy()["blocks.1.att.state"]
        assert (matrix == (expected if exact else expected.astype(np.float16))).all()
    again = rwkv_inside("state", "export", "manual.state", "-o", "o.pth", cwd=built)
    assert (again.code, again.err.splitlines()[0]) == (2, "error: o.pth exists already")
    odd = rwkv_inside("state", "export", "manual.state", "-o", "o.bin", cwd=built)
    assert (odd.code, odd.err.splitlines()[0]) == (2, "error: o.bin: no such format")


def test_what_float16_does_not_hold_is_not_exported_to_it(built: Path) -> None:
    write_pth(built / "large.pth", {name: m * np.float32(1e6) for name, m in tuned(built).items()})
    assert rwkv_inside("state", "import", "large.pth", *MODEL, "-o", "large.state", cwd=built).code == 0
    done = rwkv_inside("state", "export", "large.state", "-o", "large.st", cwd=built)
    assert (done.code, done.out) == (4, "")
    assert done.err == (
        "error: large.state: blocks.0.att.time_state has values past the range of f16\n"
        "hint: export it as .pth or .safetensors, which hold float32\n"
    )
    assert not (built / "large.st").exists()
    done = rwkv_inside("state", "export", "large.state", "-o", "large.safetensors", cwd=built)
    assert done.code == 0


def test_tuned_states_of_other_models_are_refused(built: Path) -> None:
    matrices = tuned(built)
    write_pth(built / "v6-small.pth", matrices)
    done = rwkv_inside("state", "import", "v6-small.pth", *MODEL, "-o", "w.state", cwd=built)
    assert done.code == 0
    assert done.err.endswith("warning: its name speaks of RWKV-6, and the model is RWKV-7\n")
    write_pth(built / "short.pth", dict(list(matrices.items())[:1]))
    write_pth(built / "slim.pth", {name: m[:1] for name, m in matrices.items()})
    write_pth(built / "nan.pth", {name: m * np.float32("nan") for name, m in matrices.items()})
    for name, message in (
        ("short.pth", "short.pth: the tuned state of another model: 1 matrices of [2, 64, 64]"),
        ("slim.pth", "slim.pth: the tuned state of another model: 2 matrices of [1, 64, 64]"),
        ("small.pth", "small.pth: not a tuned state: it has no blocks.N.att.time_state"),
        ("nan.pth", "nan.pth: tensor blocks.0.att.time_state has 8192 values that are NaN or infinite"),
        ("manual.txt", "manual.txt is not a checkpoint"),
    ):
        done = rwkv_inside("state", "import", name, *MODEL, "-o", "n.state", cwd=built)
        assert (done.code, done.out) == (4, "")
        assert done.err.splitlines()[0] == f"error: {message}"
        assert not (built / "n.state").exists()


@pytest.mark.parametrize("verb", [["generate", "x"], ["chat"], ["bench"], ["doctor"]])
def test_a_state_is_no_model(built: Path, verb: list[str]) -> None:
    assert rwkv_inside("state", "export", "manual.state", "-o", "t.pth", "-q", "--force", cwd=built).code == 0
    for name, message in (
        (
            "manual.state",
            "manual.state is a state, not a model\nhint: --state takes it; -m takes the model that made it",
        ),
        ("t.pth", "t.pth holds an initial state (time_state), not a model"),
    ):
        done = rwkv_inside(*verb, "-m", name, cwd=built)
        assert (done.code, done.err) == (4, f"error: {message}\n")


@pytest.mark.parametrize("verb", [["show"], ["quantize", "--to", "int8"], ["export", "--to", "hf"]])
def test_a_state_is_no_checkpoint(built: Path, verb: list[str]) -> None:
    done = rwkv_inside(*verb, "manual.state", cwd=built)
    assert (done.code, done.out) == (4, "")
    assert done.err == ("error: manual.state is a state, not a model\nhint: `rwkv state info` shows it\n")


def test_rwkv_4_has_no_matrices(tmp_path: Path) -> None:
    quantized(checkpoint(tmp_path / "v4.pth", synthetic_arch("4", 2, 64, 256)), tmp_path / "v4.st", "f32")
    done = rwkv_inside("state", "build", "-m", "v4.st", "-o", "a.state", stdin="text", cwd=tmp_path)
    assert done.code == 0
    done = rwkv_inside("state", "export", "a.state", "-o", "a.pth", cwd=tmp_path)
    assert (done.code, done.err) == (2, "error: a.state: an RWKV-4 state has no matrices to export\n")
    page = rwkv_inside("state", "diff", "a.state", "a.state", cwd=tmp_path).out
    assert page.split("\n")[0].split() == ["layer", "att.aa", "att.bb", "att.pp", "att.x_prev", "ffn.x_prev"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["build", "-o", "x.state"], "no text to read: give -f FILE, or pipe text in (stdin is empty)"),
        (["build", "-f", "small.pth"], "no OUT: write `rwkv state build -m MODEL -f TEXT -o STATE`"),
        (["build", "text", "-o", "x"], "write `rwkv state build -m MODEL -f TEXT -o STATE`"),
        (["build", "-f", "small.pth", "-o", "-"], "-o takes a file, and stdout is none"),
        (["build", "-f", "small.pth", "-o", "small.pth"], "small.pth exists already"),
        (["info"], "write `rwkv state info STATE`"),
        (["info", "a", "-o", "b"], "`state info` writes no file: leave -o out"),
        (["diff", "a"], "write `rwkv state diff STATE STATE`"),
        (["verify"], "write `rwkv state verify STATE...`"),
        (["mend"], "`mend` is not one of build, info, diff, export, import, verify"),
    ],
)
def test_misuse(folder: Path, args: list[str], message: str) -> None:
    done = rwkv_inside("state", *args, *(MODEL if args[0] == "build" else []), cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert f"error: {message}" in done.err or message in done.err


def test_a_build_can_be_stopped_in_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(b"It was a fine day. " * 100_000)
    args = ["state", "build", "-m", "demo", "-f", "long.txt", "-o", "s"]
    for keep in (False, True):
        terminal = Terminal(*args, *(["--keep"] if keep else []), cwd=tmp_path)
        terminal.until("reading")
        terminal.child.sendintr()
        done = terminal.finish()
        assert done.code == 130
        assert (tmp_path / "s").exists() == keep
        assert b"Traceback" not in terminal.raw
    seen = State.load(tmp_path / "s", Model.load("demo")).tokens_seen
    assert done.out == f"note: s holds {seen} of 1900000 bytes of the text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.txt", "s"]


def test_a_state_is_written_whole_or_not_at_all(built: Path) -> None:
    before = (built / "manual.state").read_bytes()
    args = ["generate", *MODEL, "--state", "manual.state", "--update", "--max-tokens", "100"]
    for wait in (0.0, 0.02, 0.05):
        process = start(*args, cwd=built)
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(wait)
        process.kill()
        process.communicate(timeout=30)
        if (built / "manual.state").read_bytes() != before:
            assert rwkv_inside("state", "verify", "manual.state", cwd=built).code == 0
    assert rwkv_inside(*args, cwd=built).code == 0  # what a killed process left behind is in nobody's way
    assert not list(built.glob(".*"))


def test_the_python_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "states.md").read_text("utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert State.load("morning.state", Model.load("demo")).tokens_seen == 26


_GENERATE = """
from rwkvcli.cli.app import main
assert main(["generate", "-m", "tiny.st", "-f", "t.txt", "--max-tokens", "2", "--save-state", "s"]) == 0
"""
_CHAT = """
from pathlib import Path
from rwkvcli import Model
from rwkvcli.services.conversation import Conversation
from rwkvcli.services.snapshots import Snapshots
model = Model.load("tiny.st")
talk = Conversation(model, Snapshots(model))
assert talk.read(Path("t.txt")).finish == "stop"
talk.state().save(Path("s"))
"""
_PEAK = """
import sys
status = open("/proc/self/status").read()  # ru_maxrss begins with that of the process that started this one
print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("code", "growth"), [(_GENERATE, 24_000), (_CHAT, 12_000)], ids=["generate -f", "/read"]
)
@pytest.mark.parametrize("vocabulary", [256, 65536])
def test_five_megabytes_take_no_more_memory_than_a_page(
    tmp_path: Path, vocabulary: int, code: str, growth: int
) -> None:
    made = checkpoint(tmp_path / "tiny.pth", synthetic_arch("4", 1, 16, vocabulary))
    quantized(made, tmp_path / "tiny.st", "f32")
    peaks = []
    for size in (50_000, 5_000_000):
        text = ("It was fine. " * size)[:size].encode()
        (tmp_path / "t.txt").write_bytes(text)
        done = subprocess.run(
            [sys.executable, "-P", "-c", code + _PEAK], cwd=tmp_path, env=environment(), capture_output=True,
            check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        peaks.append(int(done.stderr.split()[-1]))
    model = Model.load(tmp_path / "tiny.st")
    expected = len(model.tokenizer.encode_bytes(text)) + 2 if code == _GENERATE else None
    tokens = State.load(tmp_path / "s", model).tokens_seen
    assert tokens == (expected or len(model.tokenizer.encode_bytes(text.rstrip() + b"\n\n")))
    assert peaks[1] - peaks[0] < growth, peaks  # kB: for `generate` the text a few times, and no list of ids
