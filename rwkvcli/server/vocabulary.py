"""Texts to token ids and back, for programs that count tokens; requests and answers have vLLM's fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rwkvcli.server import requests
from rwkvcli.server.fields import Refused

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model


def tokenize(said: Mapping[str, Any], model: Model, think: str | None) -> dict[str, Any]:
    """What `POST /tokenize` gives: the ids of `prompt`, or of the conversation `messages` up to where its next answer begins.
    Raises UsageError."""
    prompt, tokenizer = said.get("prompt"), model.tokenizer
    if "messages" in said and prompt is None:
        ids = list(requests.chat(said, model, {}, think).asked[0].ids)
    elif isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    else:
        raise Refused("prompt is not a string", "prompt", hint="there is also messages, of a conversation")
    texts = [tokenizer.decode((token,)) for token in ids] if said.get("return_token_strs") else None
    # the length of a text has no limit
    return {"count": len(ids), "max_model_len": None, "tokens": ids, "token_strs": texts}


def detokenize(said: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """What `POST /detokenize` gives: the text of `tokens`. Raises UsageError."""
    tokens = said.get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise Refused("tokens is not a list of token ids", "tokens")
    return {"prompt": model.tokenizer.decode(tokens)}


def about(model: Model) -> dict[str, Any]:
    """What `GET /tokenizer_info` gives."""
    tokenizer = model.tokenizer
    return {
        "tokenizer_class": model.file.tokenizer,
        "vocab_size": tokenizer.vocab_size,
        "bos_token": None,
        "eos_token": tokenizer.eos_text,
        "eos_token_id": tokenizer.eos_id,
        "pad_token": None,
        "chat_template": None,
    }
