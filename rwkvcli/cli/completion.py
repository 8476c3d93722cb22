"""`rwkv completion`: the scripts, and the suggestions that they ask for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.settings import Settings
from rwkvcli.services.names import SUFFIXES

EXAMPLES = """
  source <(rwkv completion bash)                     # now; or for good, in ~/.bashrc
  rwkv completion zsh > ~/.zfunc/_rwkv               # a folder in $fpath
  rwkv completion fish > ~/.config/fish/completions/rwkv.fish
"""

# Words are split at spaces only, those behind a backslash stay: bash takes the colon of owner/repo:file and the sign of
# --model=demo for borders. A folder or `kl=` is gone on with, without a space.
_BASH = r"""_rwkv() {
    local line="${COMP_LINE:0:COMP_POINT}" words current begun="" reply
    read -a words <<<"$line"
    [[ $line == *" " && $line != *"\\ " ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    [[ $current == *[:=]* ]] && begun="${current%"${current##*[:=]}"}"
    COMPREPLY=()
    while IFS= read -r reply; do
        reply="${reply#"$begun"}"
        [[ $reply == *[!a-zA-Z0-9._/:@%+=~,-]* ]] && printf -v reply %q "$reply"
        [[ $reply == "\\~"* ]] && reply="${reply:1}"
        COMPREPLY+=("$reply")
    done < <(rwkv completion suggest -- "${words[@]:1}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[/=] ]] && compopt -o nospace 2>/dev/null
}
complete -o default -F _rwkv rwkv
"""
_ZSH = r"""#compdef rwkv
_rwkv() {
    local -a found quoted
    found=("${(@f)$(rwkv completion suggest -- "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    found=("${(@)found:#}")
    if (( ! $#found )); then
        _files
        return
    fi
    if [[ -z $compstate[quote] ]]; then
        found=("${(@)${(@q)found}/#\\\~/~}")
        quoted=(-Q)
    fi
    compadd $quoted -S "" -- "${(@M)found:#*[/=]}"
    compadd $quoted -- "${(@)found:#*[/=]}"
}
if [ "$funcstack[1]" = _rwkv ]; then
    _rwkv "$@"
else
    compdef _rwkv rwkv
fi
"""
_FISH = r"""function __rwkv_suggest
    set -l words (commandline -opc) (string unescape -- (commandline -ct))
    set -l found (rwkv completion suggest -- $words[2..-1] 2>/dev/null)
    if set -q found[1]
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c rwkv -f -a '(__rwkv_suggest)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_TAKE_MODEL = ("show", "quantize", "export", "doctor", "bench", "verify")
_MODEL_OPTIONS = ("model", "base", "draft")
_ENDINGS = (*SUFFIXES, ".bin")


@with_settings(stored=False)
def completion(
    settings: Settings,
    *,
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="", help="", show_default=False, hidden=True)
    ] = None,
) -> None:
    """Print a script that completes commands in your shell.

    Verbs, options, their values, the names of models that are here or can be pulled, and model files; where none fits, the
    shell completes the names of all files.
    """
    console = Console(settings)
    if shell == "suggest":
        for suggestion in suggestions(list(words or [""])):
            console.line(suggestion)
        return
    if shell not in SCRIPTS or words:
        raise Misuse(
            f"no script for `{shell}`; there are {', '.join(SCRIPTS)}" if not words else "too many words"
        )
    console.write(SCRIPTS[shell])


def suggestions(words: Sequence[str]) -> list[str]:
    """What the last of `words`, the command line after `rwkv`, may become; the word may be empty."""
    from rwkvcli.cli.root import VERBS

    *before, current = words
    verb = next((word for word in before if word in VERBS), None)
    if before and before[-1].startswith("-"):
        values = _fitting_values(verb, before[-1], current)
        if values is not None:
            return values
    if current.startswith("--") and "=" in current:
        flag, _, begun = current.partition("=")
        return [f"{flag}={value}" for value in _fitting_values(verb, flag, begun) or []]
    if current.startswith("-"):
        return _fitting(_options(verb), current)
    if verb is None:
        return _fitting(VERBS, current)
    given = before[before.index(verb) + 1 :]
    found = _fitting(_arguments(verb, given), current)
    return found + model_files(current) if verb in _TAKE_MODEL or (verb == "chat" and not given) else found


def model_files(begun: str) -> list[str]:
    """The paths that `begun` may become on the way to a model here: folders, with a slash, and files that end like models."""
    folder, slash, name = begun.rpartition("/")
    try:
        inside = sorted(os.scandir(os.path.expanduser(folder + slash) or "."), key=lambda entry: entry.name)  # noqa: PTH111
    except (OSError, ValueError):
        return []
    return [
        f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in inside
        if entry.name.startswith(name)
        and entry.name.isprintable()
        and (name or not entry.name.startswith("."))
        and (slash or not entry.name.startswith(("-", "~")))
        and (entry.is_dir() or entry.name.endswith(_ENDINGS))
    ]


def _fitting(words: Sequence[str] | dict[str, Any], current: str) -> list[str]:
    return [word for word in words if word.startswith(current)]


def _parameters(verb: str | None) -> list[Any]:
    from rwkvcli.cli.root import load_verb, program

    return list((load_verb(verb) if verb is not None else program()).params)


def _options(verb: str | None) -> list[str]:
    """The long and short flags of a verb."""
    return [flag for param in _parameters(verb) if param.param_type_name == "option" for flag in param.opts]


def _option(verb: str | None, flag: str) -> str | None:
    """The name of the option `flag` if it takes a value."""
    param = next((p for p in _parameters(verb) if flag in p.opts and p.param_type_name == "option"), None)
    return None if param is None or param.is_flag else param.name


def _fitting_values(verb: str | None, flag: str, begun: str) -> list[str] | None:
    """What `begun`, after `flag`, may become; None for a flag without a value."""
    option = _option(verb, flag)
    if option is None:
        return None
    found = _fitting(_values_of(verb, option), begun)
    return found + model_files(begun) if option in _MODEL_OPTIONS else found


def _values_of(verb: str | None, option: str) -> list[str]:
    """What `option` of a verb may be; none where that cannot be told."""
    match option:
        case "model" | "base":
            return _models()
        case "draft":
            from rwkvcli.services.loading import ways_to_guess

            return [*ways_to_guess(), *_models()]
        case "fail_over":
            from rwkvcli.services.evaluation import LIMITS

            return [f"{name}=" for name in LIMITS]
        case "device":
            return ["auto", "cpu", "cuda", "torch", "torch:cpu", "torch:cuda", "torch:mps", "torch:xpu"]
        case "color":
            return ["auto", "always", "never"]
        case "quantize":
            return ["int8", "int6", "int5", "int4"]
        case "to":
            if verb == "export":
                return ["pth", "safetensors", "gguf", "hf", "bnb"]
            return ["int8", "int6", "int5", "int4", "nf4", "bf16", "f16", "f32"]
        case "dtype":
            return ["f32", "f16", "bf16"]
        case "recipe":
            return ["default", "best"]
        case "method":
            return ["codebook", "nearest", "gptq"]
        case "ffn_value":
            return ["auto", "tile", "kn"]
        case "think":
            return ["show", "hide", *(["only"] if verb == "generate" else []), "fast", "off"]
        case "form":
            return ["md", "jsonl"]
        case "by":
            return ["sum", "token", "byte"]
        case "sampler_order":
            return ["rwkv", "temperature-first"]
        case "tokenizer":
            return ["world", "bytes"] if verb != "quantize" else []
        case "template":
            from rwkvcli.services.loading import template_names

            return template_names()
    return []


def _arguments(verb: str, before: Sequence[str]) -> Sequence[str]:
    """What may stand where no option does."""
    if verb == "completion":
        return list(SCRIPTS)
    if verb == "eval" and not before:
        return ["lambada"]
    if verb == "state" and not before:
        return ["build", "info", "diff", "export", "import", "verify"]
    if verb == "config":
        from rwkvcli.services.configuration import KEYS

        if not before:
            return ["get", "set", "unset", "list"]
        if before[0] == "set" and len(before) == 2 and before[1] in KEYS:
            return _values_of_setting(before[1])
        return list(KEYS) if len(before) == 1 and before[0] != "list" else []
    if verb in ("chat", "sessions"):
        if verb == "chat":
            return [*_sessions(), *_models()] if not before else []
        if not before:
            return ["list", "export", "rm"]
        return _sessions() if before[0] != "list" else []
    if verb in ("rm", "verify"):  # what was brought here
        from rwkvcli.services.store import names_here

        return names_here()
    if verb == "pull":
        from rwkvcli.services.names import aliases

        return aliases()
    if verb == "list":
        from rwkvcli.services.names import families

        return list(families())
    return _models() if verb in _TAKE_MODEL else []


def _values_of_setting(key: str) -> Sequence[str]:
    """What `rwkv config set KEY` may be told."""
    from rwkvcli.services.configuration import KEYS

    if KEYS[key].kind is bool:
        return ["yes", "no"]
    *verb, name = key.split(".")
    return KEYS[key].choices or _values_of(verb[0] if verb else None, name.replace("-", "_"))


def _sessions() -> list[str]:
    """Conversations; none where their place cannot be read, which the command itself will tell."""
    from rwkvcli.errors import UsageError
    from rwkvcli.services.sessions import names

    try:
        return names()
    except UsageError:
        return []


def _models() -> list[str]:
    """What is here, and the short names of what can be."""
    from rwkvcli.services.names import DEMO, aliases
    from rwkvcli.services.store import names_here

    return list(dict.fromkeys([DEMO, *names_here(), *aliases()]))
