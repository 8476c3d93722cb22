"""`rwkv serve`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rwkvcli.cli.console import Console, print_traceback, print_unexpected
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.settings import Settings
from rwkvcli.cli.signals import Interruption
from rwkvcli.errors import MissingExtra

EXAMPLES = """
  rwkv serve -m g1-1.5b
  rwkv serve -m demo --port 8000 --parallel 16
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "Hello"}]}'
  rwkv serve -m g1-1.5b --state manual.state
  rwkv serve -m g1-1.5b --keep ~/states
  RWKV_API_KEY=secret rwkv serve -m g1-1.5b --host 0.0.0.0
"""


_WAITING = 1024
"""Texts that may wait for a place."""


class Think(StrEnum):
    """What `--think` takes."""

    show = "show"
    hide = "hide"
    fast = "fast"
    off = "off"


@with_settings
def serve(
    settings: Settings,
    *,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Listen there; 0.0.0.0: to other machines too.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Listen there; 0: any that is free.")
    ] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="Answer only who knows KEY. Better in RWKV_API_KEY, which other users of the machine do not see.",
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="FILE",
            help="Go on from a saved state too, as a model that is called as FILE is, without its ending. Repeatable.",
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option("-b", "--parallel", metavar="N", min=1, max=1024, help="Texts made together.")
    ] = 8,
    cache: Annotated[
        str, typer.Option("--cache", metavar="SIZE", help="Memory for states of earlier prompts; 0: none.")
    ] = "512MB",
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            metavar="FOLDER",
            help="Keep states in FOLDER too: conversations are gone on with after a restart. What they say can be told from it.",
            show_default=False,
        ),
    ] = None,
    keep_size: Annotated[
        str, typer.Option("--keep-size", metavar="SIZE", help="What they take on disk at most.")
    ] = "8GB",
    think: Annotated[
        Think | None,
        typer.Option(
            "--think",
            metavar="WAY",
            help="Where a request does not say: show the model's thoughts, hide them, fast: without, off: as it likes.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option("--cors", metavar="ORIGIN", help="Let web pages of ORIGIN ask; * is all. Repeatable."),
    ] = None,
) -> None:
    """Answer programs over HTTP that speak OpenAI's protocol.

    /v1/chat/completions, /v1/responses, /v1/completions and /v1/models are there, whole or streamed, and take the settings of
    the sampler beside OpenAI's own. Point a program to http://127.0.0.1:8080/v1, with any API key where none is set. /tokenize
    and /detokenize tell token ids.

    Texts that are asked for at the same time are made together, and each is what it would be alone. States of earlier prompts
    are kept: a conversation is gone on with by reading what is new in it, however long it is, with --keep FOLDER by the next
    server as well. With --state manual.state requests
    for the model `manual` go on from what that file has seen, which is not read again. --draft is for a text that is the only one
    in the making.

    Ctrl-C or SIGTERM (Ctrl-Break on Windows) ends it; the latter is no error (exit code 0).
    """
    import contextlib
    from concurrent.futures import ThreadPoolExecutor

    console = Console(settings)
    try:
        from rwkvcli.server import running
        from rwkvcli.server.app import Options, Server
    except ImportError:
        raise MissingExtra("serve", "rwkv serve") from None
    from rwkvcli.cli.download import default_model, drafting_for, loaded, model_to_run
    from rwkvcli.services.kept_states import KeptStates, kept_folder
    from rwkvcli.services.loading import check_device, load_state
    from rwkvcli.services.planning import parse_size
    from rwkvcli.services.serving import Texts

    limit = 0 if cache.strip() == "0" else parse_size(cache)
    disk_limit = parse_size(keep_size)
    if keep == "":
        raise typer.BadParameter("the name is empty", param_hint="'--keep'")
    if api_key is not None and not api_key.strip():
        raise typer.BadParameter("the key is empty", param_hint="'--api-key'")
    key = api_key or os.environ.get("RWKV_API_KEY") or None
    check_device(settings.device)
    with running.listen(host, port) as listener, contextlib.ExitStack() as stack:
        folder = stack.enter_context(kept_folder(keep)) if keep is not None else None
        name = settings.model or default_model(console)
        console = Console(replace(settings, model=name))
        model = loaded(console, model_to_run(console, name))
        if think is not None:
            model.template.check_way(think)
        states = {_name(Path(file).stem): load_state(Path(file), model) for file in state or ()}
        _check_names(name, state or ())
        options = Options(
            _name(name),
            states,
            key,
            str(think) if think is not None else None,
            tuple(origin.rstrip("/").lower() for origin in cors or ()),  # as browsers say it
            hosts=running.names_of(listener, host),
            log=console.note,
            fault=lambda error: _tell_fault(console, error),
        )
        drafting = drafting_for(console, model)
        with Interruption(raises=False) as interruption, ThreadPoolExecutor(1) as other_thread:
            # the engine is here: signals reach it in the main thread alone
            starts = list(states.values())
            disk = KeptStates(folder, model, disk_limit, starts, console.note) if folder is not None else None
            texts = Texts(model, parallel, limit, _WAITING, starts, drafting, interruption.raising, disk)
            server = Server(model, texts, options)
            _tell(
                console,
                running.address(listener),
                name,
                None if disk is None else (keep, len(disk)),
                open_to_all=options.hosts is None and key is None,
            )
            served = other_thread.submit(
                running.serve,
                server.app,
                listener,
                lambda: interruption.asked() or texts.closed,
                texts.close,
                console.note,
            )
            texts.run()
            again = threading.Event()
            interruption.notify = again.set
            texts.put_away(again.is_set)
            served.result()
    if interruption.caught == signal.SIGINT:
        raise KeyboardInterrupt


def _name(text: str) -> str:
    """What a model is called: JSON has no bytes that are no characters, as paths may have them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _check_names(model: str, files: Sequence[str]) -> None:
    """Refuse states that a request could not tell apart."""
    names = [_name(name) for name in (model, *(Path(file).stem for file in files))]
    for number, file in enumerate(files, 1):
        if names[number] in names[:number]:
            raise Misuse(f"two models would be called {names[number]}: rename {file}")


def _tell_fault(console: Console, error: BaseException) -> None:
    """Say that a request failed by nobody's mistake; the server goes on."""
    if console.settings.verbose:
        print_traceback(error)
    print_unexpected(error, console.settings.color)


def _tell(
    console: Console, url: str, name: str, found: tuple[str | None, int] | None, *, open_to_all: bool
) -> None:
    """Say where it listens, and where how many states were `found`."""
    if console.settings.json:
        states = {} if found is None else {"states": found[1]}
        console.json({"url": f"{url}/v1", "model": name, **states})
    else:
        if found is not None:
            console.note(f"states of earlier conversations in {found[0]}: {found[1]}")
        console.note(f"{name} answers at {url}/v1 (Ctrl-C ends it)")
    if open_to_all:
        console.note("warning: other machines can reach it, and no API key is set: RWKV_API_KEY sets one")
