"""A conversation with a model: turns, going back and forth among them, and the state after each. No printing.

What makes it exact: a turn notes the tokens that it fed and where its random numbers go on, and however tokens
are fed the engine gives the same bits. So a state is either at hand or is made again, and a conversation that
was resumed or undone goes on as one that never stopped.
"""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import FormatError, RwkvError, UsageError
from rwkvcli.services.answering import Answer, Part
from rwkvcli.services.turns import History, Turn

if TYPE_CHECKING:
    from rwkvcli.runtime.drafting import Drafting
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State
    from rwkvcli.runtime.templates import Template
    from rwkvcli.services.reading import Progress
    from rwkvcli.services.snapshots import Snapshots

THINK = ("show", "hide", "fast", "off")
"""Thoughts are shown, or hidden; they are left out by a form that the model knows, or nothing is said of them."""
MAX_TOKENS = 4096


@dataclass
class Settings:
    """How answers are made. `sampling` is as for `rwkvcli.services.generation.Settings`, without a seed."""

    sampling: dict[str, Any] = field(default_factory=dict)
    max_tokens: int = MAX_TOKENS
    stop: tuple[str, ...] = ()
    think: str | None = None
    """One of THINK; None: `off`."""
    template: str | None = None
    """A family of models in place of the model's own."""

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """Raises FormatError; what the sampler does not take shows later."""
        try:
            settings = cls(**values)
            bias = settings.sampling.get("logit_bias")
            if bias:
                settings.sampling["logit_bias"] = {int(key): float(value) for key, value in bias.items()}
            if settings.sampling.get("banned_strings"):
                settings.sampling["banned_strings"] = tuple(settings.sampling["banned_strings"])
            settings.stop = tuple(settings.stop)
        except (TypeError, ValueError, AttributeError):
            raise FormatError("the settings are not as they should be") from None
        return settings


def preferred(model: Model, template: str | None) -> tuple[Settings, str | None]:
    """What the person's configuration says for conversations that begin with `model`, written as `template` (None: as the
    configuration or the model says): the settings, and the instructions. Raises FormatError, UsageError.
    """
    from rwkvcli.runtime.templates import named
    from rwkvcli.services import configuration

    table = "chat."
    said = {
        key.removeprefix(table).replace("-", "_"): value
        for key, value in configuration.load().items()
        if key.startswith(table)
    }
    system = said.pop("system", None)
    own = {name: said.pop(name) for name in ("template", "think", "max_tokens") if name in said}
    name = template or own.get("template")
    family = named(name) if name is not None else model.template
    if own.get("think") in ("show", "hide") and family.thinking is None:
        del own["think"]  # it is meant for the models that can
    if "sampler_order" in said:
        said["order"] = said.pop("sampler_order")
    return Settings(sampling=said, **own), system


@dataclass
class Speed:
    """Tokens and seconds of the last answer."""

    prompt_tokens: int = 0
    prompt: float = 0.0
    tokens: int = 0
    decode: float = 0.0
    guessed: int = 0
    """Tokens that were guessed ahead, and those of them that came."""
    came: int = 0


