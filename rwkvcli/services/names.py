"""What a person may call a model: short names by family and size, and files on the Hub. Names only: nothing is looked up.

The families are data: `rwkvcli/data/models.toml`, which says what its keys mean.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

DEMO = "demo"
"""The model that comes with the program."""
SUFFIXES = (".safetensors", ".pth", ".st", ".gguf")
"""What the files of models end with."""
KINDS = ("int4", "int5", "int6", "int8")
"""What is made of a download on request."""

_REFERENCE = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<file>[^@]+))?(@(?P<revision>.+))?", re.ASCII)
_ADDRESS = re.compile(
    r"https?://[^/]+/(?P<repo>[^/]+/[^/?#]+)(/(?:resolve|blob|raw|tree)/(?P<revision>[^/?#]+)(/(?P<file>[^?#]+))?)?/?([?#].*)?"
)
"""Of a page or a file on the Hub, or on a mirror of it."""
_ALIAS = re.compile(
    rf"(?P<family>[a-z]\w*)-(?P<size>[\d.]+[bm])(-(?P<kind>{'|'.join(KINDS)}))?(@(?P<wanted>.+))?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True)
class Reference:
    """A file on the Hub: `owner/repo[:file][@revision]`."""

    repo: str
    file: str | None = None
    revision: str | None = None
    kind: str = "model"
    """What the repository is: `model` or `dataset`."""

    def __str__(self) -> str:
        file = f":{self.file}" if self.file else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{file}{revision}"


class Parsed(NamedTuple):
    """What a file's name says of the model in it."""

    size: str
    date: str
    label: str
    """Series or version, in lower case; "" where names have none."""


@dataclass(frozen=True)
class Family:
    """One table of models.toml."""

    name: str
    about: str
    repo: str
    file: re.Pattern[str]
    sizes: dict[str, int]
    """{size: parameters in millions}."""
    tokenizer: str | None = None

    def parse(self, file: str) -> Parsed | None:
        """What the name of a file on the Hub says; None for a file that is none of the family's."""
        match = self.file.fullmatch(file)
        if match is None:
            return None
        label = (match.groupdict().get("label") or "").lower()
        return Parsed(spelled(match["size"]), match["date"], label)

    def repository(self, size: str) -> str:
        """The repository of the models of `size`."""
        return self.repo.format(size=re.sub(r"(\d+)\.(\d+)b", r"\1b\2", size))


@dataclass(frozen=True)
class Alias:
    """A short name: FAMILY-SIZE[-KIND][@WANTED], as in g1-1.5b or g1-1.5b-int4@20260812."""

    family: Family
    size: str
    kind: str | None = None
    """One of KINDS: what was made of a download, of this kind only."""
    wanted: str | None = None
    """A date, a series or version (g1f, v2.1), or the exact name of a file; None: the newest."""

    def __str__(self) -> str:
        kind = f"-{self.kind}" if self.kind else ""
        wanted = f"@{self.wanted}" if self.wanted else ""
        return f"{self.family.name}-{self.size}{kind}{wanted}"

    @property
    def repo(self) -> str:
        """The repository it is looked for in."""
        return self.family.repository(self.size)

    @property
    def parameters(self) -> int:
        """How many, about; 0: the table does not know the size."""
        return self.family.sizes.get(self.size, 0) * 10**6

    def fits(self, file: str) -> bool:
        """Whether it may stand for `file` of its repository."""
        if self.wanted == file:
            return True
        parsed = self.family.parse(file)
        if parsed is None or parsed.size != self.size:
            return False
        return self.wanted is None or self.wanted.lower() in (parsed.date, parsed.label)

    def date(self, file: str) -> str:
        """For finding the newest of the files that fit."""
        parsed = self.family.parse(file)
        return parsed.date if parsed is not None else ""

    def newest(self, files: Iterable[str]) -> str | None:
        """The newest of the `files` of its repository that it may stand for."""
        fitting = [file for file in files if self.fits(file)]
        return max(fitting, key=lambda file: (self.date(file), file), default=None)


@functools.cache
def families() -> dict[str, Family]:
    """Every family by its name, the best first."""
    import tomllib

    data = Path(__file__).parent.parent.joinpath("data", "models.toml").read_bytes()
    return {
        name: Family(
            name,
            table["about"],
            table["repo"],
            re.compile(table["file"]),
            table["sizes"],
            table.get("tokenizer"),
        )
        for name, table in tomllib.loads(data.decode("utf-8")).items()
    }


def aliases() -> list[str]:
    """Every short name that the table knows."""
    return [f"{family.name}-{size}" for family in families().values() for size in family.sizes]


def alias(text: str) -> Alias | None:
    """The short name `text`, of a known family and any size; None for what is none."""
    match = _ALIAS.fullmatch(text)
    family = families().get(match["family"].lower()) if match is not None else None
    if match is None or family is None:
        return None
    kind = match["kind"].lower() if match["kind"] else None
    return Alias(family, match["size"].lower(), kind, match["wanted"])


def reference(text: str) -> Reference | None:
    """The file or repository on the Hub that `text` names; None for what names none."""
    match = _REFERENCE.fullmatch(text)
    return Reference(match["repo"], match["file"], match["revision"]) if match is not None else None


def of_address(text: str) -> Reference | None:
    """The file or repository that an address or a path within the Hub stands for; None for what is neither."""
    from urllib.parse import unquote

    match = _ADDRESS.fullmatch(text)
    if match is not None:
        revision = match["revision"] if match["revision"] != "main" else None
        file = unquote(match["file"]).rstrip("/") if match["file"] else None
        return reference(str(Reference(match["repo"], file, revision)))
    owner, _, rest = text.partition("/")
    repo, _, file = rest.partition("/")
    return reference(f"{owner}/{repo}:{file}") if file.endswith(SUFFIXES) else None


def short_name(repo: str, file: str) -> Alias | None:
    """The short name that a file of the Hub has, with its date; None: it has none."""
    for family in families().values():
        parsed = family.parse(file)
        if parsed is not None and family.repository(parsed.size) == repo:
            return Alias(family, parsed.size, wanted=parsed.date)
    return None


def tokenizer_of(repo: str) -> Reference | None:
    """The tokenizer.json to put into what is made of the models of a repository, if a family says so."""
    for family in families().values():
        if family.tokenizer is not None and repo in {family.repository(size) for size in family.sizes}:
            return reference(family.tokenizer)
    return None


def spelled(size: str) -> str:
    """A size as short names spell it: `1B5` is 1.5b, `0.4B` is 0.4b, `169M` is 169m."""
    return re.sub(r"(\d+)b(\d+)", r"\1.\2b", size.lower())


def near(text: str, more: Iterable[str] = ()) -> list[str]:
    """Names like `text` among the short ones and `more`, the likest first; at most three."""
    known = [*more, *aliases(), DEMO]
    begins = [name for name in known if len(text) > 1 and name.startswith(text.lower())]
    return begins[:3] or difflib.get_close_matches(text.lower(), known, n=3, cutoff=0.6)
