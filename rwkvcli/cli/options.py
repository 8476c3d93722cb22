"""The options that every verb has, defined once, and how a verb gets them as `Settings`.

They are accepted before and after the verb; what is closer to the end of the line wins. A flag wins over the
environment, and the environment over the person's configuration.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, overload

import typer

from rwkvcli.cli.console import write_answer
from rwkvcli.cli.settings import Color, Settings

if TYPE_CHECKING:
    from rwkvcli.errors import RwkvError

GLOBAL_PANEL = "Global options"
SAMPLING_PANEL = "Sampling"

FileOption = Annotated[
    list[str] | None,
    typer.Option("-f", "--file", metavar="FILE", help="Read text from FILE; - is stdin. Repeatable."),
]
KeepNewlineOption = Annotated[
    bool, typer.Option("--keep-newline", help="Keep the newline at the end of stdin and files.")
]
SystemOption = Annotated[
    str | None,
    typer.Option("-s", "--system", metavar="TEXT", help="Instructions before the message; implies --chat."),
]
StateOption = Annotated[
    str | None,
    typer.Option("--state", metavar="FILE", help="Continue from a saved state; FILE stays as it is."),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", help="Give up after that; exit code 124."),
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", metavar="NAME", help="Form of a conversation, in place of the model's own."),
]


class Misuse(typer.BadParameter):
    """A mistake on the command line that is not about one option's value; shown with the verb's usage."""

    def format_message(self) -> str:
        """The message as it is."""
        return self.message


def check_timeout(timeout: float | None) -> None:
    """Refuse a --timeout that is none."""
    if timeout is not None and not 0 < timeout < 1e9:
        raise typer.BadParameter("not a number of seconds above 0", param_hint="'--timeout'")


def check_target(name: str | None, flag: str = "-o", *, folder: bool = False) -> None:
    """Refuse what is no name of a file to write: stdout, and unless it may be a `folder`, what ends as only the name of one does."""
    if name == "-":
        raise Misuse(f"{flag} takes a file, and stdout is none (`./-` is a file of that name)")
    if name is not None and name.endswith(("/", os.sep)) and not folder:
        raise Misuse(f"{flag} takes a file, and `{name}` is the name of a folder")


@dataclass(frozen=True)
class _Global:
    """One global option: a field of Settings, its type, flags, metavar and help."""

    name: str
    kind: Any
    flags: tuple[str, ...]
    metavar: str | None
    help: str
    extra: dict[str, Any]

    @property
    def environment(self) -> str:
        return f"RWKV_{self.name.upper()}"

    def parameter(self, with_environment: bool) -> inspect.Parameter:
        """The option as a parameter of a Typer function.

        Only the program reads the environment: a verb that did too would let it win over an earlier flag.
        """
        option = typer.Option(
            *self.flags,
            help=f"{self.help} [{self.environment}]",
            metavar=self.metavar,
            envvar=self.environment if with_environment else None,
            show_envvar=False,
            show_default=False,
            rich_help_panel=GLOBAL_PANEL,
            **self.extra,
        )
        annotation: Any = Annotated[self.kind | None, option]
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
        )


_GLOBALS = (
    _Global(
        "model", str, ("-m", "--model"), "MODEL",
        "Model: a name (g1-1.5b, demo), owner/repo:file on the Hugging Face Hub, or a path.", {},
    ),
    _Global(
        "device", str, ("--device",), "DEVICE",
        "auto (a GPU as far as the model fits, else the CPU), cpu, cuda[:N] or torch[:cpu|mps|cuda|xpu].", {},
    ),
    _Global(
        "gpu_layers", int, ("--gpu-layers",), "N",
        "Layers on the GPU, the last ones; the others on the CPU. -1: all that fit with auto, all with cuda.", {"min": -1},
    ),
    _Global("threads", int, ("-t", "--threads"), "N", "CPU threads; default: one per physical core.", {"min": 1, "max": 1024}),
    _Global(
        "draft", str, ("--draft",), "MODEL",
        "A smaller MODEL that guesses tokens ahead, or lookup: what the text said before. The same text, sooner.", {},
    ),
    _Global("offline", bool, ("--offline",), None, "Use no network.", {}),
    _Global("quiet", bool, ("-q", "--quiet"), None, "Print nothing but the answer and errors.", {}),
    _Global("verbose", bool, ("-v", "--verbose"), None, "Say more; errors come with a traceback.", {}),
    _Global("json", bool, ("--json",), None, "Answer in JSON.", {}),
    _Global("color", Color, ("--color",), "WHEN", "auto, always or never.", {}),
)  # fmt: skip


def _print_version(wanted: bool | None) -> None:
    if wanted:
        from rwkvcli import __version__

        write_answer(f"rwkv {__version__}\n")
        raise typer.Exit(0)


def _print_help(ctx: typer.Context, wanted: bool | None) -> None:
    if wanted:
        write_answer(ctx.get_help() + "\n")
        raise typer.Exit(0)


def _eager(name: str, flags: tuple[str, ...], help: str, callback: Callable[..., None]) -> inspect.Parameter:
    """A flag that answers at once and ends the program."""
    option = typer.Option(
        *flags, help=help, callback=callback, is_eager=True, show_default=False, rich_help_panel=GLOBAL_PANEL
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[bool | None, option])


_EAGER = (
    _eager("version", ("--version",), "Print the version and exit.", _print_version),
    _eager("help", ("-h", "--help"), "Print this page and exit.", _print_help),
)
_CONTEXT = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def with_root_options(function: Callable[[typer.Context], None]) -> Callable[..., None]:
    """Give the program's callback the global options; they are kept in its context."""

    @wraps(function)
    def callback(ctx: typer.Context, **_values: Any) -> None:
        function(ctx)

    _set_parameters(callback, [_CONTEXT, *(g.parameter(True) for g in _GLOBALS), *_EAGER])
    return callback