class Conversation:
    """Turns on `model`. `save` is called whenever something is to be kept.

    An error in saving does not end a conversation. It stands in `trouble` until a later call of `save`, which
    has to write all that is missing, succeeds.
    """

    def __init__(
        self,
        model: Model,
        snapshots: Snapshots,
        history: History | None = None,
        settings: Settings | None = None,
        seed: int | None = None,
        save: Callable[[], None] = lambda: None,
        drafting: Drafting | None = None,
    ) -> None:
        """`drafting`: what guesses tokens of answers ahead. `seed`: for the next answer; else the random numbers go on where they were. Raises UsageError."""
        self.model = model
        self.history = history or History()
        self.settings = settings or Settings()
        self.speed = Speed()
        self.trouble: OSError | RwkvError | None = None
        self.on_prompt: Progress = lambda done, total: None
        """Called with (bytes read, bytes) while the model reads a message and what its template adds."""
        self._snapshots = snapshots
        self._seed: int | None = None
        self._keep = save
        self._drafting = drafting
        self.configure(self.settings, seed)

    @property
    def template(self) -> Template:
        """How turns are written."""
        from rwkvcli.runtime.templates import named

        name = self.settings.template
        return named(name) if name is not None else self.model.template

    @property
    def usual(self) -> dict[str, Any]:
        """What the sampler is set to where nothing else is said."""
        from rwkvcli.runtime.templates import WAYS

        return self.template.settings(chat=True, think=WAYS[self.settings.think or "off"])

    @property
    def seed(self) -> int | None:
        """That of the next answer; None: its random numbers go on where they were."""
        return self._seed

    @property
    def snapshots(self) -> Snapshots:
        """The states that are kept."""
        return self._snapshots

    def configure(self, settings: Settings, seed: int | None = None) -> None:
        """Use other settings from the next turn on, and if given another seed. Raises UsageError, and changes nothing."""
        from rwkvcli.runtime.decoding import check_limits
        from rwkvcli.runtime.sampling import Sampler, SamplingParams
        from rwkvcli.runtime.templates import WAYS, named

        template = named(settings.template) if settings.template is not None else self.model.template
        if settings.think is not None and settings.think not in THINK:
            raise UsageError(f"no way to think {settings.think!r}", hint=f"one of {', '.join(THINK)}")
        if settings.think is not None:
            template.check_way(settings.think)
        usual = template.settings(chat=True, think=WAYS[settings.think or "off"])
        params = SamplingParams.of(usual, {**settings.sampling, "seed": seed})
        Sampler(params, self.model.tokenizer.vocab_size, self.model.tokenizer)
        check_limits(settings.max_tokens, settings.stop)
        changed = settings != self.settings
        self.settings = settings
        self._seed = seed if seed is not None else self._seed
        if changed:
            self._save()

    def state(self) -> State:
        """The state where the conversation stands; not to be changed."""
        return self._state_after(self.history.head)

    def send(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[Part]:
        """Say `text`, and yield the answer as it comes; the first part, an empty one, comes after the prompt.

        An exception (Ctrl-C in the prompt) leaves everything as it was. `stopped` is asked between tokens;
        an answer that is stopped is kept as far as it came, but for an empty one.
        """
        return self._answer(text, self.history.head, self._seed, stopped)

    def retry(self, seed: int | None, stopped: Callable[[], bool] = lambda: False) -> Iterator[Part]:
        """Answer the last message anew, with `seed` or a random one. Raises UsageError if there is none."""
        last = self._last_message("retry")
        seed = secrets.randbits(32) if seed is None else seed
        return self._answer(last.user, self.history.parent(last), seed, stopped)

    def take_back(self) -> str:
        """Undo the last message and return it, to be changed and sent again. Raises UsageError."""
        last = self._last_message("edit")
        self.history.undo()
        self._save()
        return last.user

    def _last_message(self, what: str) -> Turn:
        last = self.history.head
        if last is None or last.kind != "message":
            raise UsageError(f"there is nothing to {what}: the last turn is no message")
        return last

    def _answer(
        self, text: str, parent: Turn | None, seed: int | None, stopped: Callable[[], bool]
    ) -> Iterator[Part]:
        from rwkvcli.runtime.prefill import feed_ids
        from rwkvcli.runtime.sampling import Sampler, SamplingParams
        from rwkvcli.runtime.speculation import speculation_for
        from rwkvcli.runtime.templates import WAYS
        from rwkvcli.runtime.tokenizer import text_to_bytes

        settings, template, tokenizer = self.settings, self.template, self.model.tokenizer
        system = self.history.system
        think = WAYS[settings.think or "off"]
        params = SamplingParams.of(self.usual, {**settings.sampling, "seed": seed})
        sampler = Sampler(params, tokenizer.vocab_size, tokenizer)
        going_on = self.history.random
        if seed is None and going_on is not None:
            sampler.restore({"seed": going_on[0], "draws": going_on[1]})
        begun = sampler.draws
        opening = template.opening(system) if parent is None else ""
        written = opening + template.message(text, think)
        prompt, nbytes = tokenizer.encode(written), len(text_to_bytes(written))
        if not prompt or (parent is None and template.begin):
            prompt = [tokenizer.eos_id, *prompt]
        state = self._state_after(parent).copy()
        begin = time.perf_counter()
        speculation = speculation_for(self.model, sampler, self._drafting)
        if self._drafting is not None and speculation is not None:
            speculation.read(self._said_before(parent, self._drafting.remembers))
        logits = feed_ids(
            speculation or self.model,
            state,
            prompt,
            lambda fed: self.on_prompt(nbytes * fed // len(prompt), nbytes),
        )
        middle = time.perf_counter()
        answer = Answer(
            self.model,
            state,
            logits,
            template,
            think,
            sampler,
            settings.max_tokens,
            settings.stop,
            stopped,
            speculation,
        )
        yield Part("")
        yield from answer
        guesses = (speculation.drafted, speculation.accepted) if speculation is not None else ()
        self.speed = Speed(len(prompt), middle - begin, answer.tokens, time.perf_counter() - middle, *guesses)
        if answer.finish == "interrupted" and not answer.reply and not answer.thinking:
            return
        turn = Turn(
            id=self.history.next_id(),
            parent=parent.id if parent is not None else None,
            depth=parent.depth + 1 if parent is not None else 1,
            kind="message",
            user=text,
            reply=answer.reply,
            thinking=answer.thinking,
            system=system,
            finish=answer.finish,
            seed=sampler.seed,
            draws=sampler.draws,
            begun=begun,
            tokens_seen=answer.state.tokens_seen,
            ids=array("I", [*prompt, *answer.ids]),
        )
        self._seed = None
        self._commit(turn, answer.state)

    def _said_before(self, turn: Turn | None, count: int) -> list[int]:
        """The last tokens, `count` or so, of the conversation up to `turn`."""
        said: list[int] = []
        for past in self.history.back(turn):
            said[:0] = past.ids[-count:]
            if len(said) >= count:
                break
        return said

    def read(
        self, path: Path, on_progress: Progress | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> Turn:
        """Have the model read a text file as it stands, in bounded memory: a turn of its own.

        `on_progress(done, total)` in bytes. `stopped` is asked now and then; what was read till then is kept.
        Raises SourceNotFound, UsageError (not a text), NotUtf8; everything is then as it was.
        """
        from rwkvcli.services.reading import Reading

        head = self.history.head
        opening = self.template.opening(self.history.system) if head is None else ""
        run = Reading(self.model, self._state_after(head).copy(), path, opening, self.template.begin)
        finish = "stop" if run.run(on_progress, stopped) else "interrupted"
        turn = self._other("read", path, run.state, finish)
        self._commit(turn, run.state)
        return turn

    def load(self, path: Path) -> None:
        """Begin anew with a state from a file; `redo` brings the turns back. Raises as `State.load`."""
        from rwkvcli.runtime.state import State

        state = State.load(path, self.model)
        self.history.restart(None)
        self._commit(self._other("load", path, state), state, keeps_redo=True)

    def _other(self, kind: Any, path: Path, state: State, finish: str = "stop") -> Turn:
        """A turn that is no message."""
        head = self.history.head
        seed, draws = self.history.random or (secrets.randbits(32), 0)
        return Turn(
            id=self.history.next_id(),
            parent=head.id if head is not None else None,
            depth=head.depth + 1 if head is not None else 1,
            kind=kind,
            user=str(path),
            system=self.history.system,
            finish=finish,
            seed=seed,
            draws=draws,
            begun=draws,
            tokens_seen=state.tokens_seen,
        )

    def undo(self, count: int = 1) -> list[Turn]:
        """Go back; the turns that were taken back, the last first."""
        left = self.history.undo(count)
        self._save()
        return left

    def redo(self, count: int = 1) -> list[Turn]:
        """Take back what undo did; the turns that are there again."""
        again = self.history.redo(count)
        self._save()
        return again

    def fork(self, name: str) -> None:
        """Go on in a new branch. Raises UsageError."""
        self.history.fork(name)
        self._save()

    def switch(self, name: str) -> None:
        """Go on in another branch. Raises UsageError."""
        self.history.switch(name)
        self._save()

    def restart(self, system: str | None) -> None:
        """Begin anew, with instructions or without; `redo` brings the turns back."""
        self.history.restart(system)
        self._save()

    def _save(self) -> None:
        try:
            self._keep()
            self.trouble = None
        except (OSError, RwkvError) as error:
            self.trouble = error

    def _commit(self, turn: Turn, state: State, *, keeps_redo: bool = False) -> None:
        self._snapshots.keep(turn, state)
        self.history.add(turn, keeps_redo=keeps_redo)
        self._save()

    def _state_after(self, turn: Turn | None) -> State:
        """The state after `turn` (None: before the first); made again from the nearest one if it is not kept."""
        missing = []
        state = None
        for past in self.history.back(turn):
            state = self._snapshots.find(past)
            if state is not None:
                break
            if not past.replayable:
                raise FormatError(f"the state after {past.user} is lost", hint="/undo goes back to before it")
            missing.append(past)
        if missing:
            state = state.copy() if state is not None else self.model.new_state()
            for past in reversed(missing):
                self.model.evaluate(past.ids.tolist(), state)
            self._snapshots.keep(missing[0], state)
        return state if state is not None else self.model.new_state()
