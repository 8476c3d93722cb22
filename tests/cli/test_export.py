"""`rwkv export`, and other tools' files as the source of `quantize` and `show`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import other_tools
import pytest
from quant_models import quantized

from quant.checkpoints import open_checkpoint
from quant.synthetic import make_checkpoint
from rwkvcli.cli.app import main
from rwkvcli.cli.root import VERBS


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RWKV_CONFIG", "/dev/null")
    return tmp_path


def test_it_is_a_verb() -> None:
    assert list(VERBS).index("export") == list(VERBS).index("quantize") + 1


@pytest.mark.parametrize(
    ("to", "out"),
    [("pth", "small-bf16.pth"), ("safetensors", None), ("gguf", "small-bf16.gguf"), ("hf", "small-bf16-hf")],
)
def test_it_writes_the_format_and_says_where(
    model: Path, to: str, out: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [] if out else ["-o", "out.safetensors"]
    assert main(["export", str(model), "--to", to, *more]) == 0
    said = capsys.readouterr()
    out = out or "out.safetensors"
    assert said.out == f"{out}\n"
    assert said.err.startswith("RWKV-7, bf16, f32: ") and said.err.endswith(
        f" in {1 + (to == 'hf')} file{'s' * (to == 'hf')}\n"
    )
    assert main(["export", str(model), "--to", to, *more]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["--json", "-q", "export", str(model), "--to", to, *more, "--force", "--dtype", "f32"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.err == "" and found["path"] == out and set(found["dtypes"]) == {"f32"}
    assert found["bytes"] == sum(Path(file).stat().st_size for file in found["files"])
    with open_checkpoint(out) as opened:
        assert opened.arch.version == "7"
    assert main(["show", out]) == 0
    layout = {"pth": "pth, original", "gguf": "gguf, llama_cpp", "hf": "safetensors, fla"}.get(
        to, "safetensors, original"
    )
    assert f"{layout} names\n" in capsys.readouterr().out


def test_what_it_refuses(pth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantized(pth, Path("int8.safetensors"), "int8")

    def refused(*words: str, code: int = 2) -> str:
        assert main(["export", *words]) == code
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    assert "no format: give one" in refused(str(pth))
    assert "no SRC" in refused("--to", "pth")
    assert "not one of pth, safetensors, gguf, hf, bnb" in refused(str(pth), "--to", "onnx")
    assert refused("int8.safetensors", "--to", "pth") == (
        "error: int8.safetensors is quantized (int8)\n"
        "hint: export the checkpoint that it was made from, or a model file of f32, bf16 or f16\n"
    )
    assert "is the source itself" in refused(str(pth), "--to", "pth", "-o", str(pth), "--force")
    assert "stdout is none" in refused(str(pth), "--to", "pth", "-o", "-")
    assert "does not exist" in refused("nowhere.pth", "--to", "pth", code=3)
    assert [file.name for file in Path().iterdir()] == ["int8.safetensors"]


def test_an_epsilon_that_is_left_out_is_told(pth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantized(pth, Path("eps.safetensors"), "f16", group_norm_eps=1e-5)
    assert main(["export", "eps.safetensors", "--to", "pth"]) == 0
    assert "note: 1e-05, the epsilon of its group norm, has no place in the file" in capsys.readouterr().err


def test_other_tools_files_are_quantized_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    tensors = make_checkpoint("7", 2, 64, 256, 64, ranks=(5, 7, 3, 9))
    other_tools.llama_cpp(tensors, Path("model.gguf"), kind="q8_0")
    assert main(["quantize", "model.gguf", "--to", "int8"]) == 0
    said = capsys.readouterr()
    assert said.out == "model-int8.safetensors\n"
    assert said.err.startswith("note: model.gguf is quantized itself (q8_0); what that cost stays\n")
    assert main(["show", "model.gguf", "--tensors", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {item["encoding"] for item in shown["tensors"]} == {"q8_0", "f16", "f32"}
    assert sum(item["bytes"] for item in shown["tensors"]) < shown["bytes"]
    folder = other_tools.sharded(
        {f"rwkv7.{name}" if name != "head.weight" else name: array for name, array in tensors.items()},
        Path("RWKV7-0.1B-hf"),
        config={"model_type": "rwkv7", "hidden_size": 64},
    )
    assert main(["quantize", str(folder), "--to", "bf16"]) == 0
    assert capsys.readouterr().out == "RWKV7-0.1B-hf-bf16.safetensors\n"
    part = folder / "model-00001-of-00003.safetensors"
    before = part.read_bytes()
    for source in (folder, folder / "model.safetensors.index.json"):
        for verb, to in (("quantize", "int8"), ("export", "safetensors")):
            assert main([verb, str(source), "--to", to, "-o", str(part), "--force"]) == 2
            assert f"{part} is the source's {part.name}" in capsys.readouterr().err
    assert part.read_bytes() == before
    assert main(["export", str(folder / "model.safetensors.index.json"), "--to", "pth", "-q"]) == 0
    assert capsys.readouterr().out == "RWKV7-0.1B-hf.pth\n"


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    other_tools.gguf_of_one_tensor(Path("model.gguf"), "rwkv7", "Q6_K", np.random.default_rng(5))
    with open_checkpoint("model.gguf") as opened:
        assert opened.stored("emb.weight")[0] == "q6_k"
        monkeypatch.setitem(sys.modules, "gguf", None)
        from quant.errors import InvalidRequest

        with pytest.raises(InvalidRequest, match=r'pip install "rwkvcli\[gguf\]"$') as caught:
            opened.read("emb.weight")
    assert caught.value.exit_code == 2
