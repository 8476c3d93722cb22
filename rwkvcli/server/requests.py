"""What a body of JSON asks for, in OpenAI's form, with the other settings of the sampler beside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from rwkvcli.server.fields import Refused, get, refuse
from rwkvcli.server.messages import messages_of, said_in_chat
from rwkvcli.server.tools import Tools, tools_of
from rwkvcli.services import constraining
from rwkvcli.services.dialogue import Message, encode
from rwkvcli.services.generation import Settings, seam
from rwkvcli.services.serving import Asked
from rwkvcli.services.tool_calls import CallConstraint, CallSplitter, splitter_of

if TYPE_CHECKING:
    from rwkvcli.runtime.constraint import Constraint
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State

COMPLETION_TOKENS, CHAT_TOKENS = 512, 4096
"""The most tokens of a text where the request does not say: as `rwkv generate` and `rwkv chat`."""
_MOST_TEXTS = 128
"""Of one request."""
_MOST_LIKELIEST = 100
_SEEDS = 2**64
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""Of a surrogate pair, perhaps."""
_EFFORTS = {
    "none": "fast",
    "minimal": "fast",
    "low": "show",
    "medium": "show",
    "high": "show",
    "xhigh": "show",
    "max": "show",
}


@dataclass(frozen=True)
class Wanted:
    """A request, understood."""

    asked: list[Asked]
    """The texts: of every prompt as many as there are to be, side by side."""
    before: list[str]
    """What stands before each of them in the answer: its prompt, if that is to be repeated."""
    each: int
    """Texts of a prompt."""
    stream: bool
    usage: bool
    """Whether a stream ends with the usage."""
    calls: Callable[[], CallSplitter] | None = None
    """Makes what tells calls of tools from text, for each of the texts; None: there are no tools to call."""


@dataclass(frozen=True)
class Form:
    """What a request says of the form of a text, as `response_format`."""

    given: Mapping[str, Any] | None
    where: str
    """Its place in the request."""
    inside: str = ""
    """The field of it that tells of the schema; empty: it does itself."""


def parsed(body: bytes) -> dict[str, Any]:
    """The object in a body. Raises Refused."""
    try:
        text = body.decode("utf-8-sig")
        said = json.loads(text)
        if _HALF.search(text) is not None:
            json.dumps(said, ensure_ascii=False).encode()  # what is said may be given back
    except UnicodeEncodeError:
        raise Refused("the body has half a surrogate pair, which is no character") from None
    except (ValueError, RecursionError):
        raise Refused("the body is not JSON") from None
    if not isinstance(said, dict):
        raise Refused("the body is not a JSON object")
    return said


def chat(said: Mapping[str, Any], model: Model, states: Mapping[str, State], think: str | None) -> Wanted:
    """What `POST /v1/chat/completions` asks for. `states` can be gone on from, by their names; `think`: how answers are
    thought over where a request does not say. Raises UsageError."""
    refuse(said, "functions", "audio")
    tools = tools_of(said)
    messages = messages_of(said_in_chat(said), model.template, tools)
    top = get(said, "top_logprobs", int) or 0
    return answer(
        said,
        model,
        states,
        messages,
        tools=tools,
        way=way_of(said, model, get(said, "reasoning_effort", str), "reasoning_effort", think),
        form=_response_format(said),
        limit=limit_of(said, CHAT_TOKENS, "max_tokens", "max_completion_tokens"),
        logprobs=top if get(said, "logprobs", bool) else None,
    )


