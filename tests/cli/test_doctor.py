"""`rwkv doctor`, and the warning of a model that memory cannot hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cli_runner import KNOWS_HOMES, environment, rwkv, rwkv_inside

from quant.arch import parameter_count
from quant.checkpoints import open_checkpoint
from quant.synthetic import synthetic_arch
from rwkvcli.cli.app import main
from rwkvcli.runtime import cuda, machine
from rwkvcli.runtime.machine import Memory
from rwkvcli.services import diagnosis, fitting
from rwkvcli.services.store import LocalModel


def test_what_this_machine_has(tmp_path: Path) -> None:
    done = rwkv("doctor", env={"HF_HUB_CACHE": str(tmp_path), "RWKV_CPU_LEVEL": "scalar"})
    assert (done.code, done.err) == (0, "")
    names = [line.split("  ")[0] for line in done.out.splitlines()]
    assert names == [
        "rwkv", "processor", "kernels", "threads", "memory", "GPU", "extra torch", "extra gguf", "extra serve",
        "extra grammar", "downloads", "models", "configuration", "program", "python",
    ]  # fmt: skip
    assert "scalar: RWKV_CPU_LEVEL asks for it" in done.out
    assert str(tmp_path) in done.out
    wrong = rwkv("doctor", env={"RWKV_CPU_LEVEL": "sse9"}).out
    assert "none: RWKV_CPU_LEVEL=sse9 is not among scalar" in wrong


def test_json_and_a_model(model: Path) -> None:
    found = json.loads(rwkv_inside("doctor", model, "--json", "-t", "1").out)
    assert (found["threads"]["count"], found["threads"]["why"]) == (1, "as asked")
    assert found["cpu"]["level"] == found["cpu"]["levels"][-1]
    judged = found["model"]
    # 2 layers of 128, 4 heads... of 64: matrices and two shift vectors in float32
    assert judged["state_bytes"] == 4 * 2 * (2 * 64 * 64 + 2 * 128)
    assert judged["fits"] is True
    assert judged["needed_bytes"] == judged["bytes"] + judged["state_bytes"] + judged["working_bytes"]
    assert 0 < judged["bytes_per_token"] < judged["bytes"] + 2 * judged["state_bytes"]
    expected = judged["gb_per_s"] * 1e9 / judged["bytes_per_token"]
    assert judged["tokens_per_s"] == pytest.approx(expected, rel=0.01)
    text = rwkv_inside("doctor", "-m", model).out
    assert "it fits" in text
    assert "with every weight read" in text


@pytest.mark.parametrize("version", ["4", "7"])
def test_the_state_is_as_large_as_its_arrays(version: str, tmp_path: Path) -> None:
    from quant_models import checkpoint, odd_arch, quantized

    from rwkvcli import Model

    arch = odd_arch(version)
    quantized(checkpoint(tmp_path / "m.pth", arch), tmp_path / "m.st", "f32")
    state = Model.load(tmp_path / "m.st", threads=1).new_state()
    assert fitting.state_bytes(arch) == sum(array.nbytes for array in state.to_numpy().values())


@pytest.mark.parametrize(
    ("version", "n_layer", "n_embd", "megabytes"),
    [("7", 24, 2048, 64), ("6", 24, 2048, 64), ("5.2", 24, 2048, 64), ("7", 32, 2560, 96)],
)
def test_larger_models_need_more_to_work_in(version: str, n_layer: int, n_embd: int, megabytes: int) -> None:
    arch = synthetic_arch(version, n_layer, n_embd, 65536)  # 1.5B, 1.6B, 1.6B, 2.9B
    assert fitting.working_bytes(parameter_count(arch)) == megabytes * 10**6


def test_the_size_of_a_model_decides_what_it_needs_to_work_in(
    model: Path, pth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "working_bytes", lambda parameters: 10**9 + parameters)
    judged = fitting.prospects(str(model), 1)
    with open_checkpoint(pth) as checkpoint:
        weights = parameter_count(checkpoint.arch)
    assert judged["working_bytes"] == 10**9 + weights
    assert judged["needed_bytes"] == judged["bytes"] + judged["state_bytes"] + 10**9 + weights
    for choice in fitting.prospects(str(pth), 1)["choices"]:
        assert choice["needed_bytes"] == choice["bytes"] + judged["state_bytes"] + 10**9 + weights


def test_what_is_missing_comes_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "EXTRAS", {"torch": ("a-package-that-is-not-there",)})
    assert diagnosis.examine()["extras"] == {"torch": {"a-package-that-is-not-there": None}}


@pytest.mark.parametrize("gpus", [[], ["NVIDIA GeForce RTX 3060"]])
def test_a_gpu_without_kernels_comes_with_the_line_that_brings_them(
    gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: gpus)
    monkeypatch.setattr(cuda, "library_path", lambda: None)
    found = diagnosis.examine()["gpu"]
    assert (found["found"], found["used"]) == (gpus, None)
    way = "within WSL" if sys.platform == "win32" else "`pip install nvidia-cuda-nvcc`"
    assert (way in found["why"]) == bool(gpus)
    assert sys.platform != "win32" or "nvcc" not in found["why"]


def test_what_is_no_model_file(pth: Path) -> None:
    done = rwkv_inside("doctor", "nowhere.st")
    assert (done.code, done.out) == (3, "")
    done = rwkv_inside("doctor", pth)  # what could be made of it
    assert (done.code, done.err) == (0, "")
    kinds = [line.split()[0] for line in done.out.splitlines()[-5:]]
    assert kinds == ["checkpoint", "int4", "int5", "int6", "int8"]


@pytest.mark.parametrize(
    ("env", "problem", "hint"),
    [
        ({"RWKV_CONFIG": "config.toml"}, "gone.safetensors does not exist", "did you mean one.safetensors?"),
        ({"RWKV_MODEL": "g1-1.5b"}, "g1-1.5b is not on this machine, and the network is off", "unset HF_HUB_OFFLINE: `rwkv pull g1-1.5b`"),
        ({"RWKV_MODEL": "one.safetensors"}, "one.safetensors: the safetensors header does not begin with '{'", None),
    ],
)  # fmt: skip
def test_a_default_that_cannot_be_judged_is_a_finding(
    env: dict[str, str], problem: str, hint: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text('model = "gone.safetensors"\n')
    (tmp_path / "one.safetensors").write_bytes(b"\0" * 100)
    plain = rwkv_inside("doctor", cwd=tmp_path).out.splitlines()
    done = rwkv_inside("doctor", cwd=tmp_path, env=env)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) > len(plain) >= 13
    assert lines[len(plain) :] == [
        "",
        f"default model  {problem}",
        *([f"hint           {hint}"] if hint else []),
    ]
    found = json.loads(rwkv_inside("doctor", "--json", cwd=tmp_path, env=env).out)
    assert (found["model"]["problem"], found["model"]["hint"]) == (problem, hint)
    named = rwkv_inside("doctor", "-m", found["model"]["name"], cwd=tmp_path)
    assert (named.code, named.out) == (4 if hint is None else 3, "")
    assert named.err.startswith(f"error: {problem}\n")


@pytest.mark.parametrize(
    ("env", "problem", "hint"),
    [
        ({"RWKV_CONFIG": "bad.toml"}, "bad.toml: no setting 'treads'", "`rwkv config list` shows all"),
        (
            {"RWKV_CONFIG": "."},
            "RWKV_CONFIG=.: is a directory",
            "RWKV_CONFIG names the file of your defaults",
        ),
        pytest.param(
            {"RWKV_CONFIG": "~nobody-here/x"},
            "RWKV_CONFIG=~nobody-here/x: there is no such home folder",
            "RWKV_CONFIG names the file of your defaults",
            marks=KNOWS_HOMES,
        ),
    ],
)
def test_defaults_that_cannot_be_read_are_a_finding(
    env: dict[str, str], problem: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.toml").write_text('model = "demo"\ntreads = 2\n')
    done = rwkv_inside("doctor", "-t", "1", cwd=tmp_path, env=env)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(f"\n\ndefaults       {problem}\nhint           {hint}\n")
    found = json.loads(rwkv_inside("doctor", "--json", cwd=tmp_path, env=env).out)
    assert found["defaults"] == {"problem": problem, "hint": hint}
    assert rwkv_inside("tokenize", "-m", "demo", "x", cwd=tmp_path, env=env).code != 0


def test_a_device_that_cannot_be_used(tmp_path: Path) -> None:
    for device, code, problem in (
        ("nonsense", 2, "unknown device 'nonsense'"),
        ("cuda", 5, "this build has no CUDA kernels"),
    ):
        asked = rwkv_inside("doctor", "--device", device)
        assert (asked.code, asked.out) == (code, "")
        assert asked.err.startswith(f"error: {problem}\nhint: ")
        # that a default cannot be used is what a person wants to be told
        told = rwkv_inside("doctor", env={"RWKV_DEVICE": device})
        assert (told.code, told.err) == (0, "")
        assert f"\n\ndefault device  {problem}\nhint            " in told.out
        found = json.loads(rwkv_inside("doctor", "--json", env={"RWKV_DEVICE": device}).out)["device"]
        assert (found["name"], found["problem"]) == (device, problem)
    assert "device" not in json.loads(rwkv_inside("doctor", "--json", "--device", "cpu").out)


def test_one_warning_with_the_arithmetic(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr(machine, "memory", lambda: Memory(1_000_000, 100_000))
    args = ["generate", "-m", str(model), "--max-tokens", "1", "--seed", "1", "x"]
    assert main(args) == 0
    out, err = capsys.readouterr()
    size = model.stat().st_size
    missing = f"{(size - 100_000) / 1000:.0f} kB"
    assert err == (
        f"warning: {model} takes {size / 1e6:.2f} MB, 100 kB of memory are free, {missing} are missing: "
        "weights will be read from the disk again and again\n"
    )
    assert main(["-q", *args]) == 0
    assert capsys.readouterr() == (out, "")
    assert fitting.forecast(LocalModel(model, "small"), 1)["fits"] is False
    monkeypatch.setattr(machine, "memory", lambda: Memory(None, None))
    assert main(args) == 0
    assert capsys.readouterr() == (out, "")
    assert fitting.forecast(LocalModel(model, "small"), 1)["fits"] is None
