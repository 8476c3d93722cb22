"""Token ids over HTTP, in the fields that programs which count tokens know from vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from model_server import Here, serving
from quant_models import checkpoint, quantized
from vocabularies import byte_level_json

from quant.synthetic import synthetic_arch
from rwkvcli import Model

COMPLETIONS = "/v1/completions"


def test_to_ids_and_back(here: Here) -> None:
    said = here.post("/tokenize", {"model": "any", "prompt": "né", "add_special_tokens": False})
    assert said.status == 200
    assert said.json == {"count": 3, "max_model_len": None, "tokens": [110, 195, 169], "token_strs": None}
    told = here.post("/tokenize", {"prompt": "né", "return_token_strs": True}).json["token_strs"]
    assert told == ["n", "\ufffd", "\ufffd"]
    assert here.post("/detokenize", {"tokens": [110, 195, 169]}).json == {"prompt": "né"}
    assert here.post("/tokenize", {"prompt": ""}).json["tokens"] == []
    assert here.post("/detokenize", {"tokens": []}).json == {"prompt": ""}


def test_of_a_conversation(here: Here) -> None:
    template, messages = here.model.template, [{"role": "user", "content": "Hello"}]
    said = here.post("/tokenize", {"messages": messages}).json
    assert here.post("/detokenize", {"tokens": said["tokens"]}).json["prompt"] == template.message("Hello")
    used = here.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1}).json["usage"]
    assert said["count"] == used["prompt_tokens"]


def test_what_makes_no_sense_is_refused(here: Here) -> None:
    for path, body, what in (
        ("/tokenize", {}, "prompt is not a string (there is also messages, of a conversation)"),
        ("/tokenize", {"prompt": [1]}, "prompt is not a string (there is also messages, of a conversation)"),
        ("/tokenize", {"messages": []}, "messages is a list of at least one"),
        ("/detokenize", {}, "tokens is not a list of token ids"),
        ("/detokenize", {"tokens": [True]}, "tokens is not a list of token ids"),
        (
            "/detokenize",
            {"tokens": [256]},
            "token 256 is outside the vocabulary of 256 (it belongs to another vocabulary)",
        ),
    ):
        refused = here.post(path, body)
        assert (refused.status, refused.json["error"]["message"]) == (400, what)
    assert here.get("/tokenize").status == 405
    assert here.post("/tokenizer_info", {}).status == 405


def test_the_vocabulary(here: Here) -> None:
    assert here.get("/tokenizer_info").json == {
        "tokenizer_class": "bytes",
        "vocab_size": 256,
        "bos_token": None,
        "eos_token": "\0",
        "eos_token_id": 0,
        "pad_token": None,
        "chat_template": None,
    }


@pytest.mark.parametrize("kind", ["world", "json"])
def test_of_other_vocabularies(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("tokenizers")
    source = checkpoint(tmp_path / "m.pth", synthetic_arch("4", 1, 64, 65536 if kind == "world" else 500))
    own = {} if kind == "world" else {"tokenizer_json": byte_level_json()}
    quantized(source, tmp_path / "m.safetensors", "int8", **own)
    with serving(Model.load(tmp_path / "m.safetensors", threads=1)) as here:
        about = here.get("/tokenizer_info").json
        assert about["tokenizer_class"] == kind
        assert about["eos_token_id"] == here.model.tokenizer.eos_id
        if kind == "world":  # id 0 cannot be written
            assert (about["eos_token"], about["vocab_size"]) == (None, 65530)
        else:
            assert here.post("/tokenize", {"prompt": about["eos_token"]}).json["tokens"] == [
                about["eos_token_id"]
            ]


def test_the_key_is_asked_for(model: Model) -> None:
    with serving(model, key="secret") as here:
        assert here.post("/tokenize", {"prompt": "a"}).status == 401
        assert here.get("/tokenizer_info").status == 401
        assert here.post("/tokenize", {"prompt": "a"}, Authorization="Bearer secret").json["tokens"] == [97]
