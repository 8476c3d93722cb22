"""Finding models on behalf of a person: what is not here is offered where somebody can answer, never fetched unasked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rwkvcli.cli.console import Console
from rwkvcli.cli.signals import held_signals
from rwkvcli.cli.watching import Bars
from rwkvcli.errors import ModelNotFound, NetworkError
from rwkvcli.services import store

if TYPE_CHECKING:
    from rwkvcli.services.pulling import Plan
    from rwkvcli.services.store import LocalModel


def model_file(console: Console, name: str, *, source: bool = False) -> LocalModel:
    """The file of MODEL `name`, of whatever kind; with `source` the checkpoint, not what was made of it.

    What is not here is offered for download on a terminal; elsewhere that is an error with the command.
    """
    found = store.find(name, source=source)
    if found is not None:
        return found
    error = store.missing(name, offline=console.settings.offline)
    if not _may_offer(console, error):
        raise error
    from rwkvcli.services.pulling import bring, plan

    with Bars(console, name) as bars:
        planned = plan(name, watcher=bars)
        bars.hide()
        _ask(console, planned, error)
        return bring(planned, bars)


def model_to_run(console: Console, name: str) -> LocalModel:
    """The model file of MODEL `name`, which is about to be loaded: one that memory cannot hold is warned of.

    On a terminal what is missing is offered once, with all that it takes: download, quantize, keep.
    """
    from rwkvcli.cli.render import size
    from rwkvcli.services.fitting import shortage

    found = store.find(name)
    if found is None or found.is_checkpoint:
        found = _obtained(console, name, found)
    short = shortage(found.path, console.settings.device, console.settings.gpu_layers)
    if short is not None:
        missing = size(short.needed - short.available)
        console.note(
            f"warning: {name} takes {size(short.needed)}, {size(short.available)} of memory are free, {missing} "
            "are missing: weights will be read from the disk again and again"
        )
    return found


def loaded(console: Console, found: LocalModel) -> Any:
    """The model in the file `found`, on the device that the settings ask for; what `auto` chose is told with -v."""
    from rwkvcli.services.loading import load_model

    settings = console.settings
    model = load_model(found, settings.device, settings.threads, settings.gpu_layers)
    if model.why:
        console.detail(f"device auto: {model.why}")
    return model


def drafting_for(console: Console, model: Any) -> Any:
    """What the settings say that guesses tokens ahead of `model`; None: nothing. Raises UsageError for a draft model with
    another vocabulary."""
    from rwkvcli.services.loading import drafting_by, ways_to_guess

    name, draft = console.settings.draft, None
    if name and name not in ways_to_guess():
        found = model_to_run(console, name)
        draft = loaded(console, found)
        console.detail(f"draft {found.path}: {draft.backend.description}")
    drafting = drafting_by(model, draft or name or None, lambda message: console.note(f"warning: {message}"))
    if drafting is not None and not drafting.works:
        console.note(f"note: nothing is guessed on {model.backend.description}")
    return drafting


def default_model(console: Console) -> str:
    """The MODEL where neither the command line nor the configuration names one: the best that is here.

    Without any it is the one to offer on a terminal. Elsewhere raises ModelNotFound with the command that brings it.
    """
    from rwkvcli.services import catalog, hub_cache, pulling
    from rwkvcli.services.fitting import free_memory

    best = best_here(console)
    if best is not None:
        return best
    offered = catalog.offer(free_memory(), hub_cache.free_disk())
    command = f"`rwkv pull {offered} --quantize {pulling.kind_for(2 * offered.parameters)}`"
    toy = "`-m demo` is a toy that is built in"
    offline = console.settings.offline
    if offline or hub_cache.is_offline():
        raise NetworkError(
            "no model is on this machine, and the network is off",
            hint=f"{store.how_to_go_online(offline)}: {command}; {toy}",
        )
    if not console.may_ask:
        raise ModelNotFound(
            "no model is on this machine", hint=f"{command} brings one that fits its memory; {toy}"
        )
    console.note("no model is on this machine; this one fits its memory (`-m` takes any other):")
    return str(offered)


def best_here(console: Console) -> str | None:
    """The best MODEL that is here, for verbs that do without any; it is told. None without one."""
    from rwkvcli.services import catalog
    from rwkvcli.services.fitting import free_memory

    best = catalog.best_local(free_memory())
    if best is not None:
        console.note(f"no -m: using {best}")
    return best


def carry_out(console: Console, planned: Plan, bars: Bars) -> tuple[LocalModel | None, LocalModel]:
    """Do what was planned: (the download if it is here, the file that was wanted)."""
    from rwkvcli.services import pulling

    if planned.kind is not None and planned.result is not None:
        source = store.LocalModel(planned.source, planned.name, planned.reference) if planned.source else None
        made = store.LocalModel(planned.result, planned.name, planned.reference, planned.kind)
        return source, made
    source = pulling.bring(planned, bars)
    if planned.kind is None:
        return source, source
    try:
        with held_signals() as should_stop:
            made = pulling.make(
                planned, source, bars, threads=console.settings.threads, should_stop=should_stop
            )
    except Exception:
        bars.hide()
        if source.path.exists():  # another process may have removed it
            tell_kept(console, source)
        raise
    return source, made


def tell_kept(console: Console, source: LocalModel) -> None:
    """Say that a download is still here, and what removes it."""
    from rwkvcli.cli.render import size

    nbytes, name = size(source.nbytes), store.quoted(str(source.reference))
    console.note(f"the download is kept, {nbytes}: `rwkv rm {name} --source` removes it")


def _obtained(console: Console, name: str, found: LocalModel | None) -> LocalModel:
    """The model file of `name`, made now; `found` is the checkpoint, if that is here."""
    error = _not_runnable(console, name, found)
    if not _may_offer(console, error):
        raise error
    from rwkvcli.services import pulling

    offline = console.settings.offline
    with Bars(console, name) as bars:
        planned = pulling.plan(
            name, for_this_machine=True, offline=offline or found is not None, watcher=bars
        )
        bars.hide()
        _ask(console, planned, error)
        source, made = carry_out(console, planned, bars)
        if source is not None and source.path != made.path and planned.source is None:
            pulling.discard(source)
    return made


def _not_runnable(console: Console, name: str, found: LocalModel | None) -> Exception:
    """The error for a MODEL that is not here as a model file, with the command that makes it one."""
    from rwkvcli.services import names, pulling

    if found is not None:
        kind = pulling.kind_for(found.nbytes)
        return ModelNotFound(
            f"{name} is a checkpoint, and no model file was made of it",
            hint=f"make one with `rwkv pull {store.quoted(name)} --quantize {kind}`",
        )
    short = names.alias(name)
    then = ""
    if short is not None and short.kind is None:
        then = f" --quantize {pulling.kind_for(2 * short.parameters)}"
    elif short is None and not name.partition("@")[0].endswith(".safetensors"):
        then = " --quantize int4"
    return store.missing(name, offline=console.settings.offline, then=then)


def _may_offer(console: Console, error: Exception) -> bool:
    """Whether what is missing can be offered: somebody can answer, and the network is on."""
    return console.may_ask and not isinstance(error, NetworkError)


def _ask(console: Console, planned: Plan, error: Exception) -> None:
    """Tell what is to be done and ask whether to. Raises `error` for a no, and NoSpace without asking."""
    from rwkvcli.cli.console import write_error_stream

    planned.check_room()
    lines = [f"{error}. To have it:", *plan_lines(planned, removes=planned.source is None)]
    write_error_stream("\n".join(lines) + "\n")
    if not console.ask("Go on?", default=True):
        raise error


def plan_lines(planned: Plan, *, removes: bool = False) -> list[str]:
    """What a plan takes, a line each; `removes`: the download goes when the model file is made."""
    from rwkvcli.cli.render import size, table
    from rwkvcli.services.kept import kept_path

    rows = []
    have = planned.size - planned.to_download
    if planned.to_download:
        rest = f" ({size(have)} are here)" if have else ""
        rows.append(("download", f"{size(planned.to_download)}{rest}", str(planned.reference)))
    elif planned.have == planned.size:
        rows.append(("is here", size(planned.size), str(planned.source or planned.reference)))
    if planned.to_write:
        rows.append((f"make {planned.kind}", f"about {size(planned.to_write)}", f"kept in {kept_path()}"))
        if removes:
            rows.append(("remove", size(planned.size), "the download, when that is done"))
    elif planned.result is not None:
        rows.append(("is here", size(planned.result.stat().st_size), str(planned.result)))
    return list(table([(planned.name, "", ""), *rows]))[1:] if rows else []
