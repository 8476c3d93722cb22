"""`rwkv quantize --eval`: the same numbers as `rwkv perplexity --base`, told, reported, kept in the file and shown."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Terminal, rwkv, rwkv_inside

from quant.container.reader import ModelFile
from rwkvcli.services.locks import locked

TEXT = "The cat sat on the mat, and the old man looked at it.\n" * 6
MADE = "small-int4.safetensors"


@pytest.fixture
def place(folder: Path) -> Path:
    (folder / "text.txt").write_bytes(TEXT.encode())
    return folder


def quantize(place: Path, *args: str, source: str = "small.pth", **more: Any) -> Any:
    return rwkv("quantize", source, "--to", "int4", "--eval", "text.txt", *args, cwd=place, **more)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


@pytest.mark.parametrize("windows", [(), ("--ctx", "20")])
def test_the_record_is_what_perplexity_says(place: Path, windows: tuple[str, ...]) -> None:
    done = quantize(place, *windows, "--report", "r.json", "--json", "-q")
    assert (done.code, done.err) == (0, "")
    kept = json.loads(done.out)["quality"]
    assert kept == json.loads((place / "r.json").read_text())["quality"]
    assert kept == json.loads(rwkv("show", MADE, "--json", cwd=place).out)["report"]["quality"]
    assert kept["ctx"] == (20 if windows else None)
    args = ("perplexity", "text.txt", "-m", MADE, "--base", "small.safetensors", *windows, "--json")
    found = json.loads(rwkv(*args, cwd=place).out)
    del found["model"], found["base"]["model"], found["base"]["drift"]
    text = {"file": "text.txt", "sha256": hashlib.sha256(TEXT.encode()).hexdigest()}
    assert kept == {**rounded(found), "text": text}
    assert kept["base"]["kl"]["mean"] > 0
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_people_are_told_by_quantize_and_by_show(place: Path) -> None:
    done = quantize(place)
    assert (done.code, done.out) == (0, MADE + "\n")
    told = done.err[done.err.index("quality, measured on text.txt against the source\n") :].splitlines()
    assert [line.split("  ")[0] for line in told[1:8]] == [
        "perplexity", "bits per byte", "tokens", "base", "ratio", "KL", "same top",
    ]  # fmt: skip
    shown = rwkv("show", MADE, cwd=place).out.splitlines()
    assert shown[-8:] == told[:8]
    assert quantize(place, "--ctx", "20", "--force").code == 0
    assert ", windows of 20\n" in rwkv("show", MADE, cwd=place).out


def test_bytes_do_not_depend_on_threads_or_levels(place: Path) -> None:
    made = []
    for threads, level in (("1", "scalar"), ("3", "")):
        env = {"RWKV_CPU_LEVEL": level} if level else {}
        assert quantize(place, "-t", threads, "--force", env=env).code == 0
        made.append((place / MADE).read_bytes())
    assert made[0] == made[1]
    assert quantize(place, "--force", source="small.safetensors").code == 0
    with ModelFile.open(place / MADE) as file:
        assert (
            json.dumps(file.report["quality"], sort_keys=True, separators=(",", ":"))
            .replace('"', '\\"')
            .encode()
            in made[0]
        )


def test_the_weights_are_those_of_a_run_without(place: Path) -> None:
    assert quantize(place).code == 0
    assert rwkv("quantize", "small.pth", "--to", "int4", "-o", "plain.safetensors", cwd=place).code == 0
    with ModelFile.open(place / MADE) as a, ModelFile.open(place / "plain.safetensors") as b:
        assert a.plan.keys() == b.plan.keys()
        assert all((a.decode(name) == b.decode(name)).all() for name in a.plan)
        quality = a.report.pop("quality")
        assert a.report == b.report
        assert quality["text"]["file"] == "text.txt"


def test_a_dry_run_foretells_a_file_with_the_record(place: Path) -> None:
    size = json.loads(quantize(place, "--dry-run", "--json").out)["bytes"]
    sized = ("--max-size", str(size + 100))
    told = json.loads(quantize(place, *sized, "--dry-run", "--json").out)
    assert quantize(place, *sized).code == 0
    with ModelFile.open(place / MADE) as made:
        assert made.size == told["bytes"] <= size + 100
        assert {name: item.encoding for name, item in made.plan.items()} == told["encodings"]


@pytest.mark.parametrize("to", ["bf16", "f32"])
def test_what_loses_nothing_is_its_source(place: Path, to: str) -> None:
    done = rwkv("quantize", "small.pth", "--to", to, "--eval", "-", "--json", "-q", stdin=TEXT, cwd=place)
    assert done.code == 0
    quality = json.loads(done.out)["quality"]
    assert quality["text"]["file"] == "stdin"
    assert (quality["base"]["kl"]["max"], quality["base"]["ratio"], quality["base"]["same_top"]) == (0, 1, 1)


def test_an_epsilon_of_the_group_norm_is_the_bases_too(place: Path) -> None:
    args = ("--to", "f32", "--eval", "text.txt", "--gn-eps", "1e-3", "--json", "-q", "-o", "e.safetensors")
    for source in ("small.pth", "small.safetensors"):
        done = rwkv("quantize", source, *args, "--force", cwd=place)
        assert json.loads(done.out)["quality"]["base"]["kl"]["max"] == 0


def test_fail_over(place: Path) -> None:
    met = quantize(place, "--fail-over", "kl=100", "--fail-over", "changed-top=1", "-q")
    assert (met.code, met.err) == (0, "")
    missed = quantize(place, "--fail-over", "kl=1e-6", "--force", "-q")
    assert (missed.code, missed.out) == (6, MADE + "\n")
    first, hint = missed.err.splitlines()
    assert first.startswith("error: kl is ")
    assert hint == f"hint: {MADE} was written all the same"
    assert rwkv("show", MADE, cwd=place).code == 0


@pytest.mark.parametrize(
    ("args", "data", "code", "message"),
    [
        (["--eval", "empty.txt"], "", 2, "empty.txt: the text is empty"),
        (["--eval", "-"], "", 2, "the text is empty"),
        (["--eval", "nowhere.txt"], "", 3, "--eval is a text file"),
        (["--eval", "text.txt", "--fail-over", "speed=1"], "", 2, "no measured value 'speed'"),
        (["--fail-over", "kl=1"], "", 2, "--fail-over needs a text"),
        (["--ctx", "20"], "", 2, "--ctx needs a text"),
        (["--eval", "text.txt", "--ctx", "0"], "", 2, "`0` is below 1"),
        (["--eval", "text.txt", "-o", "text.txt", "--force"], "", 2, "text.txt is the text to measure on"),
    ],
)
def test_a_refusal_leaves_nothing(place: Path, args: list[str], data: str, code: int, message: str) -> None:
    (place / "empty.txt").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    done = rwkv("quantize", "small.pth", "--to", "int4", *args, stdin=data, cwd=place)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_ctrl_c_while_it_measures_leaves_nothing(place: Path) -> None:
    (place / "text.txt").write_text(TEXT * 2000)
    before = sorted(place.iterdir())
    terminal = Terminal("quantize", "small.pth", "--to", "int4", "--eval", "text.txt", cwd=place)
    terminal.until("measuring: perplexity")
    assert any(path.name.startswith(".rwkv-") for path in place.iterdir())
    terminal.child.sendintr()
    assert terminal.finish().code == 130
    assert sorted(place.iterdir()) == before


def test_what_a_killed_run_left_is_removed(place: Path) -> None:
    """But not what belongs to a run that is going on, nor what is none."""
    folders = [place / f".rwkv-{name}" for name in ("dead", "alive", "other", "bare")]
    for folder in folders:
        folder.mkdir()
        (folder / "source.safetensors").write_bytes(b"weights")
        if folder.name != ".rwkv-bare":
            (folder / "lock").touch()
    (folders[2] / "more").touch()
    with locked(folders[1] / "lock"):
        assert quantize(place).code == 0
    assert [folder.exists() for folder in folders] == [False, True, True, True]


@pytest.mark.parametrize("odd", [rb"7", rb"{\"mean\":\"\\u001b[31m\"}"])
def test_a_record_that_is_odd_is_shown_as_it_is(place: Path, odd: bytes) -> None:
    assert quantize(place).code == 0
    data = (place / MADE).read_bytes()
    begin = data.index(rb"\"kl\":{") + len(rb"\"kl\":")
    end = data.index(rb"}", begin) + 1
    (place / MADE).write_bytes(data[:begin] + odd.ljust(end - begin) + data[end:])
    done = rwkv("show", MADE, cwd=place)
    assert (done.code, done.err) == (0, "")
    assert "\nKL " in done.out
    assert "\x1b" not in done.out


ODD = [None, True, "x", [], {}, 5, -1, 1.5e308, 10**400]


def test_odd_reports_are_shown(folder: Path) -> None:
    """What is no number, or one that no float holds, is shown as it is."""
    made = folder / "odd.safetensors"
    assert rwkv_inside("quantize", "small.pth", "--to", "int4", "-o", made.name, cwd=folder).code == 0
    data = made.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for odd in ODD:
        header = json.loads(data[8 : 8 + length])
        row = dict.fromkeys(("encodings", "weights", "bits", "bytes", "error"), odd)
        base = {"kl": {"mean": odd, "stderr": odd}, "same_top": odd, "same_top_stderr": odd, "ratio": odd}
        header["__metadata__"]["report"] = json.dumps(
            {"classes": {"emb": row, "att": odd}, "nf4": {"error": odd}, "nf4_instead": odd,
             "quality": {"perplexity": odd, "stderr": odd, "tokens": odd, "text": odd, "base": base}}
        )  # fmt: skip
        text = json.dumps(header).encode().ljust(length)
        made.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        shown = rwkv_inside("show", made.name, cwd=folder)
        assert (shown.code, shown.err) == (0, "") and "quality, measured on" in shown.out
