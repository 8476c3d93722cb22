"""`rwkv completion`: the scripts, and the suggestions that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.settings import Settings

EXAMPLES = """
  source <(rwkv completion bash)                     # now; or for good, in ~/.bashrc
  rwkv completion zsh > ~/.zfunc/_rwkv               # a folder in $fpath
  rwkv completion fish > ~/.config/fish/completions/rwkv.fish
"""

# Words are split at spaces only: bash takes the colon of owner/repo:file and the sign of --model=demo for borders.
_BASH = r"""_rwkv() {
    local line="${COMP_LINE:0:COMP_POINT}" words current prefix
    read -ra words <<<"$line"
    [[ $line == *" " ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    local IFS=$'\n'
    COMPREPLY=($(rwkv completion suggest -- "${words[@]:1}" 2>/dev/null))
    if [[ $current == *[:=]* ]]; then
        prefix="${current%"${current##*[:=]}"}"
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
}
complete -o default -F _rwkv rwkv
"""
_ZSH = r"""#compdef rwkv
_rwkv() {
    local -a found
    found=("${(@f)$(rwkv completion suggest -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=("${(@)found:#}")
    (( $#found )) && compadd -- "${found[@]}"
    _files
}
if [ "$funcstack[1]" = _rwkv ]; then
    _rwkv "$@"
else
    compdef _rwkv rwkv
fi
"""
_FISH = r"""function __rwkv_suggest
    set -l words (commandline -opc) (commandline -ct)
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
_TAKE_MODEL = ("show", "quantize", "doctor", "bench")


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

    Verbs, options, their values, and the names of models that are here or can be pulled; where none fits, the shell
    completes the names of files.
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
        values = _values_of(verb, before[-1])
        if values is not None:
            return _fitting(values, current)
    if current.startswith("--") and "=" in current:
        flag, _, begun = current.partition("=")
        return [f"{flag}={value}" for value in _fitting(_values_of(verb, flag) or [], begun)]
    if current.startswith("-"):
        return _fitting(_options(verb), current)
    if verb is None:
        return _fitting(VERBS, current)
    return _fitting(_arguments(verb, before[before.index(verb) + 1 :]), current)


def _fitting(words: Sequence[str] | dict[str, Any], current: str) -> list[str]:
    return [word for word in words if word.startswith(current)]


def _parameters(verb: str | None) -> list[Any]:
    from rwkvcli.cli.root import load_verb, program

    return list((load_verb(verb) if verb is not None else program()).params)


def _options(verb: str | None) -> list[str]:
    """The long and short flags of a verb."""
    return [flag for param in _parameters(verb) if param.param_type_name == "option" for flag in param.opts]


def _values_of(verb: str | None, flag: str) -> list[str] | None:
    """What may stand after `flag`: none that can be told (an empty list), or None for a flag without a value."""
    param = next((p for p in _parameters(verb) if flag in p.opts and p.param_type_name == "option"), None)
    if param is None or param.is_flag:
        return None
    match param.name:
        case "model" | "base":
            return _models()
        case "fail_over":
            from rwkvcli.services.evaluation import LIMITS

            return [f"{name}=" for name in LIMITS]
        case "device":
            return ["auto", "cpu", "cuda", "torch", "torch:cpu", "torch:cuda", "torch:mps", "torch:xpu"]
        case "color":
            return ["auto", "always", "never"]
        case "quantize":
            return ["int8", "int4"]
        case "to":
            return ["int8", "int4", "bf16", "f16", "f32"]
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
        case "sampler_order":
            return ["rwkv", "temperature-first"]
        case "tokenizer":
            return ["world", "bytes"] if verb != "quantize" else []
        case "template":
            from rwkvcli.services.generation import template_names

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
        from rwkvcli.services.sessions import names

        if verb == "chat":
            return [*names(), *_models()] if not before else []
        if not before:
            return ["list", "export", "rm"]
        return names() if before[0] != "list" else []
    if verb in ("rm", "verify"):
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
    return KEYS[key].choices or _values_of(verb[0] if verb else None, f"--{name}") or []


def _models() -> list[str]:
    """What is here, and the short names of what can be."""
    from rwkvcli.services.names import DEMO, aliases
    from rwkvcli.services.store import names_here

    return list(dict.fromkeys([DEMO, *names_here(), *aliases()]))
