"""Version and sizes from names and shapes; refusals of what is not supported."""

from __future__ import annotations

import random
from typing import Any

import pytest

from quant.arch import VERSIONS, Arch, detect, expected, logical_shape, parameter_count
from quant.errors import FormatError, UnsupportedModel
from quant.synthetic import shapes_as_stored, synthetic_arch

ODD: list[Arch] = [
    synthetic_arch("4", 3, 40, 257),
    synthetic_arch("4", 1, 64, 50277, n_ffn=96),
    synthetic_arch("5.0", 2, 64, 300, 8),
    synthetic_arch("5.0", 2, 64, 300, 8, time_first_is_log=True),
    synthetic_arch("5.1", 2, 64, 300, 16),
    synthetic_arch("5.1", 2, 64, 300, 16, time_first_is_log=True),
    synthetic_arch("5.2", 3, 64, 256, 8, n_ffn=100),
    synthetic_arch("5.2", 1, 64, 256, 64),
    synthetic_arch("6", 2, 48, 1000, 16, ranks=(7, 9)),
    synthetic_arch("6", 1, 96, 50277, 32),
    synthetic_arch("7", 4, 64, 256, 64, ranks=(32, 31, 30, 29)),
    synthetic_arch("7", 2, 24, 99, 8, ranks=(3, 4, 5, 6), n_ffn=50),
    synthetic_arch("7", 1, 64, 256, 8),
]

REAL: list[tuple[Arch, int]] = [
    (synthetic_arch("4", 12, 768, 50277), 169_342_464),
    (synthetic_arch("4", 24, 1024, 50277), 430_397_440),
    (synthetic_arch("4", 24, 2048, 50277), 1_515_106_304),
    (synthetic_arch("4", 32, 2560, 50277), 2_984_627_200),
    (synthetic_arch("4", 32, 4096, 50277), 7_392_649_216),
    (synthetic_arch("4", 40, 5120, 50277), 14_148_597_760),
    (synthetic_arch("5.2", 12, 768, 65536), 192_807_936),
    (synthetic_arch("5.2", 24, 1024, 65536), 461_721_600),
    (synthetic_arch("5.2", 24, 2048, 65536), 1_577_754_624),
    (synthetic_arch("5.2", 32, 2560, 65536), 3_062_999_040),
    (synthetic_arch("5.2", 32, 4096, 65536), 7_518_044_160),
    (synthetic_arch("6", 24, 2048, 65536), 1_599_873_024),
    (synthetic_arch("6", 32, 2560, 65536), 3_099_863_040),
    (synthetic_arch("6", 32, 4096, 65536), 7_635_746_816),
    (synthetic_arch("6", 61, 4096, 65536), 14_069_088_256),
    (synthetic_arch("7", 12, 768, 65536), 191_084_544),
    (synthetic_arch("7", 24, 1024, 65536), 450_834_432),
    (synthetic_arch("7", 24, 2048, 65536), 1_527_668_736),
    (synthetic_arch("7", 32, 2560, 65536), 2_948_065_280),
    (synthetic_arch("7", 32, 4096, 65536), 7_199_932_416),
    (synthetic_arch("7", 61, 4096, 65536, ranks=(192, 192, 128, 384)), 13_270_298_624),
]


def elements(shapes: dict[str, tuple[int, ...]]) -> int:
    total = 0
    for shape in shapes.values():
        count = 1
        for dim in shape:
            count *= dim
        total += count
    return total


def name_of(arch: Any) -> str:
    return f"v{arch.version}-L{arch.n_layer}-C{arch.n_embd}" if isinstance(arch, Arch) else ""


@pytest.mark.parametrize("arch", ODD, ids=name_of)
def test_detects_odd_sizes(arch: Arch) -> None:
    assert detect(expected(arch)) == arch
    assert detect(shapes_as_stored(arch)) == arch


@pytest.mark.parametrize(("arch", "count"), REAL, ids=name_of)
def test_counts_real_models(arch: Arch, count: int) -> None:
    assert parameter_count(arch) == count
    assert elements(shapes_as_stored(arch)) == count
    assert detect(expected(arch)) == arch


