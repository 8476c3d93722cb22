"""Which format each tensor gets: recipes, overrides, and plans for a size."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from least_errors import bounds
from quant_models import checkpoint, odd_arch

from quant import sampling
from quant.budget import Option, choose, hull
from quant.checkpoints import open_checkpoint
from quant.codecs import layouts, levels
from quant.errors import InvalidRequest
from quant.formats import ENCODINGS
from quant.methods import numpy_encoder
from quant.recipe import (
    Override,
    bits_per_weight,
    class_of,
    estimated_bytes,
    make_plan,
)
from quant.sampling import losses, plan_within, rows_of
from quant.sources import source_of
from quant.synthetic import synthetic_arch
from quant.yardstick import q4_k_m_bytes, q5_k_m_bytes, q6_k_bytes

SIZES = {"0.1B": (12, 768), "0.4B": (24, 1024), "1.5B": (24, 2048), "2.9B": (32, 2560), "7B": (32, 4096)}


@pytest.mark.parametrize("size", SIZES)
def test_the_default_is_no_larger_than_q4_k_m(size: str) -> None:
    layers, width = SIZES[size]
    arch = synthetic_arch("7", layers, width, 65536)
    default = make_plan(arch, "int4")
    assert estimated_bytes(default) <= q4_k_m_bytes(arch)
    assert estimated_bytes(default) > 0.94 * q4_k_m_bytes(arch)  # and not smaller than it has to be
    best = make_plan(arch, "int4", recipe="best")
    assert estimated_bytes(best) > 1.05 * estimated_bytes(default)
    for name in ("value", "output"):
        assert best[f"blocks.1.att.{name}.weight"].encoding == "q8g32"
    assert best["blocks.1.ffn.key.weight"].encoding == best["blocks.1.att.key.weight"].encoding == "q4g16"


@pytest.mark.parametrize("size", SIZES)
def test_int5_is_no_larger_than_q5_k_m(size: str) -> None:
    layers, width = SIZES[size]
    arch = synthetic_arch("7", layers, width, 65536)
    default, best = make_plan(arch, "int5"), make_plan(arch, "int5", recipe="best")
    assert 0.95 * q5_k_m_bytes(arch) < estimated_bytes(default) <= q5_k_m_bytes(arch)
    assert estimated_bytes(default) < estimated_bytes(best) < estimated_bytes(make_plan(arch, "int8"))
    assert (
        default["blocks.1.att.key.weight"].encoding
        == default["blocks.1.att.value.weight"].encoding
        == "q5g16"
    )
    assert default["blocks.1.ffn.key.weight"].encoding == "q5g32"
    assert default["emb.weight"].encoding == {"0.1B": "q5g32", "0.4B": "q6g16"}.get(size, "q8g32")
    assert default["head.weight"].encoding == default["blocks.1.att.w1"].encoding == "q8g32"
    assert best["blocks.1.att.output.weight"].encoding == "q8g32"
    assert best["blocks.1.att.key.weight"].encoding == best["blocks.1.ffn.key.weight"].encoding == "q5g16"


@pytest.mark.parametrize("size", SIZES)
def test_int6_is_no_larger_than_q6_k(size: str) -> None:
    layers, width = SIZES[size]
    arch = synthetic_arch("7", layers, width, 65536)
    default, best = make_plan(arch, "int6"), make_plan(arch, "int6", recipe="best")
    assert 0.93 * q6_k_bytes(arch) < estimated_bytes(default) <= q6_k_bytes(arch)
    assert estimated_bytes(default) < estimated_bytes(best) < estimated_bytes(make_plan(arch, "int8"))
    assert (
        default["blocks.1.att.value.weight"].encoding
        == default["blocks.1.ffn.key.weight"].encoding
        == "q6g32"
    )
    assert (default["emb.weight"].encoding, default["head.weight"].encoding) == (
        "q6g32" if size == "0.1B" else "q8g32", "q8g32",
    )  # fmt: skip
    assert default["blocks.1.att.w1"].encoding == "q8g32"
    assert (best["blocks.1.att.output.weight"].encoding, best["blocks.1.att.key.weight"].encoding) == (
        "q8g32",
        "q6g16",
    )


def test_the_size_of_q4_k_m() -> None:
    """Published files: 1.5B has 990 MB. By hand for a tiny model: the rules of llama.cpp, tensor by tensor."""
    arch = synthetic_arch("7", 24, 2048, 65536)
    assert q4_k_m_bytes(arch) == pytest.approx(990e6, rel=0.002)
    small = synthetic_arch("7", 1, 256, 300, ranks=(8, 8, 8, 8))
    matrices = 300 * 256 * (4.5 + 6.5625) + 12 * 256 * 256 * 4.5
    low_rank = 2 * 256 * 8 * (32 + 16 + 16)
    vectors = 32 * sum(
        int(np.prod(item.shape))
        for name, item in make_plan(small, "f32").items()
        if class_of(name) == "vectors"
    )
    assert q4_k_m_bytes(small) == int((matrices + low_rank + vectors) / 8)
    matrices = (300 * 256 + 12 * 256 * 256) * 5.5 + 300 * 256 * 6.5625
    assert q5_k_m_bytes(small) == int((matrices + low_rank + vectors) / 8)
    matrices = (2 * 300 * 256 + 12 * 256 * 256) * 6.5625
    assert q6_k_bytes(small) == int((matrices + low_rank + vectors) / 8)
    narrow = synthetic_arch("7", 1, 64, 256, ranks=(8, 8, 8, 8))  # 64 is no multiple of 256, 4 * 64 is
    assert (
        q4_k_m_bytes(narrow)
        > 64 * 64 * (4 + 4) * 5.5 / 8 + 4 * 64 * 64 * 4.5 / 8 + 256 * 64 * (5.5 + 8.5) / 8
    )


def encodings(*words: str, kind: str = "int4") -> dict[str, str]:
    overrides = [Override.parse(word) for word in words]
    return {name: item.encoding for name, item in make_plan(odd_arch("7"), kind, overrides=overrides).items()}


def test_overrides() -> None:
    plain, made = encodings(), encodings(r"att\.(value|output)=int8", "output=q4g32", "head=bf16", "emb=int4")
    assert encodings("att.key=int6")["blocks.1.att.key.weight"] == "q6g32"
    assert encodings("att.key=int5", "ffn.key=q5g32")["blocks.1.att.key.weight"] == "q5g16"
    changed = {name for name in plain if plain[name] != made[name]}
    assert changed == {
        "emb.weight", "head.weight", *(f"blocks.{i}.att.{x}.weight" for i in "01" for x in ("value", "output")),
    }  # fmt: skip
    assert made["blocks.0.att.value.weight"] == "q8g32" and made["blocks.1.att.output.weight"] == "q4g32"
    assert (made["head.weight"], made["emb.weight"]) == ("bf16", "q4g16")
    assert encodings(r"blocks\.0\.=q4g32")["blocks.1.att.key.weight"] == plain["blocks.1.att.key.weight"]
    plan = make_plan(odd_arch("7"), "int8", overrides=[Override.parse("ffn.value=q4g16")], ffn_value="kn")
    assert plan["blocks.1.ffn.value.weight"][:2] == ("q4g16", "kn")


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("att.valeu=int8", "no tensor matches 'att.valeu'", "att.value"),
        ("foo=int8", "no tensor matches 'foo'", "there are emb, att.w1, "),
        ("haed=int8", "no tensor matches 'haed'", "there are head"),
        ("ln1=int8", "'ln1' matches no matrix: blocks.0.ln1.weight is always f32", None),
        ("head=q5", "unknown format 'q5' for tensors 'head'", "q4g16"),
        ("(=int8", r"'(' is no regular expression: ", None),
        ("head", "'head' is not REGEX=FORMAT", "att.value"),
        ("=int8", "'=int8' is not REGEX=FORMAT", "att.value"),
        (r"blocks\.0\.ffn.key=bf16", "ffn.key.weight would be integers in some blocks", "all blocks"),
    ],
)
def test_bad_overrides(word: str, message: str, hint: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        encodings(word)
    assert message in str(caught.value)
    assert (hint or "") in (caught.value.hint or "")


def all_plans(options: dict[str, list[Option]]) -> list[tuple[int, float]]:
    """(bytes, error) of every way to choose."""
    return [
        (sum(option.nbytes for option in way), sum(option.error for option in way))
        for way in itertools.product(*options.values())
    ]


def test_steps_are_the_best_there_are() -> None:
    """Against all plans: at every size that steps end at exactly, none of that size or less loses less."""
    drawn = random.Random(5)
    reached = 0
    for _ in range(40):
        options = {
            name: [
                Option(encoding, (n := drawn.randrange(1, 9)) + 8 * i, drawn.random() / (1 + i) / n)
                for i, encoding in enumerate(("q4g32", "q4g16", "q8g32"))
            ]
            for name in "abcde"
        }
        plans = all_plans(options)
        least = sum(hull(each)[0].nbytes for each in options.values())
        seen = set()
        for limit in range(least, max(size for size, _ in plans) + 1):
            found = choose(options, limit)
            size, error = sum(o.nbytes for o in found.values()), sum(o.error for o in found.values())
            assert size <= limit
            best = min(e for s, e in plans if s <= limit)
            assert error <= 1.5 * best + 0.2
            if size == limit and size not in seen:
                seen.add(size)
                before = (
                    sum(o.error for o in choose(options, limit - 1).values()) if limit > least else np.inf
                )
                assert error <= before
        # along the hulls, without what was left out for lack of room
        hulls = {name: hull(each) for name, each in options.items()}
        steps = sorted(
            ((low.error - high.error) / (high.nbytes - low.nbytes), name, i)
            for name, each in hulls.items()
            for i, (low, high) in enumerate(itertools.pairwise(each))
        )[::-1]
        size, at = least, dict.fromkeys(hulls, 0)
        for _, name, i in steps:
            size += hulls[name][i + 1].nbytes - hulls[name][i].nbytes
            at[name] = i + 1
            found = choose(options, size)
            error = sum(option.error for option in found.values())
            assert error == pytest.approx(min(e for s, e in plans if s <= size))
            reached += 1
    assert reached > 200


def test_a_hull_leaves_out_what_is_no_gain() -> None:
    a, b, c = Option("a", 10, 8.0), Option("b", 12, 7.9), Option("c", 14, 1.0)
    assert hull([c, b, a]) == [a, c]
    assert hull([a, Option("d", 10, 9.0), Option("e", 11, 8.0)]) == [a]
    with pytest.raises(InvalidRequest, match="too small by 3 B"):
        choose({"x": [a]}, 7)


def test_a_plan_for_a_size(tmp_path: Path) -> None:
    arch = odd_arch("7")
    with open_checkpoint(checkpoint(tmp_path / "m.pth", arch)) as opened:
        source = source_of(opened)
        plan = make_plan(arch, "int4")
        sizes = []
        fixed = [Override.parse("head=q4g32")]
        start = make_plan(arch, "int4", overrides=fixed)
        smallest = make_plan(
            arch, "int4", overrides=[*map(Override.parse, ("att.(k|r|v|o).*weight|ffn|emb|head=q4g32",))]
        )
        least = bits_per_weight(smallest)
        for bits in (least + 1.5, least + 0.01, 40.0):
            weights = sum(int(np.prod(item.shape)) for item in plan.values())
            limit = int(bits * weights / 8)
            seen: list[str] = []
            found = plan_within(
                source,
                start,
                lambda found, limit=limit: sum(item.nbytes for item in found.values()) - limit,
                encoder=numpy_encoder("nearest"),
                overrides=fixed,
                on_progress=lambda name, done, total, seen=seen: seen.append(name),
            )
            assert bits_per_weight(found) <= bits and found["head.weight"].encoding == "q4g32"
            assert "head.weight" not in seen and "blocks.0.att.key.weight" in seen
            assert all(item.encoding == "q8g32" for n, item in found.items() if class_of(n) == "low-rank")
            sizes.append(bits_per_weight(found))
        assert sizes[1] < sizes[0] < sizes[2]
        assert all(i.encoding == "q8g32" for n, i in found.items() if class_of(n) in ("att", "ffn", "emb"))
        with pytest.raises(InvalidRequest, match=r"too small: this model cannot be smaller than \d+ kB"):
            plan_within(source, plan, lambda _: 1, encoder=numpy_encoder("nearest"))


def test_embedding_and_head_count_for_every_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = odd_arch("7")
    told: dict[str, list[Option]] = {}
    monkeypatch.setattr(sampling, "losses", lambda *_: dict.fromkeys(sampling.ENCODINGS, 0.25))
    monkeypatch.setattr(
        sampling, "choose", lambda options, room: told.update(options) or choose(options, room)
    )
    with open_checkpoint(checkpoint(tmp_path / "m.pth", arch)) as opened:
        plan_within(source_of(opened), make_plan(arch, "int4"), lambda _: 0, encoder=numpy_encoder("nearest"))
    assert arch.n_layer == 2
    errors = {name: {option.error for option in options} for name, options in told.items()}
    assert errors.pop("emb.weight") == errors.pop("head.weight") == {0.5}
    assert len(errors) == 12 and all(each == {0.25} for each in errors.values())


def test_what_is_measured_is_what_is_lost(tmp_path: Path) -> None:
    arch = odd_arch("5.2")
    with open_checkpoint(checkpoint(tmp_path / "m.pth", arch)) as opened:
        values = rows_of(source_of(opened), "blocks.1.ffn.key.weight")
    assert values.shape == (104, 48)
    importance = np.linspace(0.1, 3, 48, dtype=np.float32)
    found = losses(values, numpy_encoder(), importance)
    assert 2e-3 < found["q4g16"] < found["q4g32"] < 1e-2 and found["q8g32"] < 6e-5
    assert found["q6g16"] < found["q6g32"] < found["q5g16"] < found["q5g32"] < found["q4g16"]
    for encoding in ("q6g16", "q6g32", "q5g16", "q5g32"):
        parts = numpy_encoder().encode(values, encoding, "t16x4", importance)
        table = levels(layouts.unpack(parts, encoding, "t16x4", values.shape), encoding)
        bound = bounds(values, ENCODINGS[encoding].group, table, importance)
        assert bound.least < found[encoding] < bound.most
    assert losses(np.zeros((16, 32), np.float32), numpy_encoder(), None) == dict.fromkeys(found, 0.0)
