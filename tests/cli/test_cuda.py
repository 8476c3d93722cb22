"""`--device cuda` of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runner import Outcome, rwkv_inside
from cuda_library import LIBRARY, free_memory, is_emulated, needs_library, put_beside

from quant.container.reader import ModelFile
from rwkvcli import Model, State
from rwkvcli.runtime import cuda, machine
from rwkvcli.services import fitting

CUDA = {"RWKV_CUDA_LIBRARY": LIBRARY}
GREEDY = ["--temperature", "0", "--max-tokens", "12"]


def run(*args: str | Path, stdin: str = "", **env: str) -> Outcome:
    return rwkv_inside(*args, stdin=stdin, env={**CUDA, **env})


def test_a_library_that_cannot_be_loaded(model: Path) -> None:
    done = run(
        "generate",
        "-m",
        model,
        "--device",
        "cuda",
        "x",
        RWKV_CUDA_LIBRARY=str(Path("/nowhere/lib.so").absolute()),
    )
    assert (done.code, done.out) == (5, "")
    first, second = done.err.splitlines()
    assert first.startswith("error: CUDA: ") or str(Path("/nowhere/lib.so").absolute()) in first
    assert second == "hint: use `--device cpu`; `rwkv doctor` tells what is here"


def test_layers_for_a_gpu_need_one(model: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("gpu-layers = 3\n")
    cpu = ["generate", "-m", model, "--device", "cpu", *GREEDY, "It was"]
    plain = run(*cpu)
    assert plain.code == 0
    for default in ({"RWKV_GPU_LAYERS": "3"}, {"RWKV_CONFIG": str(config)}):
        assert run(*cpu, **default) == plain
    for harmless in ("0", "-1"):
        assert run(*cpu, "--gpu-layers", harmless) == plain
    refused = " do not go together: layers go on a GPU with auto or cuda\n"
    for device in ("cpu", "torch:cpu"):
        asked = run("generate", "-m", "nowhere.st", "--device", device, "--gpu-layers", "3", "It was")
        assert (asked.code, asked.out) == (2, "")
        assert f"error: --gpu-layers 3 and --device {device}{refused}" in asked.err
    usual = run("--gpu-layers", "3", "generate", "-m", model, "It was", RWKV_DEVICE="cpu")
    assert (usual.code, usual.out) == (2, "")
    assert f"error: --gpu-layers 3 and the default device cpu{refused}" in usual.err


def test_gptq_asks_for_pytorch(pth: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a fine morning. " * 200)
    done = run(
        "quantize", pth, "--to", "int4", "--method", "gptq", "--calibrate", text, "--device", "cuda:1",
        "-o", tmp_path / "out.safetensors", "-q",
    )  # fmt: skip
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: --method gptq works with PyTorch\nhint: use `--device torch:cuda:1`, or leave it out\n"
    )


@needs_library
def test_generate_says_what_the_cpu_says(model: Path) -> None:
    expected = run("generate", "-m", model, "--device", "cpu", *GREEDY, "It was")
    found = run("generate", "-m", model, "--device", "cuda", *GREEDY, "It was")
    assert (found.code, found.err) == (0, "")
    assert found == expected
    told = run("generate", "-v", "-m", model, "--device", "cuda:0", *GREEDY, "It was")
    assert f"{model}: cuda:0, " in told.err


@needs_library
def test_a_missing_device_is_told_before_the_model_is_looked_for() -> None:
    done = run("generate", "-m", "nowhere.st", "--device", "cuda:99", "x")
    assert (done.code, done.out) == (5, "")
    assert done.err.startswith("error: there is no device cuda:99\nhint: there is cuda:0 (")


@needs_library
@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_conversation_moves_to_another_device(model: Path, tmp_path: Path, first: str, second: str) -> None:
    place = {"RWKV_SESSIONS": str(tmp_path / "sessions")}
    limit = ["--max-tokens", "8", "--temperature", "0"]
    whole = run("chat", "all", "-m", model, "--device", "cpu", *limit, stdin="One\nTwo\n", **place)
    begun = run("chat", "trip", "-m", model, "--device", first, *limit, stdin="One\n", **place)
    rest = run("chat", "trip", "--device", second, stdin="Two\n", **place)
    assert begun.out + rest.out == whole.out
    assert (begun.err, rest.err, rest.code) == ("", "", 0)


@needs_library
def test_states_in_files(model: Path, tmp_path: Path) -> None:
    built = run("state", "build", "-m", model, "--device", "cuda", "-o", tmp_path / "s", stdin="It was a day")
    assert built.code == 0
    state = State.load(tmp_path / "s", Model.load(model, device="cpu"))
    assert state.tokens_seen == len("It was a day")
    done = [
        run("generate", "-m", model, "--device", device, *GREEDY, "--state", tmp_path / "s", " and")
        for device in ("cpu", "cuda")
    ]
    assert done[0] == done[1]
    assert done[0].code == 0


@needs_library
def test_many_prompts_at_once(model: Path) -> None:
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in ("It was", "Once", "In the end"))
    answers = [
        run("generate", "-m", model, "--device", device, *GREEDY, "--jsonl", "-b", "3", stdin=lines)
        for device in ("cpu", "cuda")
    ]
    texts = [[json.loads(line)["text"] for line in done.out.splitlines()] for done in answers]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3


@needs_library
def test_perplexity_is_that_of_the_cpu(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("It was a fine morning, and all was well. " * 2)
    found = [
        json.loads(run("perplexity", tmp_path / "text", "-m", model, "--device", device, "--json").out)
        for device in ("cpu", "cuda")
    ]
    assert found[1] == found[0]


@needs_library
def test_scores_are_those_of_the_cpu(model: Path) -> None:
    choices = [
        word for text in (" day", " mind", " morning", "!", " days" * 20) for word in ("--choices", text)
    ]
    found = [
        json.loads(run("score", "-m", model, "--device", device, "--json", "It was a fine", *choices).out)
        for device in ("cpu", "cuda")
    ]
    assert len(found[0]["choices"]) == 5
    assert found[1]["choices"] == found[0]["choices"]


@needs_library
def test_bench(tmp_path: Path) -> None:
    model = tmp_path / "kn.safetensors"
    assert run("quantize", "demo", "--to", "int8", "--ffn-value", "kn", "-o", model).code == 0
    args = ["bench", model, "-p", "4", "-n", "3", "-r", "2", "--json"]
    little = {"RWKV_CUDA_EMULATED_MEMORY": "200000000"}  # what is copied is a part of the free memory
    done = run(*args, "--device", "cuda", **little)
    assert (done.code, done.err) == (0, "")
    prefill, decode = json.loads(done.out)
    for row in (prefill, decode):
        assert row["backends"].startswith("cuda:0, ")
        assert len(row["samples_ns"]) == 2
    figures = "bytes_per_token", "ffn_density", "gb_s", "read_gb_s", "share"
    assert [prefill[name] for name in figures] == [None] * 5
    on_cpu = json.loads(run(*args, "--device", "cpu").out)[1]
    assert 0 < decode["ffn_density"] < 1
    assert [decode[name] for name in figures[:2]] == [on_cpu[name] for name in figures[:2]]
    rate, reads, median = decode["gb_s"], decode["read_gb_s"], decode["token_median_ns"]
    # rates are rounded to 0.001, shares to 0.0001, the median to a nanosecond; 1e-9 is for float64's own rounding
    assert abs(rate - decode["bytes_per_token"] / median) <= 0.0005 + rate * 0.5 / (median - 0.5) + 1e-9
    assert (
        abs(decode["share"] - rate / reads) <= 0.00005 + 0.0005 * (1 + rate / reads) / (reads - 0.0005) + 1e-9
    )
    split = json.loads(run(*args, "--device", "cuda", "--gpu-layers", "1", **little).out)[1]
    assert [split[name] for name in figures] == [None] * 5


@needs_library
def test_doctor(model: Path) -> None:
    found = json.loads(run("doctor", model, "--json").out)
    device, judged = found["gpu"]["devices"][0], found["model"]["devices"][0]
    assert found["gpu"]["kernels"] == LIBRARY
    assert device["number"] == 0 and 0 < device["free_memory"] <= device["memory"]
    assert judged["device"] == "cuda:0"
    assert judged["needed_bytes"] > found["model"]["bytes"] + found["model"]["state_bytes"]
    assert judged["fits"] == (judged["needed_bytes"] <= judged["free_bytes"])
    lines = run("doctor", model).out.splitlines()
    (line,) = [line for line in lines if line.startswith("cuda:0 ") and "compute capability" in line]
    assert f"{device['name']}, compute capability {device['capability']}, " in line
    assert any(line.startswith("cuda:0 ") and "it fits" in line for line in lines)


def test_doctor_tells_why_there_is_none(model: Path) -> None:
    found = json.loads(
        run("doctor", "--json", RWKV_CUDA_LIBRARY=str(Path("/nowhere/lib.so").absolute())).out
    )["gpu"]
    assert (found["kernels"], found["devices"]) == (str(Path("/nowhere/lib.so").absolute()), [])
    assert str(Path("/nowhere/lib.so").absolute()) in found["why"]
    found = json.loads(run("doctor", "--json", RWKV_CUDA_LIBRARY="").out)["gpu"]
    if found["kernels"] is None:
        assert found["why"].startswith("this build has no CUDA kernels")


@needs_library
def test_some_layers_on_the_gpu_say_what_the_cpu_says(model: Path, tmp_path: Path) -> None:
    expected = run("generate", "-m", model, "--device", "cpu", *GREEDY, "It was")
    args = ["generate", "-v", "-m", model, *GREEDY, "It was"]
    flags = run(*args, "--device", "cuda", "--gpu-layers", "1", "-t", "2")
    assert flags.out == expected.out
    assert f"{model}: cuda:0, " in flags.err and ", 1 of 2 layers; cpu, " in flags.err
    assert run(*args, RWKV_DEVICE="cuda", RWKV_GPU_LAYERS="1", RWKV_THREADS="2") == flags
    (tmp_path / "config.toml").write_text('device = "cuda"\ngpu-layers = 1\nthreads = 2\n')
    assert run(*args, RWKV_CONFIG=str(tmp_path / "config.toml")) == flags
    told = run("config", "list", RWKV_CONFIG=str(tmp_path / "config.toml"), RWKV_GPU_LAYERS="2").out
    assert any(line.split()[:3] == ["gpu-layers", "2", "environment"] for line in told.splitlines())
    wrong = run(*args, "--gpu-layers", "-2")
    assert (wrong.code, wrong.out) == (2, "")
    assert "invalid value for '--gpu-layers': `-2` is below -1" in wrong.err


@needs_library
def test_a_conversation_moves_between_layers(model: Path, tmp_path: Path) -> None:
    place = {"RWKV_SESSIONS": str(tmp_path / "sessions")}
    limit = ["--max-tokens", "8", "--temperature", "0"]
    whole = run("chat", "all", "-m", model, "--device", "cpu", *limit, stdin="One\nTwo\nThree\n", **place)
    found = ""
    for text, device in (("One", ["--device", "cuda", "--gpu-layers", "1"]), ("Two", ["--device", "cuda"]), ("Three", ["--device", "cpu"])):  # fmt: skip
        done = run("chat", "trip", "-m", model, *device, *limit, stdin=f"{text}\n", **place)
        assert (done.code, done.err) == (0, "")
        found += done.out
    assert found == whole.out


@needs_library
@pytest.mark.skipif(not is_emulated(), reason="a real GPU has the memory that it has")
def test_auto_takes_what_fits_and_tells(
    model: Path, pth: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_beside(monkeypatch, tmp_path)
    file = ModelFile.open(model)
    required = cuda.required(file)
    args = ["generate", "-m", model, *GREEDY, "It was"]
    expected = run(*args, "--device", "cpu")
    for layers, free in ((2, required.needed(2)), (1, required.needed(2) - 1), (0, required.needed(1) - 1)):
        memory = {"RWKV_CUDA_EMULATED_MEMORY": free_memory(free)}
        assert run(*args, **memory) == expected
        told = run(*args, "-v", **memory).err
        doctor = run("doctor", model, **memory).out.splitlines()
        judged = json.loads(run("doctor", model, "--json", **memory).out)["model"]
        (auto,) = [line.split(maxsplit=1)[1] for line in doctor if line.startswith("auto ")]
        (gpu,) = [line for line in doctor if line.startswith("cuda:0 ") and "needs" in line]
        assert judged["auto"]["layers"] == judged["devices"][0]["layers"] == layers
        assert judged["auto"]["device"] == ("cuda:0" if layers else "cpu")
        assert judged["devices"][0]["needed_bytes"] == required.needed(2)
        assert auto == f"{judged['auto']['device']}: {judged['auto']['why']}"
        assert f"device auto: {judged['auto']['why']}" in told
        assert gpu.endswith(("it does not fit", "1 of 2 layers fit", "; it fits")[layers])
        assert (": cpu, " in told) == (layers == 0)
        assert ("1 of 2 layers; cpu, " in told) == (layers == 1)
    # a person's choice wins, wherever it stands
    plenty = {"RWKV_CUDA_EMULATED_MEMORY": free_memory(1 << 30)}
    assert ": cpu, " in run(*args, "-v", **plenty, RWKV_DEVICE="cpu").err
    (tmp_path / "config.toml").write_text('device = "cpu"\n')
    config = {"RWKV_CONFIG": str(tmp_path / "config.toml")}
    assert ": cpu, " in run(*args, "-v", **plenty, **config).err
    # and of a checkpoint
    choices = json.loads(run("doctor", pth, "--json", **plenty).out)["model"]["choices"]
    assert [choice["devices"][0]["layers"] for choice in choices] == [2, 2, 2, 2]
    lines = run("doctor", pth, **plenty).out.splitlines()
    names = [f"int{bits}{of}" for bits in (4, 5, 6, 8) for of in ("", ", cuda:0", ", auto")]
    assert [line.split("  ")[0] for line in lines[-12:]] == names
    assert lines[-2].endswith("; it fits") and lines[-1].endswith("  cuda:0: all of it")


@needs_library
@pytest.mark.skipif(not is_emulated(), reason="a real GPU has the memory that it has")
def test_too_little_memory_names_the_layers_that_fit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "RESERVE", 0)
    required = cuda.required(ModelFile.open(model))
    assert required.needed(1) < required.model[1]
    memory = free_memory(required.model[1] - 1)
    done = run("generate", "-m", model, "--device", "cuda", "x", RWKV_CUDA_EMULATED_MEMORY=memory)
    assert (done.code, done.out) == (5, "")
    first, hint = done.err.splitlines()
    assert first.startswith("error: CUDA: the model needs 0.0")
    assert hint == (
        "hint: `--gpu-layers 1` fits, with the other layers on the CPU; or use a smaller model or `--device cpu`"
    )


@needs_library
@pytest.mark.skipif(not is_emulated(), reason="a real GPU has the memory that it has")
def test_a_model_on_the_gpu_needs_no_memory_here(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_beside(monkeypatch, tmp_path)
    size = model.stat().st_size
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(size, size // 2 + 1))
    args = ["generate", "-m", model, *GREEDY, "It was"]
    assert run(*args).err == ""
    assert "are missing" in run(*args, "--device", "cpu").err
    assert run(*args, "--gpu-layers", "1").err == ""
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(size, size // 2 - 1))
    assert "are missing" in run(*args, "--gpu-layers", "1").err


def test_what_auto_will_do_with_a_file_that_is_yet_to_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def judged(free: int, layers: int | None) -> tuple[str, int | None, str]:
        device = {"number": 1, "free_memory": free}
        estimated = fitting._estimated(device, 10**9, 10**6, layers)
        return tuple(fitting._estimated_choice([estimated]).values())  # type: ignore[return-value]

    put_beside(monkeypatch, tmp_path, None)
    assert judged(10**10, 24)[:2] == ("cpu", 0)
    (tmp_path / "nothing").touch()
    put_beside(monkeypatch, tmp_path, str(tmp_path / "nothing"))
    assert judged(10**10, 24) == ("cuda:1", 24, "cuda:1: all of it")
    half = (10**9 + cuda.STATES * 10**6) // 2 + fitting.GPU_WORKING_BYTES + cuda.RESERVE
    assert judged(half, 24) == ("cuda:1", 12, "cuda:1: about 12 of 24 layers, the rest on the CPU")
    assert judged(half, None)[:2] == ("cuda:1", None)
    assert judged(10**8, 24) == ("cpu", 0, "cpu: not one layer fits")