def completion(said: Mapping[str, Any], model: Model, states: Mapping[str, State]) -> Wanted:
    """What `POST /v1/completions` asks for. Raises UsageError."""
    refuse(said, "suffix")
    limit = limit_of(said, COMPLETION_TOKENS, "max_tokens")
    settings = _settings(said, limit, get(said, "logprobs", int))
    echo = bool(get(said, "echo", bool))
    settings = replace(settings, constraint=_constraint(said, _response_format(said)), logprobs_to_end=echo)
    judged = echo and settings.logprobs is not None
    start, state = _start(said, states)
    tokenizer, asked, before = model.tokenizer, [], []
    for prompt in _prompts(said.get("prompt")):
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else _checked(prompt, model)
        if not ids and state is not None:
            raise Refused(
                "prompt is empty: what was read before can only be gone on with by some text", "prompt"
            )
        asked.append(Asked(ids or [tokenizer.eos_id], settings, start, judged=judged))
        before.append((prompt if isinstance(prompt, str) else tokenizer.decode(ids)) if echo else "")
    return _wanted(said, asked, before)


def answer(
    said: Mapping[str, Any],
    model: Model,
    states: Mapping[str, State],
    messages: Sequence[Message],
    *,
    tools: Tools | None,
    way: str | None,
    form: Form,
    limit: int,
    logprobs: int | None,
) -> Wanted:
    """The next answer after `messages`, of at most `limit` tokens; all else is called alike in the forms that a request may have.
    Raises UsageError."""
    settings = _settings(said, limit, logprobs)
    calls = tools.constraint(model.template) if tools is not None else None
    settings = replace(settings, chat=True, think=way, constraint=_constraint(said, form, calls))
    start, state = _start(said, states)
    between = seam(model.template, state) if state is not None else ""
    encoded = encode(model.template, model.tokenizer, messages, thinking_of(way), between)
    wanted = _wanted(said, [Asked(encoded.ids, settings, start, encoded.lasting)], [""])
    return wanted if calls is None else replace(wanted, calls=lambda: splitter_of(calls))


def way_of(
    said: Mapping[str, Any], model: Model, effort: str | None, where: str, think: str | None
) -> str | None:
    """How an answer is thought over: as `think` of the request says, or `effort`, which stands at `where`, or else `think`."""
    if effort is not None and effort not in _EFFORTS:
        raise Refused(f"{where} is one of {', '.join(_EFFORTS)}", where)
    way = get(said, "think", str) or (_EFFORTS[effort] if effort is not None else think)
    if way is not None:
        model.template.check_way(way)
    if way == "only":
        raise Refused("think is one of show, hide, fast, off", "think")
    return way


def thinking_of(way: str | None) -> str:
    """Which of `rwkvcli.runtime.templates.THINK` a way to think is."""
    from rwkvcli.runtime.templates import WAYS

    return WAYS[way or "off"]


def limit_of(said: Mapping[str, Any], usual: int, *names: str) -> int:
    """The most tokens, from the first of the fields `names` that is there."""
    for name in names:
        limit = get(said, name, int)
        if limit is not None:
            if limit < -1:
                raise Refused(f"{name} is from 0 up, or -1: until the model ends the text", name)
            return int(limit)
    return usual


def _start(said: Mapping[str, Any], states: Mapping[str, State]) -> tuple[int, State | None]:
    """The state that a request goes on from, and its number: by the name of the model. Any other name is the model."""
    name = said.get("model")
    if not isinstance(name, str) or name not in states:
        return 0, None
    return 1 + list(states).index(name), states[name]


def _wanted(said: Mapping[str, Any], asked: Sequence[Asked], before: Sequence[str]) -> Wanted:
    """As many texts of every prompt as there are to be, each with a seed of its own."""
    each = get(said, "n", int)
    each = 1 if each is None else each
    if not 1 <= each * len(asked) <= _MOST_TEXTS:
        raise Refused(f"from 1 to {_MOST_TEXTS} texts can be asked for at once, not {each * len(asked)}", "n")
    best = get(said, "best_of", int)
    if best is not None and best != each:
        raise Refused("best_of is not supported: ask for n texts", "best_of")
    options = get(said, "stream_options", dict) or {}
    return Wanted(
        [replace(one, settings=_nth(one.settings, i)) for one in asked for i in range(each)],
        [text for text in before for _ in range(each)],
        each,
        bool(get(said, "stream", bool)),
        bool(get(options, "include_usage", bool)),
    )


