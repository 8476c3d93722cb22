"""The same random model through every layout: the tensors that are read are those of the .pth, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import other_tools
import pytest

from quant.arch import expected
from quant.checkpoints import Checkpoint, open_checkpoint
from quant.errors import FormatError, SourceNotFound, UnsupportedModel
from quant.synthetic import make_checkpoint, write_pth, write_safetensors
from rwkvcli.services.inspection import inspect

Tensors = dict[str, np.ndarray]
SIZES = {"4": {}, "6": {"ranks": (3, 5)}, "7": {"ranks": (5, 7, 3, 9)}}
HEAD = 8


@pytest.fixture(scope="session")
def models() -> Mapping[str, Tensors]:
    """{version: a model whose values float16 holds exactly}; 5.0-log is the one whose bonus is a logarithm."""
    result = {}
    for name in ("4", "5.0", "5.0-log", "5.1", "5.2", "6", "7"):
        version = name.partition("-")[0]
        made = make_checkpoint(
            version,
            3,
            32,
            20,
            HEAD,
            n_ffn=64,
            time_first_is_log=name.endswith("log"),
            **SIZES.get(version, {}),
        )
        result[name] = {key: array.astype(np.float16).astype(np.float32) for key, array in made.items()}
    return result


def used(tensors: Tensors) -> Tensors:
    """Without the tensors of v7's block 0 that nothing reads."""
    return {
        name: a for name, a in tensors.items() if not name.startswith("blocks.0.att.v") or "value" in name
    }


def check_equal(path: Path, tensors: Tensors, layout: str, but: tuple[str, ...] = ()) -> None:
    """Every tensor that a model uses, `but` some, is what the .pth holds."""
    with open_checkpoint(path) as opened:
        assert opened.layout == layout
        names = expected(opened.arch)
        assert set(names) <= set(used(tensors)) and len(used(tensors)) == len(names)
        for name, shape in names.items():
            values, wanted = opened.read(name), tensors[name].reshape(shape)
            assert name.endswith(but) or np.array_equal(values, wanted), name
            assert values.flags.c_contiguous and not values.flags.writeable
            assert opened.read_raw(name).shape == shape


Writer = Callable[[Tensors, Path], Path]
ROUTES: list[tuple[str, Writer, str]] = [
    *((version, other_tools.web_rwkv, "web_rwkv") for version in ("5.2", "6", "7")),
    ("4", other_tools.web_rwkv, "blinkdl"),  # the same in both
    *((version, other_tools.transformers, "transformers") for version in ("4", "5.0", "5.1", "5.2", "6")),
    ("6", other_tools.candle_v6, "transformers"),
    ("7", other_tools.fla, "fla"),
    ("7", other_tools.rwkv7_of_2026, "blinkdl"),
    ("7", other_tools.vllm_rwkv7, "transformers"),
    ("6", other_tools.llama_cpp, "llama_cpp"),
    ("7", other_tools.llama_cpp, "llama_cpp"),
    ("6", other_tools.rwkv_cpp, "rwkv_cpp"),
    ("7", other_tools.rwkv_cpp, "rwkv_cpp"),
]


@pytest.mark.parametrize(("version", "writer", "layout"), ROUTES)
def test_tensors_are_those_of_the_pth(
    models: Mapping[str, Tensors], tmp_path: Path, version: str, writer: Writer, layout: str
) -> None:
    check_equal(writer(models[version], tmp_path / "other"), models[version], layout)


