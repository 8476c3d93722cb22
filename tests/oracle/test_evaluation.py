"""Measurements of a model against log-softmaxes in float64, over the PyTorch twin's logits and the engine's own."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from quant_models import checkpoint, odd_arch, quantized
from text_oracles import log_softmax

from quant.container.reader import ModelFile
from rwkvcli import Model
from rwkvcli.runtime import scoring
from rwkvcli.services.evaluation import Measurement, measure

TEXT = (
    b"The old man sat down by the fire, and looked at the children for a long time.\n" * 7
    + b"caf\xc3\xa9 \xff\n"
)
TOKENS = list(TEXT[:-1])  # the newline at the end is dropped, as of prompts


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random RWKV-7 over bytes in three formats."""
    folder = tmp_path_factory.mktemp("models")
    source = checkpoint(folder / "small.pth", odd_arch("7"), "f32")
    for kind in ("f32", "int8", "int4"):
        quantized(source, folder / f"{kind}.safetensors", kind)
    return {kind: folder / f"{kind}.safetensors" for kind in ("f32", "int8", "int4")}


def logits_of(model: Any, ctx: int | None) -> NDArray[np.float32]:
    """What `model` (anything with the engine's methods) gives before each token, a window at a time."""
    rows = []
    for begin in range(0, len(TOKENS), ctx or len(TOKENS)):
        fed = [0, *TOKENS[begin : begin + (ctx or len(TOKENS))]][:-1]
        rows.append(model.forward(np.array(fed, np.int32), model.new_state(), all_logits=True))
    return np.concatenate(rows)