def _nth(settings: Settings, number: int) -> Settings:
    seed = settings.sampling.get("seed")
    if seed is None or not number:
        return settings
    return replace(settings, sampling={**settings.sampling, "seed": (seed + number) % _SEEDS})


def _settings(said: Mapping[str, Any], limit: int, logprobs: int | None) -> Settings:
    """How texts are made, but for what only conversations have. Everything is checked here, as far as it can be."""
    from rwkvcli.runtime.numbers import real
    from rwkvcli.runtime.sampling import SamplingParams

    sampling = {
        item.name: said[item.name] for item in fields(SamplingParams) if said.get(item.name) is not None
    }
    if "logit_bias" in sampling:
        bias = get(said, "logit_bias", dict) or {}
        try:
            sampling["logit_bias"] = {int(token): real(value) for token, value in bias.items()}
        except (TypeError, ValueError, OverflowError):
            raise Refused("logit_bias is not an object of token ids and numbers", "logit_bias") from None
    seed = get(said, "seed", int)
    if seed is not None and seed < 0:
        del sampling["seed"]  # what programs send that mean any
    SamplingParams.of({}, sampling)
    if logprobs is not None and not 0 <= logprobs <= _MOST_LIKELIEST:
        raise Refused(f"logprobs are told of 0 to {_MOST_LIKELIEST} tokens", "logprobs")
    return Settings(limit, sampling, tuple(_texts(said, "stop")), logprobs=logprobs)


def _response_format(said: Mapping[str, Any]) -> Form:
    return Form(get(said, "response_format", dict), "response_format", "json_schema")


def _constraint(
    said: Mapping[str, Any], form: Form, calls: CallConstraint | None = None
) -> Constraint | None:
    """What the text is held to: `calls` of tools, `form`, or what a line of `rwkv generate --jsonl` may say."""
    own = _format(said, form)
    if own is not None and calls is not None:
        hint = "with tool_choice none no tool is called"
        raise Refused("the answer is held to two things: tools, and a format", "tools", hint=hint)
    return own if calls is None else calls


def _format(said: Mapping[str, Any], form: Form) -> Constraint | None:
    """What `form` asks for, or one of those that stand beside it."""
    given, where, inside = form.given, form.where, f"{form.inside}." if form.inside else ""
    own = constraining.of_line(said)
    if given is None or given.get("type") == "text":
        return own
    if own is not None:
        raise Refused(f"the text is held to two things: {where}, and what stands beside it", where)
    if given.get("type") == "json_object":
        return constraining.of_line({"schema": {"type": "object"}})
    about = given.get(form.inside) if inside else given
    if (
        given.get("type") != "json_schema"
        or not isinstance(about, dict)
        or not isinstance(about.get("schema"), dict)
    ):
        message = f"{where} has the type text, json_object, or json_schema with {inside}schema"
        raise Refused(message, where)
    strict = get(about, "strict", bool, f"{where}.{inside}")
    return constraining.Constraint.of_schema(about["schema"], lenient=not strict)


def _prompts(prompt: Any) -> list[str | list[int]]:
    """A text or a list of token ids, or a list of such."""
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    if isinstance(prompt, list) and prompt:
        if all(type(token) is int for token in prompt):
            return [prompt]
        if all(isinstance(one, str) or _is_ids(one) for one in prompt):
            return prompt
    raise Refused("prompt is neither a string, nor a list of token ids, nor a list of such", "prompt")


def _checked(ids: list[int], model: Model) -> list[int]:
    rows = model.config.vocab_size
    for token in ids:
        if not 0 <= token < rows:
            raise Refused(f"token {token} is outside the vocabulary of {rows}", "prompt")
    return ids


def _is_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(token) is int for token in given)


def _texts(said: Mapping[str, Any], name: str) -> list[str]:
    """A string, or a list of strings, none of them empty."""
    given = said.get(name)
    texts = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise Refused(f"{name} is neither a string nor a list of strings", name)
    return texts
