"""LAMBADA: guess the last word of a passage whose sense alone tells it (Paperno et al., arXiv 1606.06031).

The protocol is the one that the figures published for RWKV models come from. Each text is cut at its last
space. The model sees the token that ends a text, then the tokens of what is before the space; its log-probability for the
tokens of the last word, with the space, is summed. It is right when each of these tokens is the likeliest one. The
perplexity is per document: the exponential of minus the mean of those sums.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rwkvcli.errors import FormatError, ModelNotFound, NetworkError, SourceNotFound, UsageError

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.services.store import Reference
    from rwkvcli.services.watching import Watcher

REPOSITORY = "EleutherAI/lambada_openai"
FILE = "lambada_test_en.jsonl"
"""OpenAI's version of the test set: 5153 texts."""

Progress = Callable[[int, int, float], None]
"""(documents done, documents in all, accuracy so far)."""


class Document(NamedTuple):
    """A text, cut at its last space."""

    context: str
    word: str
    """With the space."""


@dataclass
class Lambada:
    """What a model makes of the documents."""

    log_probs: list[float] = field(default_factory=list)
    """Of each document's last word, nats."""
    right: list[bool] = field(default_factory=list)
    tokens: int = 0
    """Tokens of the last words."""

    @property
    def accuracy(self) -> float:
        """Share of documents whose last word was guessed."""
        return sum(self.right) / len(self.right)

    def to_json(self) -> dict[str, Any]:
        """Accuracy and perplexity with standard errors over documents (null for one document, or past float64's
        range).
        """
        mean, error = -math.fsum(self.log_probs) / len(self.log_probs), _stderr(self.log_probs)
        perplexity = math.exp(mean) if mean < 700 else None
        return {
            "documents": len(self.right),
            "tokens": self.tokens,
            "accuracy": self.accuracy,
            "accuracy_stderr": _stderr([float(right) for right in self.right]),
            "perplexity": perplexity,
            "stderr": None if perplexity is None or error is None else perplexity * error,
        }


def find_file(name: str | None, *, offline: bool = False, watcher: Watcher | None = None) -> Path:
    """The file `name` on this machine: a path, or `owner/repo:file` of a dataset on the Hub; None: the test set.

    What is not here is downloaded. Raises SourceNotFound, NetworkError, and what the Hub raises.
    """
    from rwkvcli.services import hub_cache, store

    if name is None:
        reference = store.Reference(REPOSITORY, kind="dataset")
    else:
        try:
            parsed = store.parse(name)
        except ModelNotFound as e:
            raise SourceNotFound(
                str(e), hint="FILE is a path, or owner/repo:file of a dataset on the Hub"
            ) from None
        if isinstance(parsed, store.Alias):
            raise SourceNotFound(
                f"{name} is a model, not a test set",
                hint="FILE is a path, or owner/repo:file of a dataset on the Hub",
            )
        if isinstance(parsed, Path):
            return parsed
        reference = store.Reference(parsed.repo, parsed.file, parsed.revision, "dataset")
    is_offline = offline or hub_cache.is_offline()
    reference = replace(reference, file=reference.file or _test_set(reference, is_offline))
    cached = hub_cache.cached_path(reference) if reference.file is not None else None
    if cached is not None:
        return cached
    if is_offline:
        raise NetworkError(
            f"{reference} is not on this machine, and the network is off",
            hint=f"{store.how_to_go_online(offline)}; or name a file that is here",
        )
    from rwkvcli.services.hub import download

    return download(reference, watcher)


def read_documents(path: Path, limit: int | None = None) -> list[Document]:
    """The first `limit` documents of a file with a JSON object `{"text": ...}` in each line.

    Raises SourceNotFound, FormatError, and UsageError if there is none.
    """
    try:
        with path.open("rb") as file:
            documents = list(islice(_documents(file, path.name), limit))
    except OSError as e:
        raise SourceNotFound(f"{path}: {(e.strerror or str(e)).lower()}") from None
    if not documents:
        raise UsageError(f"{path.name} is empty: there is nothing to guess")
    return documents


def evaluate(model: Model, documents: Sequence[Document], *, on_progress: Progress | None = None) -> Lambada:
    """Let `model` guess the last words. Raises UsageError for text that it cannot encode, FormatError for a model
    whose logits are no numbers.
    """
    from rwkvcli.runtime.scoring import score

    result = Lambada()
    tokenizer = model.tokenizer
    for document in documents:
        source = [tokenizer.eos_id, *tokenizer.encode(document.context)]
        target = tokenizer.encode(document.word)
        state = model.new_state()
        logits = [model.forward(source, state)[None]]
        if len(target) > 1:
            logits.append(model.forward(target[:-1], state, all_logits=True))
        log_probs, tops = score(np.concatenate(logits), target)
        result.log_probs.append(math.fsum(log_probs))
        result.right.append(tops.tolist() == target)
        result.tokens += len(target)
        if on_progress is not None:
            on_progress(len(result.right), len(documents), result.accuracy)
    return result


def _test_set(reference: Reference, is_offline: bool) -> str | None:
    """The name of the test set in its repository; None: not here, and the Hub cannot be asked."""
    from rwkvcli.services import hub_cache

    def in_it(files: Iterable[str]) -> str | None:
        return next((name for name in files if name.rpartition("/")[2] == FILE), None)

    found = in_it(hub_cache.cached_files(reference))
    if found is None and not is_offline:
        from rwkvcli.services.hub import list_files

        found = in_it(item.path for item in list_files(reference))
        if found is None:
            raise SourceNotFound(f"{reference} has no file {FILE}", hint="name one: owner/repo:file")
    return found


def _documents(lines: Iterable[bytes], name: str) -> Iterator[Document]:
    """Lines without anything in them are passed over."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            context, space, word = text.rpartition(" ")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError(
                f"{name}: line {number} is no JSON object with a text", hint='each line is {"text": "..."}'
            ) from None
        if not space:
            raise FormatError(f"{name}: the text in line {number} has no space before a last word")
        yield Document(context, space + word)


def _stderr(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
