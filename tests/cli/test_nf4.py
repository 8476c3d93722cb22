"""`rwkv quantize --to nf4` and `rwkv export --to bnb`: what they say, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import environment, rwkv, rwkv_inside
from quant_models import checkpoint

from quant.container.reader import ModelFile
from quant.synthetic import synthetic_arch
from rwkvcli.cli.app import main

pytest.importorskip("bitsandbytes.functional")


def test_it_writes_a_model_that_generates_and_can_be_exported(folder: Path) -> None:
    done = rwkv("quantize", "small.pth", "--to", "nf4", "--report", "r.json", cwd=folder)
    assert (done.code, done.out) == (0, "small-nf4.safetensors\n")
    lines = done.err.splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["q8g32", "nf4", "nf4"]
    assert lines[-2].startswith("nf4: scales and table are rounded: error 0.01")
    assert lines[-2].endswith(" % against bitsandbytes' own values") and len(lines) == 11
    report = json.loads((folder / "r.json").read_text())
    assert 5e-5 < report["nf4"]["error"] < 2e-4 and report["nf4"]["matrices"] == 12
    assert report["ffn_value"] == {"layout": "tile", "why": "blocks of NF4 run along its inputs"}
    with ModelFile.open(folder / "small-nf4.safetensors") as made:
        assert made.report["nf4"] == report["nf4"]
    shown = rwkv_inside("show", str(folder / "small-nf4.safetensors"))
    assert lines[-2] in shown.out.splitlines()
    used = rwkv("generate", "-m", "small-nf4.safetensors", "--max-tokens", "3", "x", cwd=folder)
    assert (used.code, used.err) == (0, "")
    done = rwkv("export", "small-nf4.safetensors", "--to", "bnb", cwd=folder)
    assert (done.code, done.out) == (0, "small-nf4-bnb\n")
    assert done.err.startswith("RWKV-7, f32, nf4: ")
    again = rwkv_inside("quantize", str(folder / "small-nf4-bnb"), "--to", "nf4", "-o", str(folder / "again"))
    assert again.code == 0 and "is quantized itself (nf4)" in again.err


def test_a_dry_run_tells_the_plan(folder: Path) -> None:
    """Its size to the byte, and which matrices will not be NF4."""
    source, out = str(folder / "small.pth"), str(folder / "o.st")
    told = json.loads(rwkv_inside("quantize", source, "--to", "nf4", "-o", out, "--dry-run", "--json").out)
    assert rwkv_inside("quantize", source, "--to", "nf4", "-o", out).code == 0
    assert told["bytes"] == Path(out).stat().st_size and "nf4_instead" not in told
    odd = checkpoint(folder / "odd.pth", synthetic_arch("7", 2, 128, 256, 64, n_ffn=200))
    words = ["quantize", str(odd), "--to", "nf4", "-o", str(folder / "odd.st")]
    line = "q8g32 instead of nf4: ffn.value (200): blocks of NF4 have 64 inputs, and these have rows that are no multiple of it"
    assert line in rwkv_inside(*words, "--dry-run").out.splitlines()
    done = rwkv_inside(*words)
    assert done.code == 0 and line in done.err.splitlines()
    assert line in rwkv_inside("show", str(folder / "odd.st")).out.splitlines()


def test_nf4_for_some_tensors(folder: Path) -> None:
    words = ["quantize", folder / "small.pth", "--to", "int4", "--dry-run", "--json", "--tensor"]
    told = json.loads(rwkv_inside(*words, r"att\.\w+\.weight=nf4").out)
    assert told["encodings"]["blocks.1.att.key.weight"] == "nf4"
    assert told["encodings"]["blocks.1.ffn.key.weight"] == "q4g32"
    wrong = rwkv_inside(*words, "att=nf4")
    assert wrong.code == 2 and "blocks.0.att.w2 has rows of 32, and nf4 blocks of 64" in wrong.err
    told = json.loads(rwkv_inside(*words, "ffn.value=nf4", "--ffn-value", "kn").out)
    assert told["ffn_value"] == {"layout": "tile", "why": "blocks of NF4 run along its inputs"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--method", "gptq"], "--method does not go with nf4"),
        (["--method", "codebook"], "--method does not go with nf4"),
        (["--calibrate", "small.txt"], "--calibrate does not go with nf4"),
        (["--calibrate-tokens", "9"], "--calibrate-tokens does not go with nf4"),
        (["--recipe", "best"], "--recipe does not go with nf4"),
        (["--ffn-value", "kn"], "--ffn-value kn does not go with nf4"),
        (["--target-bpw", "5"], "nf4 has one size"),
        (["--max-size", "1MB"], "nf4 has one size"),
    ],
)
def test_options_that_do_not_go_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "small.txt").write_text("text")
    before = sorted(folder.iterdir())
    for more in ([], ["--dry-run"]):
        done = rwkv_inside("quantize", "small.pth", "--to", "nf4", *args, *more)
        assert (done.code, done.out) == (2, "") and message in done.err and "\nhint: " in done.err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("package", ["bitsandbytes", "torch"])
def test_without_the_extra_the_line_that_installs_it_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, package, None)
    for words in (
        ["quantize", "small.pth", "--to", "nf4"],
        ["quantize", "small.pth", "--to", "nf4", "--dry-run"],
        ["quantize", "small.pth", "--to", "int4", "--tensor", "att=nf4"],
        ["export", "small.pth", "--to", "bnb"],
    ):
        assert main(words) == 2
        said = capsys.readouterr()
        assert (said.out, said.err) == (
            "",
            'error: NF4 needs packages that are not installed: pip install "rwkvcli[torch]"\n',
        )
    assert sorted(file.name for file in folder.iterdir()) == ["small.pth", "small.safetensors"]


def test_nothing_else_imports_it(folder: Path) -> None:
    """A process that quantizes to int4, and one that runs a file of nf4, have no need of it."""
    program = (
        "import sys; from rwkvcli.cli.app import main; code = main(sys.argv[1:])\n"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'bitsandbytes')))"
    )
    rwkv_inside("quantize", "small.pth", "--to", "nf4", "-o", "n.st", cwd=folder)
    for words in (
        ["quantize", "small.pth", "--to", "int4", "-o", "o.st", "-q"],
        ["generate", "-m", "n.st", "--max-tokens", "1", "x"],
        ["export", "n.st", "--to", "bnb", "-q"],
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, *words],
            cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
