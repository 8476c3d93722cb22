"""Continue a prompt with a model: what `rwkv generate` does, without the printing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkvcli.errors import NotUtf8, UsageError
from rwkvcli.runtime.thoughts import CLOSE, Part, ThoughtSplitter

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Logits
    from rwkvcli.runtime.constraint import Constraint
    from rwkvcli.runtime.decoding import Continuation, Finish
    from rwkvcli.runtime.drafting import Drafting
    from rwkvcli.runtime.grammar import GrammarMatcher
    from rwkvcli.runtime.judged import Judged
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.speculation import Speculation
    from rwkvcli.runtime.state import State
    from rwkvcli.runtime.templates import Template


@dataclass(frozen=True)
class Settings:
    """How to continue a text.

    `sampling` holds settings of `rwkvcli.runtime.sampling.SamplingParams` by name; what is None or missing is as
    usual for the model's family. `chat`: the text is a person's message, written as the family expects it, and
    what comes is the answer, without white space around it. `system` goes before it. `template` names a family
    in place of the model's own. `think`: how an answer is thought over, one of `rwkvcli.runtime.templates.WAYS`; with
    `only` the text ends where the thoughts do. None: the plain form, and the answer as it comes.
    """

    max_tokens: int = 512
    """-1: until the model ends the text."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    chat: bool = False
    system: str | None = None
    template: str | None = None
    think: str | None = None
    logprobs: int | None = None
    """How many of the likeliest tokens are told at every token of the text; None: nothing is told of them."""
    constraint: Constraint | None = None
    """What the text must conform to: of an answer, the whole of it after any thoughts. What the family's answers stop at
    does not end it then."""
    logprobs_to_end: bool = False
    """Whether `logprobs` tell of the token that ends a text, too, which is no part of it."""


@dataclass
class Timings:
    """Seconds. `decode` is the time after the prompt, sampling included."""

    load: float = 0.0
    prompt: float = 0.0
    decode: float = 0.0


class Read(NamedTuple):
    """A prompt that was read: the state after it, float32 logits [V] of its last token, how many it has, and what the model made
    of them where that was asked for."""

    state: State
    logits: Logits
    tokens: int
    judged: Judged | None = None


