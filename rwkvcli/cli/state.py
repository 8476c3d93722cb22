"""`rwkv state`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, check_target, with_settings
from rwkvcli.cli.prompt import gather_prompt, why_no_text
from rwkvcli.cli.settings import Settings
from rwkvcli.cli.signals import stopping_between
from rwkvcli.errors import Cancelled, FormatError, RwkvError, StateMismatch

EXAMPLES = """
  rwkv state build -m demo -f manual.txt -o manual.state
  rwkv generate -m demo --state manual.state "Question: how long is it?"
  rwkv state info manual.state
  rwkv state diff before.state after.state --json
  rwkv state import tuned.pth -m model-int8.safetensors -o tuned.state
  rwkv state export manual.state -o manual.pth
  rwkv state verify manual.state -m demo
"""


class Action(StrEnum):
    """What can be done with states."""

    build = "build"
    info = "info"
    diff = "diff"
    export = "export"
    import_ = "import"
    verify = "verify"


_FILES = {Action.build: 0, Action.info: 1, Action.diff: 2, Action.export: 1, Action.import_: 1}
_FORM = {
    Action.build: "state build -m MODEL -f TEXT -o STATE",
    Action.info: "state info STATE",
    Action.diff: "state diff STATE STATE",
    Action.export: "state export STATE -o OUT",
    Action.import_: "state import FILE -m MODEL -o STATE",
    Action.verify: "state verify STATE...",
}


@with_settings
def state(
    settings: Settings,
    *,
    action: Annotated[
        Action, typer.Argument(metavar="ACTION", help="build, info, diff, export, import or verify.")
    ],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="STATE...", help="The states.", show_default=False)
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("-f", "--file", metavar="FILE", help="build: text to read; - is stdin. Repeatable."),
    ] = None,
    keep_newline: Annotated[
        bool, typer.Option("--keep-newline", help="build: keep the newline at the end of stdin and files.")
    ] = False,
    start: Annotated[
        str | None, typer.Option("--state", metavar="FILE", help="build: begin with this state.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="build: on Ctrl-C write the state of what was read.")
    ] = False,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="OUT", help="build, export, import: what to write.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    transposed: Annotated[
        bool | None,
        typer.Option(
            "--transposed/--not-transposed",
            help="import: matrices are [head, key, value], as in .st files; default: by FILE's name.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Build states, and look at, compare and convert them.

    A state is all that a model remembers of a text, constant in size. `build` reads a text into one, once;
    `rwkv generate --state` continues it at once, as often as wanted. `info` tells what a file holds, `diff` how far
    two are apart. `import` and `export` take and make tuned
    states (.pth, .st, safetensors), which hold the matrices only. `verify` checks a whole file, and with a model
    that the state belongs to it. A state belongs to the model file that made it.
    """
    console = Console(settings)
    given = files or []
    if (action is Action.verify and not given) or (action in _FILES and len(given) != _FILES[action]):
        raise Misuse(f"write `rwkv {_FORM[action]}`")
    writes = action in (Action.build, Action.export, Action.import_)
    if writes and out is None:
        raise Misuse(f"no OUT: write `rwkv {_FORM[action]}`")
    check_target(out)
    if out is not None and not writes:
        raise Misuse(f"`state {action.value}` writes no file: leave -o out")
    paths = [Path(name) for name in given]
    if action is Action.build:
        assert out is not None
        _build(console, Path(out), text or [], start, keep_newline=keep_newline, keep=keep, force=force)
    elif action is Action.import_:
        assert out is not None
        _import(console, paths[0], Path(out), transposed, force=force)
    elif action is Action.export:
        assert out is not None
        _export(console, paths[0], Path(out), force=force)
    elif action is Action.diff:
        _diff(console, paths[0], paths[1])
    elif action is Action.info:
        _info(console, paths[0])
    else:
        _verify(console, paths)


def _build(
    console: Console,
    out: Path,
    files: list[str],
    start: str | None,
    *,
    keep_newline: bool,
    keep: bool,
    force: bool,
) -> None:
    from rwkvcli.cli.render import TextBar, size
    from rwkvcli.services import loading, states

    text = gather_prompt(None, files, keep_newline=keep_newline)
    if text is None:
        raise Misuse(f"no text to read: give -f FILE, or pipe text in ({why_no_text()})")
    states.check_output(out, force=force)
    model = _model(console)
    begin = loading.load_state(Path(start), model) if start is not None else model.new_state()
    with stopping_between() as check, TextBar(console) as bar:
        building = states.Building(model, text, begin, bar.update, check)
        try:
            building.run()
        except Cancelled:
            if keep and building.read:
                building.state.save(out)
                bar.hide()
                console.note(f"note: {out} holds {building.read} of {len(text)} bytes of the text")
            raise
        building.state.save(out)
    _wrote(console, out)
    console.note(f"{building.state.tokens_seen:,} tokens seen, {size(out.stat().st_size)}")