@pytest.mark.parametrize("arch", [arch for arch in ODD if arch.n_layer > 1], ids=name_of)
def test_formula_counts_every_tensor(arch: Arch) -> None:
    assert parameter_count(arch) == elements(shapes_as_stored(arch))


@pytest.mark.parametrize("arch", ODD, ids=name_of)
def test_key_order_does_not_matter(arch: Arch) -> None:
    items = list(shapes_as_stored(arch).items())
    shuffle = random.Random(5)
    for _ in range(5):
        shuffle.shuffle(items)
        assert detect(dict(items)) == arch


def test_all_versions_are_covered() -> None:
    assert {arch.version for arch in ODD} == set(VERSIONS)


def test_one_head_keeps_its_axis() -> None:
    arch = synthetic_arch("7", 2, 64, 256, 64)
    assert expected(arch)["blocks.0.att.r_k"] == (1, 64)
    assert logical_shape((1, 64)) == (1, 64)
    assert logical_shape((1, 1, 64)) == (64,)
    assert logical_shape((1, 5, 64)) == (1, 5, 64)


def test_v7_layer_0_value_residual_is_never_used() -> None:
    arch = synthetic_arch("7", 3, 32, 64, 16, ranks=(4, 4, 6, 4))
    assert "blocks.0.att.v1" not in expected(arch)
    without = expected(arch)
    strange = {**without, "blocks.0.att.v0": (3,), "blocks.0.att.v1": (1, 1), "blocks.0.att.v2": (2,)}
    assert detect(without) == detect(strange) == arch
    assert detect(without).rank_value == 6


@pytest.mark.parametrize("arch", ODD, ids=name_of)
def test_every_tensor_is_needed(arch: Arch) -> None:
    full = expected(arch)
    for name in full:
        less = {key: shape for key, shape in full.items() if key != name}
        with pytest.raises(FormatError):
            detect(less, "model.pth")


@pytest.mark.parametrize("arch", ODD, ids=name_of)
def test_every_shape_is_checked(arch: Arch) -> None:
    full = expected(arch)
    for name, shape in full.items():
        for wrong in ((*shape, 1), tuple(dim + 1 for dim in shape), shape[1:], (0,) * len(shape)):
            if name == "blocks.0.ffn.key.weight" and wrong[1:] == shape[1:]:
                continue
            with pytest.raises(FormatError):
                detect({**full, name: wrong})


def test_messages_name_what_is_wrong() -> None:
    full = expected(synthetic_arch("5.2", 3, 64, 256, 8))
    less = {name: shape for name, shape in full.items() if name != "blocks.1.att.key.weight"}
    with pytest.raises(
        FormatError, match=r"^m\.pth: 1 of 72 tensors are missing: blocks\.1\.att\.key\.weight$"
    ):
        detect(less, "m.pth")
    with pytest.raises(FormatError, match=r"^m\.pth: 1 unexpected tensors: blocks\.1\.att\.strange$"):
        detect({**full, "blocks.1.att.strange": (1,)}, "m.pth")
    with pytest.raises(FormatError, match=r"tensor blocks\.2\.ln1\.bias has shape \[65\], not \[64\]$"):
        detect({**full, "blocks.2.ln1.bias": (65,)}, "m.pth")
    without_block = {name: shape for name, shape in full.items() if not name.startswith("blocks.1.")}
    with pytest.raises(FormatError, match=r"block 1 is missing \(the last one is 2\)"):
        detect(without_block, "m.pth")
    with pytest.raises(FormatError, match="holds no tensors"):
        detect({}, "m.pth")


def test_a_huge_block_number_costs_nothing() -> None:
    full = expected(synthetic_arch("4", 1, 8, 8))
    with pytest.raises(FormatError):
        detect({**full, "blocks.999999.ln1.bias": (8,)})
    with pytest.raises(FormatError):
        detect({**full, "blocks.99999999999999999999.ln1.bias": (8,)})
    with pytest.raises(FormatError):
        detect({**full, "blocks.00.ln1.bias": (8,)})


V4 = expected(synthetic_arch("4", 2, 16, 32))
V6 = expected(synthetic_arch("6", 2, 16, 32, 8, ranks=(3, 3)))
V7 = expected(synthetic_arch("7", 2, 16, 32, 8, ranks=(3, 3, 3, 3)))


