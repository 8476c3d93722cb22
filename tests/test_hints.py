"""The form of hints (CONTRIBUTING.md), held by reading the sources: a small letter first, and no full stop at the end."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_CAPITALIZED = re.compile(r"[A-Z]([a-z]| )")
"""A word in capitals is a name: FILE, RWKV_MODELS."""
_HOLE = "\0"
"""What an f-string puts in: anything."""

Scope = ast.Module | ast.FunctionDef


def bad(hint: str) -> bool:
    """Whether a hint is not in the form of all."""
    return _CAPITALIZED.match(hint) is not None or hint.endswith(".") or hint != hint.strip()


def texts(node: ast.expr | None, scopes: tuple[Scope, ...]) -> Iterator[str]:
    """The texts that an expression may become, as far as its file tells: through names, conditions and functions."""
    match node:
        case ast.Constant(value=str() as text):
            yield text
        case ast.JoinedStr(values=values):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else _HOLE for v in values)
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts(body, scopes)
            yield from texts(orelse, scopes)
        case ast.BoolOp(values=values):
            for value in values:
                yield from texts(value, scopes)
        case ast.BinOp(left=left, right=right):
            for begin in texts(left, scopes):
                for end in [*texts(right, scopes)] or [_HOLE]:
                    yield begin + end
        case ast.Name(id=name):
            for scope in scopes:
                yield from assigned(name, scope, scopes)
        case ast.Call(func=ast.Name(id=name)):
            for function in scopes[-1].body:
                if isinstance(function, ast.FunctionDef) and function.name == name:
                    for each in ast.walk(function):
                        if isinstance(each, ast.Return):
                            yield from texts(each.value, (function, scopes[-1]))


def assigned(name: str, scope: Scope, scopes: tuple[Scope, ...]) -> Iterator[str]:
    """The texts that `name` is set to in `scope`, by assignments and by loops over a table."""
    for node in ast.walk(scope) if isinstance(scope, ast.FunctionDef) else scope.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            yield from texts(node.value, scopes)
        if (
            isinstance(node, ast.For)
            and isinstance(node.target, ast.Tuple)
            and isinstance(node.iter, ast.Name)
        ):
            names = [each.id if isinstance(each, ast.Name) else "" for each in node.target.elts]
            for table in scopes[-1].body if name in names else ():
                value = table.value if isinstance(table, ast.Assign | ast.AnnAssign) else None
                target = table.target if isinstance(table, ast.AnnAssign) else None
                if (
                    isinstance(value, ast.Tuple)
                    and isinstance(target, ast.Name)
                    and target.id == node.iter.id
                ):
                    for row in value.elts:
                        if isinstance(row, ast.Tuple):
                            yield from texts(row.elts[names.index(name)], scopes)


def hints(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of everything that a source passes on as `hint`."""
    module = ast.parse(source)
    found: dict[ast.keyword, tuple[Scope, ...]] = {}
    for node in ast.walk(module):  # the innermost function comes last
        if isinstance(node, ast.FunctionDef | ast.Module):
            for each in ast.walk(node):
                if isinstance(each, ast.keyword) and each.arg == "hint":
                    found[each] = (node, module) if isinstance(node, ast.FunctionDef) else (module,)
    for keyword, scopes in found.items():
        for text in texts(keyword.value, scopes):
            yield keyword.value.lineno, text


def test_every_hint_has_the_same_form() -> None:
    everything = [
        (path.relative_to(ROOT), line, text)
        for package in ("quant", "rwkvcli")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in hints(path.read_text("utf-8"))
    ]
    assert len(everything) > 200
    assert [f"{path}:{line}: {text}" for path, line, text in everything if bad(text)] == []


def test_every_hint_of_the_documents_has_it() -> None:
    told = re.findall("^hint: (.*)$", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE)
    assert len(told) > 50
    assert [hint for hint in told if bad(hint)] == []


@pytest.mark.parametrize(
    "source",
    [
        'raise E("x", hint="Use it")',
        'raise E("x", hint="A file")',
        'raise E("x", hint="use it.")',
        'raise E("x", hint=f"use {it}.")',
        'raise E("x", hint="use it" if a else f"Name {b}")',
        'raise E("x", hint=a or "Use it")',
        'AGAIN = "Use it"\ndef f():\n    raise E("x", hint=AGAIN)',
        'def f():\n    hint = None\n    if a:\n        hint = "Use it"\n    raise E("x", hint=hint)',
        'def g():\n    return "Use it"\ndef f():\n    raise E("x", hint=g())',
        'T: tuple = (("a", "use it"), ("b", "Use it"))\ndef f():\n    for a, b in T:\n        raise E(a, hint=b)',
        'raise E("x", hint="use " + ("it." if a else "this"))',
    ],
)
def test_other_forms_are_found(source: str) -> None:
    assert any(bad(text) for _, text in hints(source))


@pytest.mark.parametrize("hint", ["use it", "FILE is a path", "RWKV_MODELS names it", "`rwkv list` shows it"])
def test_the_form(hint: str) -> None:
    assert not bad(hint)
    assert [text for _, text in hints(f"raise E('x', hint={hint!r})")] == [hint]
