"""`Model`: a model file, its tokenizer and a device, in one object."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import DeviceUnavailable, OutOfMemory, StateMismatch, UsageError
from rwkvcli.runtime.backend import UNUSED_EPS, Backend
from rwkvcli.runtime.device import cpu_level, parse_device
from rwkvcli.runtime.machine import default_threads
from rwkvcli.runtime.numbers import whole
from rwkvcli.runtime.state import State, wrong_model
from rwkvcli.runtime.state_file import Origin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quant.arch import Arch
    from quant.container.reader import ModelFile
    from rwkvcli.runtime.backend import Float32, Ids, Logits
    from rwkvcli.runtime.decoding import Evaluator
    from rwkvcli.runtime.lookahead import Ahead
    from rwkvcli.runtime.sampling import Sampler
    from rwkvcli.runtime.speculation import Speculation
    from rwkvcli.runtime.streaming import TextStream
    from rwkvcli.runtime.templates import Template
    from rwkvcli.runtime.tokenizer import Tokenizer


_MOST_THREADS = 1024
"""As for `-t`: more is a mistake."""


class Model:
    """A loaded model. `Model.load("model.safetensors")` or `Model.load("demo")`.

    One evaluation runs at a time: calls from several threads wait for each other.
    """

    def __init__(self, file: ModelFile, backend: Backend, why: str = "") -> None:
        self.file = file
        self.backend = backend
        self.why = why
        """Why it is on this device, if `auto` chose it."""
        self._tokenizer: Tokenizer | None = None
        self.origin = origin_of(file)

    @property
    def fingerprint(self) -> str:
        """Names the file's content: what a saved state must match."""
        return self.origin.fingerprint

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        threads: int | None = None,
        gpu_layers: int | None = None,
    ) -> Model:
        """Open a model file (as `rwkv quantize` writes it), or the built-in `demo`.

        `device`: `cpu`, `cuda[:N]`, `torch[:DEVICE]`, or `auto`: a GPU with this project's kernels, as far as the model fits
        into its free memory, else the CPU. `threads`: CPU threads, by default one per core that this process may use.
        `gpu_layers`: how many of the last layers are on the GPU (with `auto`, at most), the others on the CPU; by
        default, and with -1, all. Logits and states are the same bits on both. Raises ModelNotFound, FormatError,
        DeviceUnavailable, OutOfMemory (of a GPU), MissingExtra, UsageError.
        """
        from quant.container.reader import ModelFile
        from rwkvcli import _kernels
        from rwkvcli.runtime.placement import place

        parse_device(device)  # before the file is opened
        if threads is not None:
            threads = _whole(threads, "threads")
            if not 1 <= threads <= _MOST_THREADS:
                raise UsageError(f"threads must be from 1 to {_MOST_THREADS}, not {threads}")
        if gpu_layers is not None:
            gpu_layers = _whole(gpu_layers, "gpu_layers")
        file = ModelFile.open(demo_path() if str(path) == "demo" else Path(path), checks=_kernels)
        where = place(file, device, gpu_layers)
        why = where.why if device == "auto" else ""
        if where.kind == "torch":
            return cls(file, _torch_backend(file, where.which, threads))
        if where.kind == "cuda":
            from rwkvcli.runtime.cuda import CudaModel, automatic_library

            library = automatic_library() if device == "auto" else None
            try:
                gpu = CudaModel(file, int(where.which), where.layers, threads or default_threads(), library)
                return cls(file, gpu, why)
            except (DeviceUnavailable, OutOfMemory) as error:
                if device != "auto":
                    raise
                why = str(error)
        from rwkvcli.runtime.native import NativeModel

        return cls(file, NativeModel(file, threads or default_threads(), cpu_level()), why)

    @property
    def config(self) -> Arch:
        """version, n_layer, n_embd, n_head, head_size, n_ffn, vocab_size."""
        return self.file.arch

    @property
    def tokenizer(self) -> Tokenizer:
        """.encode(str) -> list[int], .decode(list[int]) -> str. Raises UsageError if the file names none."""
        if self._tokenizer is None:
            from rwkvcli.runtime.tokenizer import tokenizer_for

            self._tokenizer = tokenizer_for(
                self.file.tokenizer, self.config.vocab_size, self.file.tokenizer_bytes()
            )
        return self._tokenizer

    def new_state(self) -> State:
        """The state before the first token."""
        return State(self.backend.new_state(), self.origin)

    def forward(
        self, tokens: Sequence[int] | NDArray[Any], state: State, all_logits: bool = False
    ) -> Float32:
        """Feed tokens to the state, in place.

        Returns float32 logits [vocab] of the last token, or [T, vocab] of every token. On the CPU, how a text is split
        over calls changes no bit of the result. Raises UsageError (no tokens, ids outside the vocabulary) and StateMismatch; the
        state is then as it was. After Ctrl-C it is that, or has seen all of the tokens, when there was nothing left to
        stop: `state.tokens_seen` tells.
        """
        import numpy as np

        return np.asarray(self.evaluate(tokens, state, all_logits))

    def evaluate(
        self, tokens: Sequence[int] | NDArray[Any], state: State, all_logits: bool = False
    ) -> Logits:
        """The same without importing numpy: the logits are in whatever form the device gives them."""
        ids = self.ids_for(tokens, state)
        done: list[Logits] = []
        state.begin(len(ids), done)
        try:
            return self.backend.forward(ids, state.inner, all_logits, done)
        finally:
            state.end(done)

    def ahead(self) -> Ahead | None:
        """Room for tokens that may follow a state. None: this device gives such tokens other logits than single ones."""
        from rwkvcli.runtime.lookahead import Ahead

        room = self.backend.lookahead()
        return Ahead(self, room) if room is not None else None

    def ids_for(self, tokens: Sequence[int] | NDArray[Any], state: State) -> Ids:
        """Tokens as backends take them. Raises UsageError and StateMismatch if they cannot be fed to `state`."""
        ids = self._ids(tokens)
        self._check(state)
        return ids

    def forward_batch(
        self, tokens: Sequence[Sequence[int]] | Sequence[int], states: Sequence[State]
    ) -> Float32:
        """Feed one token to each of B different states: `forward_batch([t0, t1], [s0, s1])`. Logits [B, vocab]."""
        import numpy as np

        flat, states = [_single(token) for token in _each(tokens, "tokens")], _each(states, "states")
        if len(flat) != len(states):
            raise UsageError(f"{len(flat)} tokens for {len(states)} states")
        if len({id(state) for state in states}) != len(states):
            raise UsageError(
                "the same state stands twice in the batch", hint="give each sequence its own: state.copy()"
            )
        for state in states:
            self._check(state)
        ids, inner = self._ids(flat), [state.inner for state in states]
        done: list[Logits] = []
        for state in states:
            state.begin(1, done)
        try:
            return np.asarray(self.backend.forward_batch(ids, inner, done))
        finally:
            for state in states:
                state.end(done)

    @property
    def template(self) -> Template:
        """The family of this model: how a conversation is written, default sampling. FormatError: unknown."""
        from rwkvcli.runtime.templates import template_of

        return template_of(self.file)

    def generate(
        self,
        prompt: str,
        max_tokens: int = 512,
        *,
        state: State | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
        draft: Model | str | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Continue `prompt`, yielding text as it comes. `max_tokens` -1: until the model ends the text.

        With `state` the prompt continues what that state has seen, and the state advances over the prompt and all of
        the text (a stop string's last token is left out; when the caller breaks off, the token of the last piece has not
        been fed). With an empty `prompt` it goes on exactly where a run that saved the state was left, if one did, half
        characters and draws included. The same seed gives the same text. `sampling` takes every other setting of
        `rwkvcli.runtime.sampling.SamplingParams`; what is None or left out is as usual for this family of models. The text
        conforms to the JSON Schema `schema`, matches `regex`, is one of `choices`, or is one of the Lark `grammar`, from its
        first byte, and ends where nothing can follow (MissingExtra without the package llguidance). `draft`, a smaller model of
        the same vocabulary or "lookup", guesses tokens ahead: the text is the same, and comes sooner. Raises UsageError for
        settings out of range, at once.
        """
        from rwkvcli.runtime.constraint import Constraint
        from rwkvcli.runtime.decoding import check_limits
        from rwkvcli.runtime.drafting import Drafting
        from rwkvcli.runtime.resuming import resume
        from rwkvcli.runtime.sampling import Sampler, SamplingParams
        from rwkvcli.runtime.speculation import speculation_for
        from rwkvcli.runtime.streaming import TextStream, stop_strings

        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, **sampling}
        params = SamplingParams.of(self.template.settings(chat=False), given)
        stop = stop_strings(stop)
        check_limits(max_tokens, stop)
        constraint = Constraint.of({"schema": schema, "regex": regex, "choices": choices, "grammar": grammar})
        matcher = constraint.matcher(self.tokenizer) if constraint is not None else None
        sampler = Sampler(params, self.tokenizer.vocab_size, self.tokenizer, matcher)
        speculation = speculation_for(self, sampler, Drafting.by(self, draft))
        shared = state is not None
        state = state if state is not None else self.new_state()
        self._check(state)
        text, begun, pause = TextStream(stop), "", state.pause
        if prompt == "" and pause is not None:
            begun = resume(pause, sampler, text, params.seed)
            if pause.ended:
                begun += text.flush()
                return iter([begun] if begun else [])
        ids = self._ids_of(prompt, state)
        return self._generate(ids, state, sampler, max_tokens, text, begun, speculation, shared)

    def _generate(
        self,
        ids: list[int],
        state: State,
        sampler: Sampler,
        max_tokens: int,
        text: TextStream,
        begun: str,
        speculation: Speculation | None,
        shared: bool,
    ) -> Iterator[str]:
        from rwkvcli.runtime.decoding import Continuation, continued

        feeder = speculation or self
        logits = self._logits_after(ids, state, feeder)
        if begun:
            yield begun
        try:
            for piece in continued(
                feeder, state, logits, Continuation(self.tokenizer, sampler, max_tokens, text)
            ):
                if piece.finish is not None and piece.finish.unfed and piece.finish.stop is None:
                    feeder.evaluate(piece.finish.unfed, state)
                if piece.text:
                    if speculation is not None and shared:
                        speculation.settle(state)  # the caller may look at it
                    yield piece.text
        finally:
            if speculation is not None and shared:
                speculation.settle(state)

    def score(self, prompt: str, choices: Sequence[str], *, state: State | None = None) -> list[float]:
        """The log-probability (nats) of each of `choices` as what comes right after `prompt`, which is evaluated once.

        A choice is encoded by itself, so a space between the two is the choice's. With `state` the prompt continues what that
        state has seen; the state stays as it is. Raises UsageError for an empty choice.
        """
        from rwkvcli.runtime.choices import choice_ids, score_choices
        from rwkvcli.runtime.tokenizer import text_to_bytes

        if isinstance(choices, str) or not isinstance(choices, Iterable):
            what = "one string" if isinstance(choices, str) else repr(choices)
            raise UsageError(f"choices are a list of strings, not {what}")
        wanted = [choice_ids(self.tokenizer, text_to_bytes(choice)) for choice in choices]
        state = state if state is not None else self.new_state()
        self._check(state)
        state, ids = state.copy(), self._ids_of(prompt, state)
        return score_choices(self, state, self._logits_after(ids, state), wanted)

    def _ids_of(self, prompt: str, state: State) -> list[int]:
        """What is to be fed; nothing where the state can be gone on with as it is."""
        ids = self.tokenizer.encode(prompt)
        if not ids and (state.pause is None or state.pause.logits is None):
            if state.tokens_seen:
                raise UsageError("nothing to feed: the prompt is empty and the state is not new")
            ids = [self.tokenizer.eos_id]  # the end of one text is the beginning of the next
        return ids

    def _logits_after(self, ids: list[int], state: State, feeder: Evaluator | None = None) -> Logits:
        """Feed `ids`. The logits of the last token that the state has seen then."""
        pause = state.pause
        if not ids and pause is not None and pause.logits is not None:
            return pause.logits
        return (feeder or self).evaluate(ids, state)

    def _ids(self, tokens: Sequence[int] | NDArray[Any]) -> Ids:
        if (
            isinstance(tokens, list | tuple | array)
            and tokens
            and all(type(token) is int for token in tokens)
        ):
            self._check_range(min(tokens), max(tokens))
            return array("i", tokens)
        import numpy as np

        try:
            wide = np.asarray(tokens)
        except ValueError:
            raise UsageError("tokens must be a flat list of ids") from None
        if wide.size == 0:
            raise UsageError("no tokens")
        if wide.ndim != 1 or wide.dtype.kind not in "iu":
            raise UsageError("tokens must be a flat list of whole numbers")
        self._check_range(int(wide.min()), int(wide.max()))
        return wide.astype(np.int32)

    def _check_range(self, low: int, high: int) -> None:
        if low < 0 or high >= self.config.vocab_size:
            bad = low if low < 0 else high
            raise UsageError(f"token {bad} is outside the vocabulary of {self.config.vocab_size}")

    def _check(self, state: State) -> None:
        if not isinstance(state, State) or state.fingerprint != self.fingerprint:
            raise wrong_model(state)
        if not isinstance(state.inner, self.backend.state_type):
            raise StateMismatch(
                "the state lives on another device",
                hint="save it, and load it with State.load for this model",
            )


def origin_of(file: ModelFile) -> Origin:
    """What the states of a model file say that they belong to."""
    identity = [file.metadata.get(key, "") for key in ("arch", "source", "plan", "method", "calibration")]
    fingerprint = hashlib.sha256("\0".join(identity).encode()).hexdigest()
    return Origin.of(fingerprint, file.arch, file.source.get("file"))


def demo_path() -> Path:
    """The built-in model, package data."""
    return Path(__file__).parent.parent / "data" / "demo.safetensors"


def _whole(value: Any, name: str) -> int:
    try:
        return whole(value)
    except TypeError:
        raise UsageError(f"{name} must be a whole number, not {value!r}") from None


def _each(given: Any, name: str) -> list[Any]:
    try:
        return list(given)
    except TypeError:
        raise UsageError(f"{name} are a list, one for each sequence, not {type(given).__name__}") from None


def _single(token: Any) -> int:
    import numpy as np

    try:
        if isinstance(token, Sequence | np.ndarray):
            (token,) = token
        return whole(token)
    except (TypeError, ValueError):
        raise UsageError("forward_batch takes one token, a whole number, per state") from None


def _torch_backend(file: ModelFile, device: str, threads: int | None) -> Backend:
    from rwkvcli.errors import MissingExtra

    try:
        import torch

        from rwkvcli.runtime.torch_backend import TorchModel
    except ImportError:
        raise MissingExtra("torch", "--device torch") from None
    if threads:
        torch.set_num_threads(threads)
    try:
        return TorchModel(file, device, group_norm_eps=file.group_norm_eps or UNUSED_EPS)
    except (RuntimeError, AssertionError) as e:
        raise DeviceUnavailable(f"torch cannot use device {device!r}: {str(e).splitlines()[0]}") from e