def _import(console: Console, path: Path, out: Path, transposed: bool | None, *, force: bool) -> None:
    from rwkvcli.services import states

    states.check_output(out, force=force, source=path)
    made = states.import_tuned(path, _model(console), transposed=transposed)
    made.state.save(out)
    _wrote(console, out)
    order = "[head, key, value]" if made.transposed else "[head, value, key]"
    console.note(f"matrices were taken as {order}; --transposed or --not-transposed says otherwise")
    if made.doubt is not None:
        console.note(f"warning: {made.doubt}")


def _export(console: Console, path: Path, out: Path, *, force: bool) -> None:
    from rwkvcli.services import states

    states.export(path, out, force=force)
    _wrote(console, out)
    console.note(
        "note: a tuned state holds the matrices alone; what the last token left beside them is not in it"
    )


def _diff(console: Console, first: Path, second: Path) -> None:
    from rwkvcli.services import states

    found = states.diff(first, second)
    if console.settings.json:
        console.line(json.dumps(found))
        return
    from rwkvcli.cli.render import table

    parts = list(found["layers"][0])
    rows = [("layer", *parts)]
    for number, layer in enumerate(found["layers"]):
        rows.append((str(number), *(f"{layer[part]:.3g}" for part in parts)))
    console.line("\n".join(table(rows, right=tuple(range(1, len(parts) + 1)))))
    told = "equal" if found["equal"] else f"relative difference {found['relative']:.3g}"
    seen = " and ".join(f"{count:,}" for count in found["tokens_seen"])
    console.line(
        f"{told}; {seen} tokens seen" + ("" if found["same_model"] else "; made by different model files")
    )


def _info(console: Console, path: Path) -> None:
    from rwkvcli.services import states

    found = states.info(path)
    if console.settings.json:
        console.line(json.dumps(found))
    else:
        from rwkvcli.cli.render import table

        console.line("\n".join(table(list(_facts(found)))))


def _facts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from rwkvcli.cli.render import size

    sizes = dict(found["model"])
    yield "file", f"{found['path']} ({size(found['bytes'])})"
    yield (
        "model",
        f"RWKV-{sizes.pop('version')}" + (f", made from {found['source']}" if found["source"] else ""),
    )
    yield "sizes", ", ".join(f"{name} {value}" for name, value in sizes.items())
    yield "fingerprint", found["fingerprint"]
    yield "tokens seen", f"{found['tokens_seen']:,}"
    if found["goes_on"]:
        yield "without new text", "it goes on where it was left"
    else:
        yield "without new text", "the text has ended" if found["ended"] else "nothing: it needs some"
    if found["seed"] is not None:
        yield (
            "sampler",
            f"seed {found['seed']}, {found['draws']} draws, {found['penalized']} tokens penalized",
        )
    if found["held_back"]:
        yield "held back", json.dumps(found["held_back"], ensure_ascii=False)


def _verify(console: Console, paths: list[Path]) -> None:
    from rwkvcli.cli.download import model_file
    from rwkvcli.services import states

    # a default is not meant: the state may be of any model
    name = console.settings.model if "model" in console.settings.typed else None
    model = model_file(console, name).path if name is not None else None
    refused: dict[Path, RwkvError] = {}

    def tell(path: Path, sound: bool, text: str) -> None:
        if console.settings.json:
            console.line(json.dumps({"path": str(path), "sound": sound, "model": name}))
        else:
            console.line(text)

    for path in paths:
        try:
            found = states.verify(path, model)
        except (FormatError, StateMismatch) as error:  # the others are asked for too
            refused[path] = error
            if len(paths) > 1:
                tell(path, False, str(error))
        else:
            belongs = f", and belongs to {name}" if name is not None else ""
            tell(path, True, f"{path}: sound, {found['tokens_seen']:,} tokens seen{belongs}")
    if len(refused) == 1:
        raise next(iter(refused.values()))
    if refused:
        raise FormatError(f"{len(refused)} refused: {', '.join(map(str, refused))}")


def _model(console: Console) -> Any:
    """The model that the state is of."""
    from rwkvcli.cli.download import default_model, loaded, model_to_run
    from rwkvcli.services import loading

    settings = console.settings
    loading.check_device(settings.device)
    found = model_to_run(console, settings.model or default_model(console))
    return loaded(console, found)


def _wrote(console: Console, out: Path) -> None:
    """Stdout is what was written."""
    if console.settings.json:
        console.line(json.dumps({"path": str(out), "bytes": out.stat().st_size}))
    else:
        console.line(str(out))
