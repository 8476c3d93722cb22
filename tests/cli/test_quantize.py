"""`rwkv quantize` and `rwkv show`: files, messages, refusals."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Terminal, rwkv, rwkv_inside, small_files
from links import link
from vocabularies import word_level_json

from quant.atomic import Replacement
from quant.checkpoints import open_checkpoint
from quant.checkpoints.write import write_pth
from quant.container.reader import ModelFile
from rwkvcli.cli.app import main


def test_it_writes_a_model_and_says_what_to_type_next(folder: Path) -> None:
    done = rwkv("quantize", "small.pth", "--to", "int4", cwd=folder)
    assert (done.code, done.out) == (0, "small-int4.safetensors\n")
    lines = done.err.splitlines()
    assert lines[0].split() == ["class", "format", "weights", "bits", "size", "error"]
    assert [line.split()[0] for line in lines[1:-2]] == [
        "emb", "att", "ffn", "low-rank", "head", "vectors", "total",
    ]  # fmt: skip
    assert lines[-1].endswith('try: rwkv generate -m small-int4.safetensors "Once upon a time"')
    assert " -> " in lines[-1]
    with ModelFile.open(folder / "small-int4.safetensors") as made:
        assert made.recipe == "int4"
    used = rwkv("generate", "-m", "small-int4.safetensors", "--max-tokens", "3", "x", cwd=folder)
    assert (used.code, used.err) == (0, "")


@pytest.mark.parametrize("kind", ["int8", "int6", "int5", "int4", "bf16", "f16", "f32"])
def test_every_format_makes_the_same_bytes_with_any_number_of_threads(folder: Path, kind: str) -> None:
    for threads in ("1", "3"):
        done = rwkv(
            "-q", "quantize", "small.pth", "--to", kind, "-o", f"{threads}.st", "-t", threads, cwd=folder
        )
        assert (done.code, done.out, done.err) == (0, f"{threads}.st\n", "")
    assert (folder / "1.st").read_bytes() == (folder / "3.st").read_bytes()


def test_an_unquantized_model_file_is_a_source(folder: Path) -> None:
    for source, out in (("small.pth", "a.st"), ("small.safetensors", "b.st")):
        assert rwkv("quantize", source, "--to", "int8", "-o", out, cwd=folder).code == 0
    with ModelFile.open(folder / "a.st") as a, ModelFile.open(folder / "b.st") as b:
        assert all(np.array_equal(a.decode(name), b.decode(name)) for name in a.plan)


def test_the_demo_can_be_quantized_in_one_line(tmp_path: Path) -> None:
    done = rwkv("quantize", "demo", "--to", "int4", "-o", "demo-int4.safetensors", "--force", cwd=tmp_path)
    assert (done.code, done.out) == (0, "demo-int4.safetensors\n")


def test_json_and_report(folder: Path) -> None:
    done = rwkv("--json", "quantize", "small.pth", "--to", "int8", "--report", "r.json", "-q", cwd=folder)
    assert (done.code, done.err) == (0, "")
    answer = json.loads(done.out)
    assert answer == json.loads((folder / "r.json").read_text())
    assert answer["path"] == "small-int8.safetensors"
    assert answer["bytes"] == (folder / "small-int8.safetensors").stat().st_size
    assert answer["classes"]["att"]["error"] < 1e-4


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    done = rwkv("quantize", "small.pth", "--to", "int8", "--dry-run", cwd=folder)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("small-int8.safetensors: RWKV-7, 521,344 parameters\n")
    assert done.out.endswith("; nothing was written\n")
    told = json.loads(rwkv("quantize", "small.pth", "--to", "int8", "--dry-run", "--json", cwd=folder).out)
    assert sorted(folder.iterdir()) == before
    done = rwkv("quantize", "small.pth", "--to", "int8", "--dry-run", "--report", "f.json", cwd=folder)
    assert done.out.endswith("; nothing but the report was written\n")
    assert json.loads((folder / "f.json").read_text()) == told
    rwkv("quantize", "small.pth", "--to", "int8", cwd=folder)
    assert abs(told["bytes"] / (folder / "small-int8.safetensors").stat().st_size - 1) < 0.05


def test_options_reach_the_file(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(word_level_json())
    args = ["--gn-eps", "1e-5", "--ffn-value", "kn", "--tokenizer", "tokenizer.json"]
    assert rwkv("quantize", "small.pth", "--to", "int8", "-o", "x.st", *args, cwd=folder).code == 0
    with ModelFile.open(folder / "x.st") as made:
        assert made.group_norm_eps == 1e-5
        assert made.plan["blocks.0.ffn.value.weight"].layout == "kn"
        assert (made.tokenizer, made.tokenizer_bytes()) == ("json", word_level_json())


def make_nan(folder: Path) -> None:
    with open_checkpoint(folder / "small.pth") as source:
        tensors = {name: source.read(name).copy() for name in source.names}
    tensors["blocks.1.ffn.key.weight"][3, 4] = np.nan
    write_pth(folder / "nan.pth", tensors)


def make_wrong_dims(folder: Path) -> None:
    with open_checkpoint(folder / "small.pth") as source:
        tensors = {name: source.read(name).copy() for name in source.names}
    tensors["blocks.1.ffn.key.weight"] = tensors["blocks.1.ffn.key.weight"][:, :-1].copy()
    write_pth(folder / "dims.pth", tensors)


def make_unknown(folder: Path) -> None:
    write_pth(folder / "unknown.pth", {"transformer.wte.weight": np.zeros((4, 4), np.float32)})


def make_hostile(folder: Path) -> None:
    """A torch zip file whose pickle would run a command."""
    import zipfile

    with zipfile.ZipFile(folder / "hostile.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch hacked\x85R.")
        archive.writestr("archive/version", b"3\n")


def make_truncated(folder: Path) -> None:
    (folder / "short.pth").write_bytes((folder / "small.pth").read_bytes()[:-5000])
    (folder / "short.safetensors").write_bytes((folder / "small.safetensors").read_bytes()[:-5000])


def make_newer(folder: Path) -> None:
    data = (folder / "small.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + size].replace(b'"format_version":"0"', b'"format_version":"9"')
    (folder / "newer.safetensors").write_bytes(data[:8] + header + data[8 + size :])


def make_nothing(folder: Path) -> None:
    (folder / "empty.pth").touch()
    (folder / "text.pth").write_text("this is no checkpoint, this is a text of some length\n")
    (folder / "sub").mkdir()


@pytest.mark.parametrize(
    ("make", "source", "code", "message"),
    [
        (make_nothing, "nowhere.pth", 3, "nowhere.pth does not exist"),
        (make_nothing, "sub", 3, "sub is a folder"),
        (make_nothing, "sub/nowhere.pth", 3, "sub/nowhere.pth does not exist"),
        (make_nothing, "", 3, "the name of the model is empty"),
        (make_nothing, "empty.pth", 4, "empty.pth is empty"),
        (make_nothing, "text.pth", 4, "text.pth is not a checkpoint"),
        (make_truncated, "short.pth", 4, "short.pth"),
        (make_truncated, "short.safetensors", 4, "short.safetensors"),
        (make_hostile, "hostile.pth", 4, "system"),
        (make_wrong_dims, "dims.pth", 4, "blocks.1.ffn.key.weight"),
        (make_nan, "nan.pth", 4, "blocks.1.ffn.key.weight has values that are NaN or infinite"),
        (make_unknown, "unknown.pth", 4, "unknown.pth holds a transformer, not RWKV"),
        (make_newer, "newer.safetensors", 4, "newer.safetensors is a model file of version 9"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_bad_sources(folder: Path, make: object, source: str, code: int, message: str) -> None:
    assert callable(make)
    make(folder)
    before = sorted(folder.rglob("*"))
    done = rwkv("quantize", source, "--to", "int4", "-o", "out.st", cwd=folder)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") <= 2
    assert "Traceback" not in done.err
    assert sorted(folder.rglob("*")) == before
    if source != "nan.pth":  # what only shows in the weights is not seen in the header
        shown = rwkv("show", source, cwd=folder)
        assert (shown.code, shown.out, shown.err.count("\n") <= 2) == (code, "", True)


def test_a_traceback_comes_with_v_only(folder: Path) -> None:
    done = rwkv("show", "nowhere.pth", "-v", cwd=folder)
    assert done.code == 3
    assert done.err.startswith("Traceback")
    assert "error: nowhere.pth does not exist" in done.err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-o", "small.safetensors"], 2, "small.safetensors exists already"),
        (["-o", "small.pth", "--force"], 2, "small.pth is the source itself"),
        (["-o", "nowhere/x.st"], 2, "the folder nowhere does not exist"),
        (["-o", "."], 2, "is a folder"),
        (["-o", "-"], 2, "-o takes a file, and stdout is none"),
        (["--report", "-"], 2, "--report takes a file, and stdout is none"),
        (["--report", "small.pth"], 2, "small.pth is the source itself"),
        (["--report", "small.pth", "--force"], 2, "small.pth is the source itself"),
        (["--report", "linked.pth", "--force"], 2, "linked.pth is the source itself"),
        (["-o", "linked.pth", "--force"], 2, "linked.pth is the source itself"),
        (["--report", "hard.pth", "--force"], 2, "hard.pth is the source itself"),
        (["-o", "x.st", "--report", "./x.st"], 2, "x.st is the model file"),
        (["--report", "small.safetensors"], 2, "small.safetensors exists already"),
        (["--report", "nowhere/r.json"], 2, "the folder nowhere does not exist"),
        (["--report", "."], 2, "is a folder"),
        (["-o", "t.json", "--tokenizer", "t.json", "--force"], 2, "t.json is the tokenizer"),
        (["-o", "circle", "--force"], 2, "circle cannot be written: "),
        (["--gn-eps", "7"], 2, "a group norm epsilon of 7.0 makes no sense"),
        (["--tokenizer", "nowhere.json"], 3, "nowhere.json: no such file or directory"),
        (["--tokenizer", "small.pth"], 4, "small.pth: "),
    ],
)
def test_bad_requests(folder: Path, args: list[str], code: int, message: str) -> None:
    if "linked.pth" in args:
        link(folder / "linked.pth", "small.pth")
    (folder / "hard.pth").hardlink_to(folder / "small.pth")
    if "circle" in args:
        link(folder / "circle", "circle")
    (folder / "t.json").write_text("{}")

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.iterdir() if path.name != "circle"}

    before = contents()
    done = rwkv("quantize", "small.pth", "--to", "int8", *args, cwd=folder)
    assert (done.code, done.out) == (code, "")
    assert f"error: {message}" in done.err or message in done.err
    assert rwkv("quantize", "small.pth", "--to", "int8", "--dry-run", *args, cwd=folder) == done
    assert contents() == before
    assert (folder / "circle").is_symlink() == ("circle" in args)


@pytest.mark.parametrize("args", [["-o", "pipe"], ["--report", "pipe"]])
def test_what_is_no_regular_file_is_not_replaced(folder: Path, args: list[str]) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("Windows has no pipes in folders")
    os.mkfifo(folder / "pipe")
    done = rwkv("quantize", "small.pth", "--to", "int8", "--force", *args, cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: pipe is not a regular file\nhint: name another file\n"
    assert (folder / "pipe").is_fifo()
    assert not list(folder.glob("*int8*"))


def test_a_link_stays_and_what_it_leads_to_is_replaced(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    for name, target in (("out.st", "elsewhere/model.st"), ("r.json", "elsewhere/report.json")):
        link(folder / name, target)
    (folder / "elsewhere" / "report.json").write_text("old")
    args = ["quantize", "small.pth", "--to", "int8", "-o", "out.st", "--report", "r.json", "-q"]
    assert rwkv(*args, cwd=folder).err.startswith("error: r.json exists already\n")
    done = rwkv(*args, "--force", cwd=folder)
    assert (done.code, done.out, done.err) == (0, "out.st\n", "")
    assert (folder / "out.st").is_symlink() and (folder / "r.json").is_symlink()
    with ModelFile.open(folder / "elsewhere" / "model.st") as made:
        assert made.recipe == "int8"
    assert json.loads((folder / "elsewhere" / "report.json").read_text())["path"] == "out.st"
    assert sorted(path.name for path in (folder / "elsewhere").iterdir()) == ["model.st", "report.json"]


def test_a_report_that_cannot_be_written_does_not_take_the_model_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_path: Path, _content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "r.json")

    monkeypatch.chdir(folder)
    monkeypatch.setattr("rwkvcli.services.quantization.write_report", full)
    assert main(["quantize", "small.pth", "--to", "int8", "--report", "r.json"]) == 5
    out, err = capsys.readouterr()
    assert (out, err) == ("small-int8.safetensors\n", "error: r.json: no space left on device\n")
    with ModelFile.open(folder / "small-int8.safetensors") as made:
        assert made.recipe == "int8"


def test_a_forced_cpu_level_is_the_one_that_works(folder: Path) -> None:
    """The same messages as in generate, and the same bytes as without."""
    for level in ("sse9", "avx512"):
        env = {"RWKV_CPU_LEVEL": level}
        told = rwkv("generate", "-m", "demo", "--max-tokens", "1", "x", cwd=folder, env=env)
        made = rwkv("quantize", "small.pth", "--to", "int8", "-o", f"{level}.st", cwd=folder, env=env)
        assert made.code == told.code
        assert not told.code or (made.out, made.err) == ("", told.err)
    assert not (folder / "sse9.st").exists()
    for level in ("", "scalar"):
        env = {"RWKV_CPU_LEVEL": level}
        out = f"{level}.st"
        assert rwkv("quantize", "small.pth", "--to", "int4", "-o", out, cwd=folder, env=env).code == 0
    assert (folder / ".st").read_bytes() == (folder / "scalar.st").read_bytes()


def test_a_quantized_source_and_missing_words_are_refused(folder: Path) -> None:
    rwkv("quantize", "small.pth", "--to", "int8", cwd=folder)
    done = rwkv("quantize", "small-int8.safetensors", "--to", "int4", cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: small-int8.safetensors is quantized already (int8)\n")
    for args, message in (([], "no SRC"), (["small.pth"], "no format: give one, for example `--to int4`")):
        done = rwkv("quantize", *args, cwd=folder)
        assert (done.code, done.out) == (2, "")
        assert f"error: {message}" in done.err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o500)
    done = rwkv("quantize", "small.pth", "--to", "int8", "-o", "locked/x.st", cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert "locked" in done.err
    assert "Traceback" not in done.err


def test_a_file_larger_than_the_system_allows(folder: Path) -> None:
    before = sorted(folder.iterdir())
    done = rwkv("quantize", "small.pth", "--to", "int8", cwd=folder, preexec_fn=small_files(300_000))
    assert (done.code, done.out) == (5, "")
    assert re.fullmatch(
        r"error: small-int8.safetensors needs \d+ kB: more than a file may have here\n", done.err
    )
    assert sorted(folder.iterdir()) == before


def test_a_second_writer_is_refused_and_a_dead_one_replaced(folder: Path) -> None:
    with Replacement(folder / "x.st") as first:
        first.file.write(b"half a file")
        done = rwkv("quantize", "small.pth", "--to", "int8", "-o", "x.st", cwd=folder)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: x.st is being written by another process\nhint: ")
    (folder / ".x.st.part").write_bytes(b"half a file")
    assert rwkv("quantize", "small.pth", "--to", "int8", "-o", "x.st", cwd=folder).code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["small.pth", "small.safetensors", "x.st"]


def test_a_source_that_cannot_be_looked_at(folder: Path) -> None:
    for source in ("x" * 300 + ".pth", "small.pth/x.pth"):
        done = rwkv("quantize", source, "--to", "int8", "-o", "x.st", cwd=folder)
        assert (done.code, done.out, "Traceback" in done.err) == (3, "", False)
        assert source[:100] in done.err


def test_a_terminal_sees_progress_and_then_the_table(folder: Path) -> None:
    terminal = Terminal("quantize", "small.pth", "--to", "int8", cwd=folder)
    done = terminal.finish()
    assert done.code == 0
    assert b"100%" in terminal.raw
    assert "100%" not in done.out  # the bar goes when it is done
    assert "small-int8.safetensors" in done.out.splitlines()[0]
    quiet = Terminal("quantize", "small.pth", "--to", "int8", "--force", "-q", cwd=folder)
    assert quiet.finish().out == "small-int8.safetensors"


def test_show(folder: Path) -> None:
    done = rwkv("show", "small.safetensors", cwd=folder)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split(maxsplit=1)[1].startswith("small.safetensors (")
    assert "RWKV-7, 521,344 parameters" in lines[1]
    assert "tokenizer" in done.out
    assert "blocks.0" not in done.out
    tensors = rwkv("show", "small.pth", "--tensors", cwd=folder)
    assert re.search(r"^blocks\.1\.ffn\.value\.weight +128x512 +bf16 +row +131 kB$", tensors.out, re.M)
    assert "checkpoint" in tensors.out
    facts = json.loads(rwkv("show", "small.pth", "--json", cwd=folder).out)
    assert (facts["kind"], facts["version"], facts["dimensions"]["n_layer"]) == ("checkpoint", "7", 2)
    assert "tensors" not in facts
    assert len(json.loads(rwkv("show", "small.pth", "--json", "--tensors", cwd=folder).out)["tensors"]) > 40
    assert rwkv("show", cwd=folder).code == 2


def test_show_escapes_what_could_harm_a_terminal(folder: Path) -> None:
    data = (folder / "small.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + size].replace(b"small.pth", b"\\\\u001b[2J")[:size].ljust(size)
    (folder / "evil.safetensors").write_bytes(data[:8] + header + data[8 + size :])
    done = rwkv("show", "evil.safetensors", cwd=folder)
    assert done.code == 0
    assert "\\x1b[2J" in done.out
    assert "\x1b" not in done.out + done.err


def test_a_plan_by_tensor_and_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(folder / "small.pth"), str(folder / "o.st")
    words = ["--tensor", r"att\.value=int8", "--tensor", "head=q4g16", "--max-size", "1MB", "-q"]
    assert main(["quantize", source, "--to", "int4", "-o", out, *words, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["encodings"]["blocks.1.att.value.weight"] == "q8g32" and told["bytes"] <= 1e6
    assert told["classes"]["head"]["encodings"] == ["q4g16"]
    assert told["ffn_value"]["layout"] == "tile"
    assert main(["quantize", source, "--to", "int4", "-o", out, *words]) == 0
    with ModelFile.open(folder / "o.st") as made:
        assert made.size == told["bytes"]
        assert {name: item.encoding for name, item in made.plan.items()} == told["encodings"]
        assert made.recipe == r"int4, at most 1000000 bytes, att\.value=int8, head=q4g16"
    capsys.readouterr()
    assert main(["quantize", source, "--to", "int4", "--recipe", "best", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[0] == "att" and line.endswith("q4g16+q8g32") for line in lines)
    assert any(re.fullmatch(r"\d\.\d\d bits per weight", line) for line in lines)


def test_a_calibrated_file_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "t.txt").write_bytes(b"To be, or not to be, that is the question. " * 30)
    args = ["quantize", str(folder / "small.pth"), "--to", "int4", "-o", str(folder / "c.st"), "-q"]
    assert main([*args, "--calibrate", str(folder / "t.txt"), "--calibrate-tokens", "100", "--resume"]) == 0
    with ModelFile.open(folder / "c.st") as made:
        assert json.loads(made.calibration)["text"] == "t.txt"
        assert json.loads(made.calibration)["tokens"] == 100
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--calibrate", "none.txt"], 3, "none.txt: no such file"),
        (["--calibrate", "-", "--eval", "-"], 2, "cannot both read stdin"),
        (["--max-size", "much"], 2, "'much' is no size"),
        (["--max-size", "10kB"], 2, "too small: this model cannot be smaller than "),
        (["--target-bpw", "2"], 2, "bits per weight"),
        (["--method", "gptq"], 2, "gptq needs a text to calibrate with"),
        (["--tensor", "atn=int8"], 2, "no tensor matches 'atn'"),
        (
            ["--calibrate", "small.txt", "-o", "small.txt", "--force"],
            2,
            "small.txt is the text to calibrate with",
        ),
    ],
)
def test_plans_that_cannot_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    args: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    (folder / "small.txt").write_text("text")
    before = sorted(folder.iterdir())
    assert main(["quantize", "small.pth", "--to", "int4", *args]) == code
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_gptq_without_torch_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rwkvcli.runtime.torch_hessians", None)
    text = folder / "t.txt"
    text.write_text("text")
    args = [
        "quantize",
        str(folder / "small.pth"),
        "--to",
        "int4",
        "--method",
        "gptq",
        "--calibrate",
        str(text),
    ]
    assert main([*args, "-o", str(folder / "o.st")]) == 2
    assert 'pip install "rwkvcli[torch]"' in capsys.readouterr().err
    assert not (folder / "o.st").exists()


def test_more_bits_than_there_are_is_no_limit(folder: Path) -> None:
    args = ("quantize", "small.pth", "--to", "int4", "--dry-run", "--json", "--target-bpw")
    most, huge = (rwkv_inside(*args, bits, cwd=folder) for bits in ("100", "1e308"))
    assert most.code == huge.code == 0 and most.out == huge.out