def losses(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    chosen: NDArray[np.float64] = -log_softmax(logits)[np.arange(len(TOKENS)), TOKENS]
    return chosen


def found(model: Model, text: bytes = TEXT, **options: Any) -> Measurement:
    return measure(model, io.BytesIO(text), **options)


@pytest.mark.parametrize("ctx", [None, 100])
def test_perplexity_is_that_of_the_twin(paths: dict[str, Path], ctx: int | None) -> None:
    pytest.importorskip("torch", reason="the PyTorch backend is optional")
    from rwkvcli.runtime.torch_backend import TorchModel

    result = found(Model.load(paths["f32"]), ctx=ctx).to_json()
    with ModelFile.open(paths["f32"]) as file:
        expected = losses(logits_of(TorchModel(file, "cpu", "float64"), ctx))
    assert (result["tokens"], result["bytes"], result["ctx"]) == (len(TOKENS), len(TOKENS), ctx)
    assert result["perplexity"] == pytest.approx(math.exp(expected.mean()), rel=2e-6)
    assert result["bits_per_byte"] == pytest.approx(expected.mean() / math.log(2), rel=1e-6)


@pytest.mark.parametrize("ctx", [None, 100])
def test_everything_is_what_the_logits_say(paths: dict[str, Path], ctx: int | None) -> None:
    base, model = Model.load(paths["f32"]), Model.load(paths["int4"])
    result = found(model, base=base, ctx=ctx).to_json("f32")
    p, q = (log_softmax(logits_of(m, ctx)) for m in (base, model))
    rows = np.arange(len(TOKENS))
    nll, base_nll = -q[rows, TOKENS], -p[rows, TOKENS]
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    same = p.argmax(axis=1) == q.argmax(axis=1)
    assert result["perplexity"] == pytest.approx(math.exp(nll.mean()), rel=1e-12)
    assert result["bits_per_byte"] == pytest.approx(nll.sum() / math.log(2) / len(TOKENS), rel=1e-12)
    compared = result["base"]
    assert compared["model"] == "f32"
    assert compared["perplexity"] == pytest.approx(math.exp(base_nll.mean()), rel=1e-12)
    assert compared["ratio"] == pytest.approx(math.exp((nll - base_nll).mean()), rel=1e-12)
    assert compared["kl"]["mean"] == pytest.approx(kl.mean(), rel=1e-9)
    assert compared["kl"]["max"] == pytest.approx(kl.max(), rel=1e-9)
    for key, share in (("median", 0.5), ("p99", 0.99)):
        exact = np.quantile(kl, share, method="inverted_cdf")
        assert compared["kl"][key] == pytest.approx(exact, rel=5e-4)
    assert compared["same_top"] == same.mean()
    position = rows % ctx if ctx else rows
    edges = [0, 64, 128, 256, 512, 1024]
    octaves = [(a, b, (a <= position) & (position < b)) for a, b in itertools.pairwise(edges)]
    octaves = [octave for octave in octaves if octave[2].any()]
    assert [(row["begin"], row["end"], row["tokens"]) for row in compared["drift"]] == [
        (a, b, inside.sum()) for a, b, inside in octaves
    ]
    for row, (_, _, inside) in zip(compared["drift"], octaves, strict=True):
        assert row["kl"] == pytest.approx(kl[inside].mean(), rel=1e-9)
        assert row["same_top"] == same[inside].mean()
        assert row["ratio"] == pytest.approx(math.exp((nll - base_nll)[inside].mean()), rel=1e-12)


def test_errors_are_batch_means(paths: dict[str, Path]) -> None:
    base, model = Model.load(paths["f32"]), Model.load(paths["int4"])
    result = found(model, base=base).to_json()
    nll = losses(logits_of(model, None))
    length = 4  # 64 to 128 blocks of a power of two
    blocks = nll[: len(nll) // length * length].reshape(-1, length).mean(axis=1)
    assert 64 <= len(blocks) < 128 * 2
    while len(blocks) >= 128:
        length *= 2
        blocks = nll[: len(nll) // length * length].reshape(-1, length).mean(axis=1)
    stderr = blocks.std(ddof=1) / math.sqrt(len(nll) / length)
    assert result["stderr"] == pytest.approx(result["perplexity"] * stderr, rel=1e-9)
    assert result["bits_per_byte_stderr"] == pytest.approx(stderr / math.log(2), rel=1e-9)
    assert (
        result["base"]["ratio_stderr"] < result["stderr"] / result["perplexity"]
    )  # the text's ups and downs cancel


@pytest.mark.parametrize("ctx", [None, 37])
def test_threads_and_chunks_change_no_bit(
    paths: dict[str, Path], ctx: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for threads, rows in ((1, 512), (2, 512), (3, 7), (1, 1)):
        monkeypatch.setattr(scoring, "_MOST_ROWS", rows)
        base, model = (Model.load(paths[kind], threads=threads) for kind in ("int8", "int4"))
        results.append(found(model, base=base, ctx=ctx).to_json())
    assert all(result == results[0] for result in results)


def test_one_token(paths: dict[str, Path]) -> None:
    model = Model.load(paths["int8"])
    result = found(model, b"a", base=Model.load(paths["f32"])).to_json()
    expected = -log_softmax(model.forward([0], model.new_state()))[ord("a")]
    assert (result["tokens"], result["stderr"], result["bits_per_byte_stderr"]) == (1, None, None)
    assert result["perplexity"] == pytest.approx(math.exp(expected), rel=1e-12)
    assert result["base"]["kl"]["stderr"] is result["base"]["ratio_stderr"] is None


def test_a_limit_is_a_shorter_text(paths: dict[str, Path]) -> None:
    model = Model.load(paths["int8"])
    assert found(model, limit=100).to_json() == found(model, TEXT[:100]).to_json()
    assert found(model, limit=10_000).to_json() == found(model).to_json()


def test_a_model_is_its_own_equal(paths: dict[str, Path]) -> None:
    model = Model.load(paths["int4"])
    compared = found(model, base=model).to_json()["base"]
    assert compared["kl"] == {"mean": 0, "stderr": 0, "median": 0, "p99": 0, "max": 0}
    assert (compared["same_top"], compared["ratio"], compared["ratio_stderr"]) == (1, 1, 0)


def test_progress_ends_at_the_size_of_the_text(paths: dict[str, Path]) -> None:
    told: list[tuple[int, float]] = []
    result = found(Model.load(paths["int8"]), on_progress=lambda *news: told.append(news))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (len(TOKENS), result.perplexity)