@overload
def with_settings(function: Callable[..., None]) -> Callable[..., None]: ...
@overload
def with_settings(
    *, stored: bool = True, own_stored: bool = True, tells_of_stored: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]: ...
def with_settings(
    function: Callable[..., None] | None = None,
    *,
    stored: bool = True,
    own_stored: bool = True,
    tells_of_stored: bool = False,
) -> Any:
    """Replace the parameter `settings` of a verb by the global options, and hand them over as `Settings`.

    What neither flags nor the environment say is looked up in the person's configuration, the verb's own
    options too; not with `stored=False`, and the verb's own not with `own_stored=False`. One that cannot be read ends the
    verb; with `tells_of_stored` it is as if there was none, and the verb has the error as `settings.stored_problem`.
    """
    if function is None:
        return partial(with_settings, stored=stored, own_stored=own_stored, tells_of_stored=tells_of_stored)

    @wraps(function)
    def verb(ctx: typer.Context, **values: Any) -> None:
        root = ctx.find_root()
        for flag in _EAGER:
            values.pop(flag.name)
        defaults, problem = _stored(function.__name__ if own_stored else None) if stored else ({}, None)
        if problem is not None and not tells_of_stored:
            raise problem
        chosen: dict[str, Any] = {}
        typed = set()
        for option in _GLOBALS:
            after = values.pop(option.name)
            value = after if after is not None else root.params.get(option.name)
            if after is not None or _was_typed(root, option.name):
                typed.add(option.name)
                if value == "":  # a variable of a script that is not set
                    raise Misuse(f"{option.flags[-1]} is empty: name one, or leave it out")
            if value is None:
                value = defaults.get(option.name)
            if value is not None:
                chosen[option.name] = value
        _settle_gpu_layers(chosen, typed)
        if "color" in chosen:
            chosen["color"] = Color(chosen["color"])
        for name in values.keys() & defaults.keys():
            source: Any = ctx.get_parameter_source(name)
            if source is not None and source.name == "DEFAULT":
                values[name] = defaults[name]
        settings = Settings(**chosen, typed=frozenset(typed), stored_problem=problem)
        if ctx.obj is not None:
            ctx.obj(settings)
        function(settings=settings, **values)

    # Evaluated against the verb's own module, where its annotations were written.
    own = inspect.signature(function, eval_str=True).parameters.values()
    kept = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=p.annotation)
        for p in own
        if p.name != "settings"
    ]
    _set_parameters(verb, [_CONTEXT, *kept, *(g.parameter(False) for g in _GLOBALS), *_EAGER])
    return verb


def _settle_gpu_layers(chosen: dict[str, Any], typed: set[str]) -> None:
    """Layers for a GPU on a device that takes none: a number that was typed is refused, a default passed over."""
    device = str(chosen.get("device"))
    if device != "cpu" and device.partition(":")[0] != "torch":
        return
    layers = chosen.get("gpu_layers", -1)
    if "gpu_layers" not in typed:
        chosen.pop("gpu_layers", None)
    elif layers > 0:
        named = f"--device {device}" if "device" in typed else f"the default device {device}"
        raise Misuse(
            f"--gpu-layers {layers} and {named} do not go together: layers go on a GPU with auto or cuda"
        )


def _was_typed(ctx: Any, name: str) -> bool:
    """Whether the command line says what the option `name` is."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _stored(verb: str | None) -> tuple[dict[str, Any], RwkvError | None]:
    """What the configuration says for `verb`, or for all of them alone: {name of a parameter: value}; and why it cannot be
    read, if it cannot."""
    from rwkvcli.errors import RwkvError
    from rwkvcli.services import configuration

    found: dict[str, Any] = {}
    try:
        said = configuration.load()
    except RwkvError as error:
        return found, error
    for key, value in said.items():
        table, _, name = key.rpartition(".")
        if table in ("", verb):
            found[name.replace("-", "_")] = value
    return found, None


def _set_parameters(function: Callable[..., None], parameters: list[inspect.Parameter]) -> None:
    """Make Typer see `parameters`, in versions that read the signature and in ones that read annotations."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