@dataclass
class Generation:
    """A text in the making: iterate over it for its pieces, or over `parts()` for thoughts as well; the rest is final
    at the end.

    Making one raises UsageError for settings out of range, and FormatError for a model of an unknown family;
    nothing is evaluated before the first piece is asked for. `seed` is the one in use, so that the text can
    be made again.
    """

    model: Model
    text_given: bytes | None
    """None: go on where `state` was left."""
    settings: Settings
    state: State | None = None
    """What the text continues; it is advanced. None: nothing."""
    keep: bool = False
    """Whether `settle` will be called: half a character, and what may become a stop string, are then held back
    at the end, to come first when a next run goes on."""
    read_by: Callable[[], Read] | None = None
    """Reads the prompt, of which nothing is given then: neither `text_given` nor `state`."""
    drafting: Drafting | None = None
    """What guesses tokens ahead of those that `feed` feeds; the text is the same without."""
    before: Sequence[int] = ()
    """Tokens that the state has seen, for those guesses."""
    check: Callable[[], None] = lambda: None
    """Called between calls of the engine; what it raises ends the run there."""
    on_prompt: Callable[[int, int], None] = lambda done, total: None
    """Called with (bytes of the prompt that were fed, all of them)."""
    begun: bool = False
    """Whether anything was evaluated, or is about to be."""
    prompt_tokens: int = 0
    prompt_left: int = 0
    """Bytes of the prompt that were not fed: of a run that was stopped in it."""
    completion_tokens: int = 0
    thinking_tokens: int = 0
    """Those of them that are thoughts, or end them: the first."""
    finish_reason: str = "interrupted"
    """`stop`, `length`, or what ended it from outside: `interrupted`, `timeout`."""
    text: str = ""
    thinking: str = ""
    """Thoughts before the text, if `think` of the settings tells them from it."""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    """Of every token that was drawn, if wanted: id, text, logprob (nats, by the model alone, before anything that the
    sampler does), and the likeliest in its place, `top`, in the same form."""
    judged: Judged | None = None
    """The same of the prompt's tokens, if who read them tells."""
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        from rwkvcli.runtime.sampling import Sampler, SamplingParams
        from rwkvcli.runtime.streaming import TextStream
        from rwkvcli.runtime.templates import WAYS, named

        settings, tokenizer = self.settings, self.model.tokenizer
        self.template = named(settings.template) if settings.template is not None else self.model.template
        if settings.think is not None:
            self.template.check_way(settings.think)
        self._think = WAYS[settings.think or "off"]
        defaults = self.template.settings(settings.chat, self._think)
        params = SamplingParams.of(defaults, settings.sampling)
        self._sampler = Sampler(params, tokenizer.vocab_size, tokenizer, self._grammar())
        self._stream = TextStream(self._stops())
        self._splitter = self._answer_splitter()
        self._logits: Logits | None = None
        self._run: Continuation | None = None
        self._finish: Finish | None = None
        self._before: State | None = None
        self._speculation: Speculation | None = None
        self.told_before: bool | None = None
        """Of a text that is gone on with: whether the last of it that was told is a thought. None: nothing was told."""
        self._opened = 0.0
        if self.state is None and self.read_by is None:
            self.state = self.model.new_state()
        if not self.text_given and self.state is not None and self.state.tokens_seen:
            self.text_given = None
        self._pause = self.state.pause if self.state is not None else None
        self._held = self._go_on() if self.text_given is None else []
        if self._pause is not None and self._pause.sampler is not None:
            self._sampler.restore(self._draws(self._pause.sampler, params.seed))
        self.seed = self._sampler.seed
        self.prompt = self._prompt() if self.read_by is None else b""
        """The text that the model sees."""

    def __iter__(self) -> Iterator[str]:
        """Evaluate the prompt, then yield pieces of text (never half a character) as they come."""
        return (part.text for part in self.parts() if not part.thinking)

    def parts(self) -> Iterator[Part]:
        """The same, thoughts included."""
        self.read()
        assert self.state is not None and self._run is not None
        run = self._run
        yield from self._held
        while not self.done:
            self.check()
            if run.unfed and not run.full:
                self.feed()
            yield from self.draw()

    def read(self) -> None:
        """Evaluate the prompt. What a run before this one held back is in `text` then."""
        begin = time.perf_counter()
        self._speculate()
        try:
            if self.read_by is not None:
                self.state, self._logits, self.prompt_tokens, self.judged = self.read_by()
            elif self.text_given is not None:
                self._feed()
        finally:
            self.timings.prompt = time.perf_counter() - begin
        self._open()

    def read_as(self, other: Generation) -> None:
        """Take over what `other`, with the same prompt, has read and drawn nothing from yet."""
        self._speculate()
        self.state, self._logits = other.whole_state().copy(), other._logits
        self.prompt_tokens, self.timings.prompt = other.prompt_tokens, other.timings.prompt
        self._open()

    @property
    def logits(self) -> Logits | None:
        """Float32 [V] of the last token that the state has seen, after `read`. None: the text that was to be gone on with has
        ended."""
        return self._logits

    @property
    def draft(self) -> dict[str, int]:
        """How many tokens were guessed, and how many of those came."""
        made = self._speculation
        return {"guessed": made.drafted if made else 0, "came": made.accepted if made else 0}

    @property
    def fed(self) -> tuple[int, ...]:
        """The tokens of the text that `state` has seen."""
        return self._run.fed if self._run is not None else ()

    @property
    def done(self) -> bool:
        """Whether the text has ended."""
        return self._finish is not None

    @property
    def unfed(self) -> tuple[int, ...]:
        """The token that was drawn last, until `was_fed`."""
        return self._run.unfed if self._run is not None else ()

    @property
    def full(self) -> bool:
        """Whether no more tokens will be drawn: the unfed one need not be fed."""
        return self._run is not None and self._run.full

    def feed(self) -> None:
        """Feed the unfed token. `state` may not have seen it afterwards: `whole_state` has."""
        assert self._run is not None and self.state is not None
        feeder = self._speculation or self.model
        self._logits = feeder.evaluate(self._run.unfed, self.state)
        self._run.was_fed()

    def was_fed(self, logits: Logits) -> None:
        """The unfed token was fed to `whole_state` by somebody else, and gave float32 `logits` [V]."""
        assert self._run is not None
        if self._speculation is not None:
            self._speculation.was_fed(self._run.unfed)
        self._run.was_fed()
        self._logits = logits

    def draw(self) -> list[Part]:
        """Draw the next token, or end the text. Returns what can be shown then; it is in `text` and `thinking` too."""
        run, stream = self._run, self._stream
        assert run is not None and self.state is not None
        if self._logits is None or stream.matched is not None:  # the text that is gone on with has ended
            piece = run.end("stop")
        elif run.full:
            piece = run.end(keep=self.keep)
        else:
            settled = stream.settled
            thinks = self._splitter is not None and self._splitter.thinks
            piece = run.draw(self._logits)
            token = run.drawn if self.settings.logprobs_to_end else piece.token
            if self.settings.logprobs is not None and token is not None:
                self.logprobs.append(self._judged(self._logits, token, self.settings.logprobs))
            if self.keep and settled:
                # the token may begin a stop string, of which the state is to know nothing
                unsure = stream.matched is not None or not stream.settled
                self._before = self.whole_state().copy() if unsure else None
            self.completion_tokens += 1
            self.thinking_tokens += thinks
        finish = piece.finish
        if finish is not None:
            self._finish, self.finish_reason, self.completion_tokens = finish, finish.reason, finish.tokens
            self.thinking_tokens = min(self.thinking_tokens, self.completion_tokens)
        goes_on = finish is None or (self.keep and finish.reason == "length")
        parts = self._tell(piece.text, ended=not goes_on)
        self.timings.decode = time.perf_counter() - self._opened
        return parts

    def advance(self) -> list[Part]:
        """Draw until there is a token to feed, or the text has ended."""
        parts = self.draw()
        if self.full and not self.done:
            parts += self.draw()
        return parts

    def settle(self) -> State:
        """The state after all of the text, with what a next run needs to go on from here; also after a run that
        was stopped. A stop string is no part of the text."""
        from rwkvcli.runtime.state_file import Pause

        state, run, finish = self.whole_state(), self._run, self._finish
        if run is None:  # stopped in the prompt
            return state
        sampler, ended = self._sampler.state(), finish is not None and finish.reason == "stop"
        if finish is not None and finish.stop is not None and self._before is not None:
            state, self._logits = self._before, None
            if rest := self._ids_of(self._stream.before_stop()):
                self.model.evaluate(rest, state)
        elif run.unfed:
            self._logits = self.model.evaluate(list(run.unfed), state)
            run.was_fed()
        text = self._stream.state()
        if self._splitter is not None:
            text["answer"] = self._splitter.state()
        state.pause = Pause(self._logits, sampler, text, ended)
        self.state = state
        return state

    def _speculate(self) -> None:
        from rwkvcli.runtime.speculation import speculation_for

        self._speculation = speculation_for(self.model, self._sampler, self.drafting)
        if self._speculation is not None and self.drafting is not None:
            self._speculation.read(self.before[-self.drafting.remembers :])

    def whole_state(self) -> State:
        """The state, which has seen all that was fed."""
        assert self.state is not None
        if self._speculation is not None:
            self._speculation.settle(self.state)
        return self.state

    def _ids_of(self, data: bytes) -> list[int]:
        """Ids of text that the model wrote: as it was shown, where the vocabulary takes valid text only."""
        tokenizer = self.model.tokenizer
        try:
            return tokenizer.encode_bytes(data)
        except NotUtf8:
            return tokenizer.encode(data.decode("utf-8", "replace"))

    def save(self, path: Path) -> State | None:
        """Write the settled state to `path`. None, and nothing is written: no token was fed."""
        state = self.settle()
        if not state.tokens_seen:
            return None
        state.save(path)
        return state

    def _feed(self) -> None:
        from rwkvcli.runtime.long_text import in_pieces
        from rwkvcli.runtime.prefill import feed

        assert self.state is not None
        tokenizer, total = self.model.tokenizer, len(self.prompt)
        new = not self.state.tokens_seen
        # the end of one text is the beginning of the next: an empty prompt begins with it
        begins = new and (not self.prompt or (self.settings.chat and self.template.begin))

        def fed(tokens: int, done: int) -> None:
            self.prompt_tokens = tokens
            self.prompt_left = total - done
            self.on_prompt(done, total)
            if done < total:
                self.check()

        self.begun, self.prompt_left = True, total
        self.check()
        before = [tokenizer.eos_id] if begins else []
        self.prompt_tokens = len(before)
        self._logits = feed(
            self._speculation or self.model, tokenizer, self.state, in_pieces(self.prompt), before, fed
        )

    def _open(self) -> None:
        from rwkvcli.runtime.decoding import Continuation

        tokenizer, limit = self.model.tokenizer, self.settings.max_tokens
        self._run, self.begun = Continuation(tokenizer, self._sampler, limit, self._stream), True
        self._note(self._held)
        self._opened = time.perf_counter()

    def _stops(self) -> tuple[str, ...]:
        """What ends the text."""
        own = self.template.stop if self.settings.chat and self.settings.constraint is None else ()
        return (*self.settings.stop, *own, *([CLOSE] if self.settings.think == "only" else []))

    def _grammar(self) -> GrammarMatcher | None:
        """What follows the tokens, if the text has to conform to something."""
        if self.settings.constraint is None:
            return None
        from rwkvcli.services.constraining import matcher_of

        return matcher_of(self.settings, self.template, self.model.tokenizer)

    def _answer_splitter(self) -> ThoughtSplitter | None:
        """What makes an answer of what the model writes. None: nothing is made of it."""
        if not self.settings.chat:
            return None
        constraint, lead = self.settings.constraint, self.template.lead_of(self._think)
        white = constraint.white if constraint is not None else None
        return ThoughtSplitter(self._think == "on", lead, looks=False, white=white)

    def _tell(self, text: str, *, ended: bool = False) -> list[Part]:
        """The same, noted; when the text `ended`, with all that was held back."""
        parts = self._parts(text)
        if ended and self._splitter is not None:
            parts += self._splitter.flush()
        self._note(parts)
        return parts

    def _parts(self, text: str) -> list[Part]:
        """What can be told of the text now that `text` came."""
        if self._splitter is not None:
            return self._splitter.push(text)
        return [Part(text)] if text else []

    def _judged(self, logits: Logits, token: int, count: int) -> dict[str, Any]:
        """One of `logprobs`."""
        from rwkvcli.runtime.scoring import likeliest

        tokenizer = self.model.tokenizer

        def said(token: int, logprob: float) -> dict[str, Any]:
            text = tokenizer.decode_bytes((token,)).decode("utf-8", "replace")
            return {"id": token, "text": text, "logprob": round(logprob, 6)}

        own, others = likeliest(logits[: tokenizer.vocab_size], token, count)
        return {**said(token, own), "top": [said(*other) for other in others]}

    def _note(self, parts: list[Part]) -> None:
        for part in parts:
            if part.thinking:
                self.thinking += part.text
            else:
                self.text += part.text

    def _go_on(self) -> list[Part]:
        """Take over where the state was left: the text that was held back then, and can be shown now."""
        from rwkvcli.runtime.resuming import check_beginning, held_answer

        pause = self._pause
        if pause is None or (pause.logits is None and not pause.ended):
            raise UsageError(
                "the state was not left inside a text: it can only be continued by giving some",
                hint="give PROMPT, or pipe text in",
            )
        self._logits = None if pause.ended else pause.logits
        if pause.text is None:
            return []
        if self.settings.constraint is not None:
            own = {"answer": self._splitter.state()} if self._splitter is not None else {}
            check_beginning(pause, {**self._stream.state(), **own})
        before, answer = held_answer(pause), pause.text.get("answer", {})
        if answer and self._splitter is not None:
            self._splitter.restore(answer)
            self.told_before, before = self._splitter.told, ""
        text = before + self._stream.restore(pause.text)
        return self._parts(text)

    def _draws(self, saved: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
        """The sampler's state to go on with: another seed begins its own draws, a new text its own counts."""
        from rwkvcli.runtime.resuming import draws

        return draws(saved if self.text_given is None else {k: saved.get(k) for k in ("seed", "draws")}, seed)

    def _prompt(self) -> bytes:
        text, settings = self.text_given, self.settings
        if text is None or not settings.chat:
            return text or b""
        from rwkvcli.runtime.tokenizer import text_to_bytes

        assert self.state is not None
        message = text.decode("utf-8", "surrogateescape")  # bytes that are not UTF-8 come through
        turn = self.template.message(message, self._think)
        return text_to_bytes(seam(self.template, self.state) + self.template.opening(settings.system) + turn)

    def report(self) -> dict[str, Any]:
        """The JSON form: text, finish_reason, seed, usage, timings (seconds and tokens/s), model; and where they are
        wanted, thinking and logprobs."""
        prompt, decode = self.timings.prompt, self.timings.decode
        thinking = {"thinking": self.thinking} if self.settings.think in ("show", "only") else {}
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens},
            "timings": {
                "load_s": round(self.timings.load, 6),
                "prompt_s": round(prompt, 6),
                "decode_s": round(decode, 6),
                "prompt_per_s": round(self.prompt_tokens / prompt, 2) if prompt else None,
                "decode_per_s": round(self.completion_tokens / decode, 2) if decode else None,
            },
            "model": str(self.model.file.path),
            **({"draft": self.draft} if self.drafting is not None else {}),
            **thinking,
            **({"logprobs": self.logprobs} if self.settings.logprobs is not None else {}),
        }


def seam(template: Template, state: State) -> str:
    """What stands between what `state` has seen and a new message."""
    if not state.tokens_seen:
        return ""
    text = state.pause.text if state.pause is not None else None
    return template.tail if text is not None and "answer" in text else "\n\n"