@pytest.mark.parametrize(
    "prefix", ["_forward_module.", "module.", "model.", "rwkv.", "rwkv7.", "_orig_mod.model."]
)
def test_prefixes(models: Mapping[str, Tensors], tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "prefixed.safetensors"
    write_safetensors(path, {prefix + name: array for name, array in models["6"].items()})
    check_equal(path, models["6"], "blinkdl")
    if prefix == "_forward_module.":
        check_equal(other_tools.fla(models["7"], path, prefix), models["7"], "fla")


@pytest.mark.parametrize("version", ["4", "5.0", "5.0-log", "5.1", "5.2"])
def test_rwkv_cpp_logarithms(models: Mapping[str, Tensors], tmp_path: Path, version: str) -> None:
    """What the model computes with comes back as the file has it to a last bit or so; everything else is exact."""
    path = other_tools.rwkv_cpp(models[version], tmp_path / "m.bin")
    changed = ("time_decay", "time_first") if version == "5.0-log" else ("time_decay",)
    check_equal(path, models[version], "rwkv_cpp", changed)
    inner: Callable[[np.ndarray], np.ndarray] = np.exp
    forms = {"time_decay": (lambda x: np.exp(-np.exp(x))) if version != "4" else inner, "time_first": inner}
    with open_checkpoint(path) as opened:
        for leaf in changed:
            mine, his = opened.read(f"blocks.1.att.{leaf}"), models[version][f"blocks.1.att.{leaf}"]
            back, wanted = (forms[leaf](values.astype(np.float64)) for values in (mine, his))
            assert np.abs(back - wanted).max() <= 2e-7 * max(1, wanted.max())


def test_rwkv_cpp_decays_at_the_ends_and_single_heads(tmp_path: Path) -> None:
    for version, ranks in (("5.2", {}), ("6", {"ranks": (3, 5)})):
        tensors = make_checkpoint(version, 2, 8, 11, 8, n_ffn=32, **ranks)
        if version == "5.2":
            tensors["blocks.0.att.time_decay"][0, :2] = -30, 6  # decays of 1 and of 0 in float32
        path = other_tools.rwkv_cpp(tensors, tmp_path / "m.bin")
        with open_checkpoint(path) as opened:
            assert (opened.arch.version, opened.arch.n_head, opened.arch.head_size) == (version, 1, 8)
            if version == "5.2":
                found = opened.read("blocks.0.att.time_decay")[0, :2]
                assert np.array_equal(np.exp(-np.exp(found)), np.float32([1, 0]))


@pytest.mark.parametrize("kind", ["f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_rwkv_cpp_types(models: Mapping[str, Tensors], tmp_path: Path, kind: str) -> None:
    tensors = models["7"]
    path = other_tools.rwkv_cpp(tensors, tmp_path / "m.bin", kind)
    matrices = ("att.key.weight", "att.output.weight", "ffn.key.weight", "ffn.value.weight")
    wanted = {
        name: other_tools.ggml_values(array, kind) if name.endswith(matrices) and kind != "f16" else array
        for name, array in tensors.items()
    }
    wanted |= {
        n: other_tools.ggml_values(tensors[n], kind) for n in tensors if kind != "f16" and _projection(n)
    }
    check_equal(path, wanted, "rwkv_cpp")
    with open_checkpoint(path) as opened:
        assert opened.quantized == ("" if kind == "f16" else kind)
    if kind != "f16":
        with pytest.raises(UnsupportedModel, match="version 100"):
            open_checkpoint(other_tools.rwkv_cpp(tensors, tmp_path / "old.bin", kind, version=100))
    else:
        check_equal(
            other_tools.rwkv_cpp(tensors, tmp_path / "old.bin", "f16", version=100), tensors, "rwkv_cpp"
        )


def _projection(name: str) -> bool:
    return name.endswith(("receptance.weight", "att.value.weight"))


def test_rwkv_cpp_removed_types(models: Mapping[str, Tensors], tmp_path: Path) -> None:
    path = other_tools.rwkv_cpp(models["4"], tmp_path / "m.bin")
    data = bytearray(path.read_bytes())
    data[24 + 8] = 5  # the first tensor's type
    path.write_bytes(data)
    with pytest.raises(UnsupportedModel, match="Q4_2, which rwkv"):
        open_checkpoint(path)


def test_web_rwkv_of_heads_with_one_decay_is_a_5_2_model(
    models: Mapping[str, Tensors], tmp_path: Path
) -> None:
    tensors = dict(models["5.1"])
    path = other_tools.web_rwkv(tensors, tmp_path / "m.st")
    for name in [n for n in tensors if n.endswith(("time_decay", "time_faaaa"))]:
        tensors[name] = np.repeat(tensors[name][:, None], HEAD, axis=1)
    check_equal(path, tensors, "web_rwkv")


def test_a_bonus_that_may_be_a_logarithm_is_refused(models: Mapping[str, Tensors], tmp_path: Path) -> None:
    for name in ("5.0", "5.0-log"):
        with pytest.raises(UnsupportedModel, match="the file does not tell"):
            open_checkpoint(other_tools.web_rwkv(models[name], tmp_path / "m.st"))
    path = tmp_path / "m.pth"  # no .st is a .pth, nor in bf16
    write_pth(path, models["5.0-log"], "f16")
    check_equal(path, models["5.0-log"], "blinkdl")


@pytest.mark.parametrize("every", [1, 2, 6])
def test_gguf_rescaled(models: Mapping[str, Tensors], tmp_path: Path, every: int) -> None:
    check_equal(
        other_tools.llama_cpp(models["6"], tmp_path / "m.gguf", rescale=every), models["6"], "llama_cpp"
    )


def test_gguf_with_single_mixes(models: Mapping[str, Tensors], tmp_path: Path) -> None:
    check_equal(
        other_tools.llama_cpp(models["6"], tmp_path / "m.gguf", fused=False), models["6"], "llama_cpp"
    )


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_gguf_types(models: Mapping[str, Tensors], tmp_path: Path, kind: str) -> None:
    path = other_tools.llama_cpp(models["7"], tmp_path / "m.gguf", kind=kind)
    with open_checkpoint(path) as opened:
        for name, array in used(models["7"]).items():
            whole = name.endswith(".weight") and array.ndim == 2 and kind != "f16"
            wanted = other_tools.ggml_values(array, kind) if whole else array
            assert np.array_equal(opened.read(name), wanted.reshape(opened.shape(name))), name


def test_gguf_blocks_of_256_by_the_package(tmp_path: Path) -> None:
    """Codes of any bytes are codes; the package's own decoder says what they stand for."""
    gguf = pytest.importorskip("gguf")
    random = np.random.default_rng(5)
    for kind in ("Q2_K", "Q4_K", "Q6_K", "IQ4_NL"):
        codes = other_tools.gguf_of_one_tensor(tmp_path / "m.gguf", "rwkv7", kind, random)
        with open_checkpoint(tmp_path / "m.gguf") as opened:
            wanted = gguf.quants.dequantize(codes, gguf.GGMLQuantizationType[kind])
            assert opened.shape("emb.weight") == wanted.shape == (3, 256)
            assert np.array_equal(opened.read("emb.weight", check_finite=False), wanted, equal_nan=True)
            assert opened.stored("emb.weight") == (kind.lower(), codes.size)


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "blk.1.channel_mix_key.weight", "blk.2.time_mix_lerp_fused.weight"]
)
def test_a_gguf_tensor_of_another_type_than_its_bytes_is_refused(
    models: Mapping[str, Tensors], tmp_path: Path, name: str
) -> None:
    """A type of fewer bytes leaves a hole, which no writer does: the values would be others."""
    path = other_tools.llama_cpp(models["7"], tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    at = data.index(name.encode()) + len(name)
    at += 4 + 8 * int.from_bytes(data[at : at + 4], "little")
    assert data[at : at + 4] == (0).to_bytes(4, "little")
    data[at] = 1
    path.write_bytes(data)
    words = "belong to no tensor" if name.startswith("blk.2") else "leaves a hole before it"
    with pytest.raises(FormatError, match=words):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [("rwkv6qwen2", "RWKV-6 and Qwen2"), ("arwkv7", "ARWKV"), ("llama", "a model of kind llama, not RWKV")],
)
def test_gguf_of_other_models(tmp_path: Path, architecture: str, words: str) -> None:
    pytest.importorskip("gguf")
    other_tools.gguf_of_one_tensor(tmp_path / "m.gguf", architecture, "Q8_0", np.random.default_rng(5))
    with pytest.raises(UnsupportedModel, match=words):
        open_checkpoint(tmp_path / "m.gguf")


V7_CONFIG = {
    "model_type": "rwkv7", "hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 20, "norm_eps": 1e-5, "head_dim": 8,
}  # fmt: skip


def test_a_folder_of_several_files(models: Mapping[str, Tensors], tmp_path: Path) -> None:
    one = other_tools.fla(models["7"], tmp_path / "one.safetensors")
    with open_checkpoint(one) as opened:
        raw = {name: opened._file.array(name) for name in opened._file.tensors}
    folder = other_tools.sharded(raw, tmp_path / "model", 3, V7_CONFIG)
    check_equal(folder, models["7"], "fla")
    index = folder / "model.safetensors.index.json"
    check_equal(index, models["7"], "fla")
    with open_checkpoint(folder) as opened:
        assert opened.group_norm_eps == 8e-5  # fla's is the size of a head times norm_eps
        assert opened.file_size == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert len(opened.sha256()) == 64 and opened.path == folder
    with open_checkpoint(folder / "model-00001-of-00003.safetensors") as opened:
        with pytest.raises(UnsupportedModel, match="is part 1 of 3") as caught:
            _ = opened.arch
        assert "pass the folder" in (caught.value.hint or "")
    said = json.loads(index.read_text())
    for places, words, kind in (
        (
            {**said["weight_map"], "more": "model-00001-of-00003.safetensors"},
            "has no tensor more",
            FormatError,
        ),
        ({"x": "../outside.safetensors"}, "outside of its folder", FormatError),
        ({"x": "none.safetensors"}, "is missing", SourceNotFound),
        ({"x": 3}, "no weight_map", FormatError),
        ({}, "no weight_map", FormatError),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(kind, match=words):
            open_checkpoint(folder)
    index.write_text("[" * 100_000)
    with pytest.raises(FormatError, match="not valid JSON"):
        open_checkpoint(folder)


def test_folders_in_the_format_of_torch(models: Mapping[str, Tensors], tmp_path: Path) -> None:
    one = other_tools.fla(models["7"], tmp_path / "one.safetensors")
    with open_checkpoint(one) as opened:
        raw = {name: opened._file.array(name) for name in opened._file.tensors}
    folder = other_tools.sharded(raw, tmp_path / "model", 3, V7_CONFIG, torch=True)
    for path in (folder, folder / "pytorch_model.bin.index.json"):
        check_equal(path, models["7"], "fla")
    with open_checkpoint(folder) as opened:
        assert (opened.format, opened.group_norm_eps) == ("pth", 8e-5)
        assert opened.file_size == sum(file.stat().st_size for file in folder.glob("*.bin"))
    (folder / "pytorch_model-00002-of-00003.bin").write_bytes(b"PK\3\4")
    with pytest.raises(FormatError, match=r"pytorch_model-00002-of-00003\.bin"):
        open_checkpoint(folder)
    # in one file, beside others that such folders hold
    lone = tmp_path / "lone"
    lone.mkdir()
    other_tools.write_pth(raw, lone / "pytorch_model.bin")
    (lone / "config.json").write_text(json.dumps(V7_CONFIG))
    (lone / "training_args.bin").write_bytes(b"x")
    check_equal(lone, models["7"], "fla")
    with open_checkpoint(lone / "pytorch_model.bin") as opened:
        assert opened.group_norm_eps == 8e-5
    # the same weights in several files of the one format and in one of the other: the one
    shutil.copyfile(one, folder / "model.safetensors")
    with open_checkpoint(folder) as opened:
        assert opened.format == "safetensors"


def test_what_torch_itself_saves_of_a_module(models: Mapping[str, Tensors], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Module()
    with open_checkpoint(other_tools.transformers(models["4"], tmp_path / "one.safetensors")) as opened:
        for name in opened._file.tensors:
            *folders, leaf = name.split(".")
            inner = module
            for each in folders:
                if not hasattr(inner, each):
                    inner.add_module(each, torch.nn.Module())
                inner = getattr(inner, each)
            inner.register_parameter(
                leaf, torch.nn.Parameter(torch.from_numpy(opened._file.array(name).copy()))
            )
    state = module.state_dict()
    assert state._metadata  # an ordered dict with more than its items
    torch.save(state, tmp_path / "pytorch_model.bin")
    check_equal(tmp_path / "pytorch_model.bin", models["4"], "transformers")


def with_config(folder: Path, values: Mapping[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "rwkv7", **values}))


def test_a_norm_inside_the_embedding(models: Mapping[str, Tensors], tmp_path: Path) -> None:
    path = other_tools.vllm_rwkv7(models["7"], tmp_path / "model.safetensors", fused=True)
    with open_checkpoint(path) as opened, pytest.raises(UnsupportedModel, match="no first layer norm"):
        _ = opened.arch
    for key, value in (("embedding_layer_norm_fused", True), ("norm_first", False)):
        with_config(tmp_path, {key: value})
        with open_checkpoint(tmp_path) as opened:
            assert opened.arch.ln0_fused and set(expected(opened.arch)) == set(opened.names) - {
                "blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"
            }  # fmt: skip


@pytest.mark.parametrize(("version", "writer"), [("4", other_tools.transformers), ("7", other_tools.fla)])
def test_a_head_that_is_the_embedding(
    models: Mapping[str, Tensors], tmp_path: Path, version: str, writer: Writer
) -> None:
    """As the transformers save it: without the head."""
    tied = {**models[version], "head.weight": models[version]["emb.weight"]}
    writer(
        {name: array for name, array in tied.items() if name != "head.weight"}, tmp_path / "model.safetensors"
    )
    with open_checkpoint(tmp_path / "model.safetensors") as opened:
        with pytest.raises(FormatError, match=r"1 of \d+ tensors are missing: head.weight"):
            _ = opened.arch
        bare = opened.nbytes
    with_config(tmp_path, {"tie_word_embeddings": True})
    check_equal(tmp_path, tied, "transformers" if version == "4" else "fla")
    with open_checkpoint(tmp_path) as opened:
        assert opened.nbytes == bare
        assert (opened.repeated, opened.stored("head.weight")) == ({"head.weight"}, ("f32", 0))
        parameters = sum(array.size for name, array in tied.items() if name in expected(opened.arch))
    found = inspect(tmp_path)
    assert found["parameters"] == parameters - tied["head.weight"].size
    assert (found["formats"], found["bits_per_weight"]) == ({"f32": bare}, 32)
    writer(models[version], tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as opened:  # a head that is there is the head
        assert np.array_equal(opened.read("head.weight"), models[version]["head.weight"])
        assert not opened.repeated
    assert inspect(tmp_path)["parameters"] == parameters


def test_a_head_that_shares_the_memory_of_the_embedding(
    models: Mapping[str, Tensors], tmp_path: Path
) -> None:
    """As `torch.save` writes it: two names of one storage."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in models["4"].items()}
    tensors["head.weight"] = tensors["emb.weight"]
    torch.save(tensors, tmp_path / "tied.pth")
    with open_checkpoint(tmp_path / "tied.pth") as opened:
        assert opened.repeated == {"head.weight"}
    tensors["head.weight"] = tensors["emb.weight"].clone()
    torch.save(tensors, tmp_path / "equal.pth")
    tied, equal = inspect(tmp_path / "tied.pth"), inspect(tmp_path / "equal.pth")
    size = models["4"]["emb.weight"].size
    assert equal["parameters"] - tied["parameters"] == size
    assert equal["formats"]["f32"] - tied["formats"]["f32"] == 4 * size


def test_configurations(models: Mapping[str, Tensors], tmp_path: Path) -> None:
    other_tools.rwkv7_of_2026(models["7"], tmp_path / "model.safetensors")

    def opened_with(values: Mapping[str, object]) -> Checkpoint:
        with_config(tmp_path, values)
        with open_checkpoint(tmp_path) as opened:
            _ = opened.arch
            return opened

    assert opened_with({}).group_norm_eps is None
    assert opened_with({"norm_eps": 1e-5}).group_norm_eps == 8e-5
    with pytest.raises(UnsupportedModel, match="norm_eps of 1e-06"):
        opened_with({"norm_eps": 1e-6})
    with pytest.raises(FormatError, match="its hidden_size is 64, but the tensors say 32"):
        opened_with({"hidden_size": 64})
    with pytest.raises(UnsupportedModel, match="hybrid with attention"):
        opened_with({"attn": {"layers": [1]}})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FormatError, match="not valid JSON"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 1}')
    with open_checkpoint(tmp_path) as opened:
        assert opened.arch.version == "7"  # another model's configuration says nothing
    other_tools.transformers(models["6"], tmp_path / "model.safetensors")
    with_config(tmp_path, {"model_type": "rwkv6", "head_size_divisor": 8, "hidden_size": 32})
    with open_checkpoint(tmp_path) as opened:
        assert opened.arch.version == "6" and opened.group_norm_eps == 64e-5
    with_config(tmp_path, {"model_type": "rwkv6", "head_size_divisor": 400})
    with open_checkpoint(tmp_path) as opened, pytest.raises(FormatError, match="head_size_divisor is 400"):
        _ = opened.group_norm_eps  # of which no model file could hold the epsilon
    write_pth(tmp_path / "another.pth", make_checkpoint("4", 1, 16, 20))
    with open_checkpoint(tmp_path / "another.pth") as opened:
        assert opened.arch.n_embd == 16  # which the configuration does not speak of


def test_a_square_factor_whose_side_cannot_be_told(tmp_path: Path) -> None:
    tensors = make_checkpoint("7", 2, 8, 11, 8, n_ffn=32, ranks=(8, 3, 3, 3))
    with pytest.raises(UnsupportedModel, match="cannot be told from its shape"):
        open_checkpoint(other_tools.vllm_rwkv7(tensors, tmp_path / "m.safetensors"))
    check_equal(
        other_tools.fla(tensors, tmp_path / "m.safetensors"), tensors, "fla"
    )  # fla's are always turned


def test_a_decay_of_another_length_in_a_file_of_rwkv_cpp(
    models: Mapping[str, Tensors], tmp_path: Path
) -> None:
    name = "blocks.1.att.time_decay"
    tensors = models["6"] | {name: models["6"][name][..., :16]}
    other_tools.rwkv_cpp(tensors, tmp_path / "m.bin")
    with (
        open_checkpoint(tmp_path / "m.bin") as opened,
        pytest.raises(FormatError, match=f"tensor {name} has shape"),
    ):
        _ = opened.arch


@pytest.mark.parametrize("said", ["1" + "0" * 400, "-1", "true", '"1e-5"', "0"])
def test_an_epsilon_that_is_none(models: Mapping[str, Tensors], tmp_path: Path, said: str) -> None:
    other_tools.fla(models["7"], tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(f'{{"model_type": "rwkv7", "norm_eps": {said}}}')
    with open_checkpoint(tmp_path) as opened, pytest.raises(UnsupportedModel, match="a norm_eps of"):
        _ = opened.arch