def renamed(shapes: dict[str, tuple[int, ...]], *pairs: tuple[str, str]) -> dict[str, tuple[int, ...]]:
    result = {}
    for name, shape in shapes.items():
        renamed = name
        for old, new in pairs:
            renamed = renamed.replace(old, new)
        result[renamed] = shape
    return result


def without(shapes: dict[str, tuple[int, ...]], part: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if part not in name}


VARIANTS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "v7a": (
        {**V7, "blocks.0.ffn.s_emb.weight": (32, 1024), "blocks.1.ffn.s_emb.weight": (32, 1024)},
        "RWKV-7a",
    ),
    "v7b": ({**V7, "blocks.0.qkv.qq.weight": (8, 16), "blocks.0.ffn.s_emb.weight": (32, 1024)}, "RWKV-7b"),
    "v8": ({**V7, "blocks.0.rosa.q": (16,), "blocks.1.rosa.q": (16,)}, "variant of RWKV-7"),
    "v8 outer": ({**V7, "rosa.weight": (16,)}, "variant of RWKV-7"),
    "v4a": ({**V4, "blocks.1.tiny_q.weight": (16, 16)}, "RWKV-4a"),
    "v4b": ({**V4, "blocks.1.att.qq.weight": (16, 16)}, "RWKV-4b"),
    "head-QK": ({**V4, "head_q.weight": (8, 16), "head_k.weight": (8, 16)}, "head-QK"),
    "x060a": (without(V6, "att.gate"), "RWKV-6 training variant"),
    "x060b": (without(renamed(V6, ("time_maa_w1", "time_maa_rkvw_w1")), "maa_x"), "RWKV-6 training variant"),
    "x060c": ({**V6, "blocks.0.att.time_x": (16,), "blocks.1.att.time_x": (16,)}, "RWKV-6 training variant"),
    "fla v6": ({"model.layers.0.attn.x_proj.0.linear.weight": (15, 16)}, "fla layout"),
    "no ln0": (without(V7, ".ln0."), "no first layer norm"),
    "LoRA": ({"blocks.0.att.key.lora_A": (8, 16), "blocks.0.att.key.lora_B": (16, 8)}, "LoRA"),
    "state": ({"blocks.0.att.time_state": (2, 8, 8)}, "an initial state"),
    "merged state": ({**V7, "blocks.0.att.time_state": (2, 8, 8)}, "merged in"),
    "llama": ({"model.layers.0.self_attn.q_proj.weight": (8, 8)}, "a transformer"),
    "unknown": ({"conv1.weight": (3, 3)}, "not an RWKV model of a known version; it holds conv1.weight"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_refused_by_name(variant: str) -> None:
    shapes, words = VARIANTS[variant]
    with pytest.raises(UnsupportedModel, match=words) as caught:
        detect(shapes, "model.pth")
    message = str(caught.value)
    assert caught.value.exit_code == 4
    assert "model.pth" in message
    assert "\n" not in message
    assert len(message) < 200


def test_damage_is_not_called_a_variant() -> None:
    v7 = expected(synthetic_arch("7", 3, 16, 32, 8, ranks=(3, 3, 3, 3)))
    for shapes in (V6, v7):
        for name in (name for name in shapes if name.startswith("blocks.1.att.")):
            with pytest.raises(FormatError) as caught:
                detect(without(shapes, name))
            assert not isinstance(caught.value, UnsupportedModel), name


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_counter_is_not_called_a_variant(shape: tuple[int, ...]) -> None:
    for shapes in (V6, V7):
        with pytest.raises(FormatError, match="unexpected tensors: step") as caught:
            detect({**shapes, "step": shape})
        assert not isinstance(caught.value, UnsupportedModel)


def test_a_norm_that_the_embedding_holds_has_to_be_said() -> None:
    fused = detect(without(V7, ".ln0."), ln0_fused=True)
    assert fused.ln0_fused and expected(fused) == without(V7, ".ln0.")
    assert parameter_count(fused) == parameter_count(detect(V7)) - 2 * fused.n_embd
    assert not detect(V7, ln0_fused=True).ln0_fused  # it is there, so it is used
