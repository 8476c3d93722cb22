"""The options of the sampler, the same for every verb that lets a model write."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from rwkvcli.cli.options import SAMPLING_PANEL
from rwkvcli.cli.prompt import argument_text

_OPTIONS: tuple[tuple[str, Any, str, str, str], ...] = (
    ("temperature", float, "--temperature", "T", "0 always takes the likeliest token."),
    ("top_k", int, "--top-k", "K", "Choose among the K likeliest tokens; 0: off."),
    ("top_p", float, "--top-p", "P", "Choose among the likeliest that make up P; 1: off."),
    ("min_p", float, "--min-p", "P", "Leave out what is below P times the likeliest; 0: off."),
    ("typical", float, "--typical", "P", "Choose among the most typical that make up P; 1: off."),
    ("presence_penalty", float, "--presence-penalty", "X", "Off the logits of tokens that were generated."),
    ("frequency_penalty", float, "--frequency-penalty", "X", "Off the same, times how often."),
    ("penalty_decay", float, "--penalty-decay", "X", "How much of that count a next token leaves."),
    ("repetition_penalty", float, "--repetition-penalty", "X", "Divides the logits of the same; 1: off."),
    ("logit_bias", list[str], "--logit-bias", "ID=X", "Add X to the logit of a token; -inf bans it. Repeatable."),
    ("ban", list[str], "--ban", "TEXT", "Never write TEXT. Repeatable."),
    ("sampler_order", str, "--sampler-order", "ORDER",
     "rwkv: temperature last (the default); temperature-first: as in other engines."),
    ("seed", int, "--seed", "S", "The same seed gives the same text."),
)  # fmt: skip


def with_sampling(function: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `sampling` of a verb by one option per setting of the sampler.

    The verb gets a dictionary of `SamplingParams` settings; None is "not said".
    """

    @wraps(function)
    def verb(**values: Any) -> None:
        chosen = {name: values.pop(name) for name, *_ in _OPTIONS}
        function(sampling=_settings(chosen), **values)

    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "sampling"]
    verb.__signature__ = inspect.Signature([*own, *map(_parameter, _OPTIONS)])  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in verb.__signature__.parameters.values()}  # type: ignore[attr-defined]
    return verb


def _parameter(option: tuple[str, Any, str, str, str]) -> inspect.Parameter:
    name, kind, flag, metavar, text = option
    info = typer.Option(flag, metavar=metavar, help=text, show_default=False, rich_help_panel=SAMPLING_PANEL)
    annotation: Any = Annotated[kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _settings(chosen: dict[str, Any]) -> dict[str, Any]:
    """The options under the sampler's own names."""
    bias, ban = chosen.pop("logit_bias"), chosen.pop("ban")
    chosen["order"] = chosen.pop("sampler_order")
    chosen["logit_bias"] = dict(map(_bias, bias)) if bias else None
    chosen["banned_strings"] = tuple(map(argument_text, ban)) if ban else None
    return chosen


def _bias(text: str) -> tuple[int, float]:
    """(token id, bias) of `42=-1.5`."""
    name, _, value = text.partition("=")
    try:
        token, bias = int(name), float(value)
    except ValueError:
        token, bias = -1, math.nan
    if token < 0 or math.isnan(bias) or bias == math.inf:
        raise typer.BadParameter(
            f"`{text}` is not a token id, an equals sign and a number", param_hint="'--logit-bias'"
        )
    return token, bias
