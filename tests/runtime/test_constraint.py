"""Constraints: what is refused, which tokens are let through (against brute force), and texts of random logits."""

from __future__ import annotations

import json
import math
import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np
import pytest
from vocabularies import byte_level_json, word_level_json

from rwkvcli.errors import MissingExtra, OutOfMemory, TimedOut, UsageError
from rwkvcli.runtime.constraint import Constraint
from rwkvcli.runtime.sampling import Sampler, SamplingParams
from rwkvcli.runtime.tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer, WorldTokenizer

pytest.importorskip("llguidance")

from rwkvcli.runtime import grammar as grammars
from rwkvcli.runtime.grammar import GrammarMatcher

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 3},
        "ok": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}


def is_person(text: str) -> bool:
    """Whether a text conforms to PERSON."""
    said = json.loads(text)
    return (
        set(said) == {"name", "age", "tags", "ok"}
        and isinstance(said["name"], str) and len(said["name"]) <= 8
        and type(said["age"]) is int and 0 <= said["age"] <= 150
        and isinstance(said["tags"], list) and len(said["tags"]) <= 3 and set(said["tags"]) <= {"a", "bc"}
        and (said["ok"] is None or isinstance(said["ok"], bool))
    )  # fmt: skip


class Small:
    """A vocabulary whose ids are known: the end of a text in the middle, an id without bytes, one text twice."""

    tokens = (
        b"a",
        b"b",
        b"ab",
        b"",
        b"",
        b"ba",
        b"c",
        b" ",
        b" a",
        b"bc",
        b"abc",
        b"b",
        b"\n",
        b"\xc3",
        b"\xa9",
        b"\xff",
        b"\0",
    )
    vocab_size = len(tokens)
    eos_id = 3
    has_own_bytes = True

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.tokens[token] for token in ids)

    def encode_bytes(self, data: bytes) -> list[int]:
        try:
            return [self.tokens.index(bytes([byte])) for byte in data]
        except ValueError:
            raise UsageError("not in this vocabulary") from None


SMALL: Any = Small()


def let_through(matcher: GrammarMatcher, size: int) -> set[int]:
    """The ids that may come now."""
    logits = memoryview(bytearray(4 * size)).cast("f")
    matcher.strike(logits)
    assert set(logits) <= {0.0, -math.inf}
    return {token for token, logit in enumerate(logits) if logit == 0}


def expected(language: set[bytes], begin: bytes, tokenizer: Tokenizer) -> set[int]:
    """The same by trying them all."""
    found = {tokenizer.eos_id} if begin in language else set()
    for token in range(tokenizer.vocab_size):
        more = tokenizer.decode_bytes((token,))
        if more and token != tokenizer.eos_id and any(text.startswith(begin + more) for text in language):
            found.add(token)
    return found


def compare(make: Callable[[Tokenizer], GrammarMatcher], language: set[bytes], tokenizer: Tokenizer) -> None:
    """Go through all sequences of tokens that may come: they make the texts of the language, and no other.

    Where llguidance sees that a text has to come, it lets its usual tokens through alone, so of several sequences for a
    text some may be missing; of single bytes none is.
    """
    made: set[bytes] = set()
    sequences: list[list[int]] = [[]]
    while sequences:
        ids = sequences.pop()
        begin = tokenizer.decode_bytes(ids)
        matcher = make(tokenizer)
        for token in ids:
            assert not matcher.complete
            matcher.push(token)
        could = expected(language, begin, tokenizer)
        if matcher.complete:
            assert could == {tokenizer.eos_id}
            made.add(begin)
            continue
        may = let_through(matcher, tokenizer.vocab_size)
        assert may == could if isinstance(tokenizer, ByteTokenizer) else may <= could, begin
        assert (tokenizer.eos_id in may) == (begin in language)
        if begin in language:
            made.add(begin)
        sequences += [[*ids, token] for token in may if token != tokenizer.eos_id]
    assert made == language


def matching(pattern: str, alphabet: str, longest: int) -> set[bytes]:
    """The texts over `alphabet`, of at most `longest` characters, that match as Python sees it."""
    texts = [""]
    for text in texts:
        if len(text) < longest:
            texts += [text + char for char in alphabet]
    return {text.encode() for text in texts if re.fullmatch(pattern, text)}


@pytest.mark.parametrize(
    ("pattern", "alphabet", "longest"),
    [("(ab|abc|ba)c?", "abc", 5), ("a{0,2}b?", "ab", 4), (" ?(a|ba)\n?", "ab \n", 5), ("[aé]{1,2}c", "acé", 4), ("^ab$", "ab", 3)],
)  # fmt: skip
def test_a_regular_expression_against_brute_force(pattern: str, alphabet: str, longest: int) -> None:
    language = matching(pattern, alphabet, longest)
    compare(Constraint.of_regex(pattern).matcher, language, SMALL)


def test_choices_and_grammars_against_brute_force() -> None:
    texts = ["a", "ab", "abc", "bca", " a", "\n"]
    compare(Constraint.of_choices(texts).matcher, {text.encode() for text in texts}, SMALL)
    grammar = 'start: "a" x "b"?\nx: "b" | "c" x2\nx2: /[bc]{1,2}/'
    language = matching("a(b|c[bc]{1,2})b?", "abc", 5)
    compare(Constraint.of_grammar(grammar).matcher, language, SMALL)
    for tokenizer in (ByteTokenizer(), JsonTokenizer(byte_level_json())):
        texts = ["né", "née", "The cat", "The", "    x", 'a "quoted" \\ word', "\x01\x7f", "你好 😀"]
        language = {text.encode() for text in texts}
        compare(Constraint.of_choices(texts).matcher, language, tokenizer)


def test_an_answer_against_brute_force() -> None:
    texts = {b"ab", b"b", b"abc"}
    lead = {b"", b" ", b"\n", b"  ", b" \n", b"\n ", b"\n\n"}
    yes = Constraint.of_choices(["ab", "b", "abc"])
    assert yes.white == " \n"
    answers = {white + text for white in lead for text in texts}
    compare(lambda t: yes.answer_matcher(t, False, ""), answers, SMALL)
    compare(lambda t: yes.answer_matcher(t, False, "c"), {b"c" + answer for answer in answers}, SMALL)
    spaced = Constraint.of_choices([" a", "b"])  # its own space is part of it: no other
    assert spaced.white == ""
    compare(lambda t: spaced.answer_matcher(t, False, ""), {b" a", b"b"}, SMALL)
    compare(lambda t: spaced.answer_matcher(t, False, "c"), {b"c a", b"cb"}, SMALL)


def test_thoughts_are_free_until_they_end() -> None:
    world = WorldTokenizer()
    matcher = Constraint.of_choices(["yes", "no"]).answer_matcher(world, True, ">")
    text = ">\nIs it </thin, {yes}? User:\n\nno </think>\n\n"
    for token in world.encode(text):
        may = let_through(matcher, world.vocab_size)
        assert token in may and world.eos_id not in may
        matcher.push(token)
    assert {world.decode((token,)) for token in let_through(matcher, world.vocab_size)} == {
        text[:size] for text in ("yes", "no") for size in range(1, 4) if text[:size]
    }
    # the end of the thoughts in the middle of a token
    matcher = Constraint.of_choices([".", "no"]).answer_matcher(world, True, ">")
    for token in [*world.encode(">so</think")]:
        matcher.push(token)
    may = {world.decode((token,)) for token in let_through(matcher, world.vocab_size)}
    assert {text for text in may if text.startswith(">")} == {">", ">."}


@pytest.mark.parametrize("tokenizer", [WorldTokenizer(), ByteTokenizer(), JsonTokenizer(byte_level_json())])
def test_texts_of_random_logits_conform(tokenizer: Tokenizer) -> None:
    person = Constraint.of_schema(PERSON)
    word = Constraint.of_regex(r"[A-Z][a-zé]{2,9}( [0-9]{1,3}){1,2}[.!]")
    rows = tokenizer.vocab_size
    for seed in range(30):
        random = np.random.default_rng(seed)
        for constraint in (person, word):
            sampler = Sampler(SamplingParams(seed=seed), rows, tokenizer, constraint.matcher(tokenizer))
            ids: list[int] = []
            while not sampler.complete:
                token = sampler(random.standard_normal(rows, np.float32) * 5)
                if token == tokenizer.eos_id:
                    break
                ids.append(token)
                assert len(ids) < 1000
            text = tokenizer.decode_bytes(ids).decode("utf-8")
            assert (
                is_person(text)
                if constraint is person
                else re.fullmatch("[A-Z][a-zé]{2,9}( [0-9]{1,3}){1,2}[.!]", text)
            )


def test_the_mask_comes_before_the_cuts() -> None:
    """Top-k 1 of what may come, not nothing of it; and the model's logits stay as they are."""
    logits = np.arange(256, dtype=np.float32)
    for params in (
        SamplingParams(temperature=0),
        SamplingParams(top_k=1),
        SamplingParams(top_p=1e-9),
        SamplingParams(min_p=1),
    ):
        sampler = Sampler(
            params, 256, ByteTokenizer(), Constraint.of_regex("[a-c]{2}").matcher(ByteTokenizer())
        )
        assert [sampler(logits), sampler(logits), sampler.complete] == [ord("c"), ord("c"), True]
    assert logits.tolist() == list(range(256))


def test_bans_and_what_may_come_are_both_kept_to() -> None:
    matcher = Constraint.of_choices(["cab", "cbb"]).matcher(ByteTokenizer())
    params = SamplingParams(temperature=0, banned_strings=("ca", "cb"))
    sampler, logits = Sampler(params, 256, ByteTokenizer(), matcher), np.zeros(256, np.float32)
    assert sampler(logits) == ord("c")
    with pytest.raises(UsageError, match=r"^no token is left to choose: all are banned$"):
        sampler(logits)


def test_a_byte_that_a_vocabulary_lacks() -> None:
    sampler = Sampler(
        SamplingParams(), 256, ByteTokenizer(), Constraint.of_regex("\\x00").matcher(ByteTokenizer())
    )
    with pytest.raises(
        UsageError, match=r"^the grammar cannot go on here with any token of this model's vocabulary$"
    ):
        sampler(np.zeros(256, np.float32))
    world = WorldTokenizer()
    assert let_through(Constraint.of_regex("\\x00").matcher(world), world.vocab_size) == {1}


def test_tokens_without_bytes_never_come() -> None:
    for rule in ("start: <[4]>", "start: <[3-5]>"):
        matcher = Constraint.of_grammar(rule).matcher(SMALL)
        if rule == "start: <[4]>":
            with pytest.raises(UsageError, match="cannot go on here"):
                let_through(matcher, SMALL.vocab_size)
        else:
            assert let_through(matcher, SMALL.vocab_size) == {5}
    with pytest.raises(
        UsageError, match=r"^the grammar does not fit this model's vocabulary: line 1, column 8: token range"
    ):
        Constraint.of_grammar("start: <[300]>").matcher(SMALL)


def test_a_vocabulary_whose_tokens_depend_on_neighbours() -> None:
    with pytest.raises(UsageError, match=r"the text of this model's tokens depends on neighbours$"):
        Constraint.of_choices(["a"]).matcher(JsonTokenizer(word_level_json()))


def test_a_matcher_is_told_of_a_text_again() -> None:
    make = Constraint.of_regex("a(b|c)*").matcher
    first, second = make(SMALL), make(SMALL)
    for token in SMALL.encode_bytes(b"abcb"):
        first.push(token)
    second.resume(first.ids)
    assert second.ids == first.ids == [0, 1, 6, 1]
    assert let_through(first, SMALL.vocab_size) == let_through(second, SMALL.vocab_size)
    first.push(SMALL.eos_id)
    assert first.ids == second.ids
    with pytest.raises(
        UsageError, match="the text that the state was left in does not fit this schema or grammar"
    ):
        make(SMALL).resume([0, 1, 7])
    done = Constraint.of_choices(["ab"]).matcher(SMALL)
    done.resume([2])
    assert done.complete


def test_a_matcher_that_gives_up_says_so() -> None:
    grammar = (
        "start: "
        + " ".join(f"x{i}?" for i in range(4000))
        + "\n"
        + "".join(f'x{i}: "a" "b{i}"\n' for i in range(4000))
    )
    matcher = Constraint.of_regex("(a?){0,2000}b").matcher(SMALL)
    with pytest.raises(UsageError, match=r"^llguidance gave up in the middle of the text: .+") as caught:
        while True:
            let_through(matcher, SMALL.vocab_size)
            matcher.push(0)
    assert caught.value.hint == "a simpler schema or grammar may do"
    assert grammar


REFUSED: list[tuple[Callable[[Any], Constraint], Any, str]] = [
    (Constraint.of_schema, "{", "the schema is not JSON: line 1, column 2: expecting property name enclosed in double quotes"),
    (Constraint.of_schema, "[1]", "the schema is no JSON object"),
    (Constraint.of_schema, '{"maximum": NaN}', "the schema is not JSON: NaN is no number of JSON"),
    (Constraint.of_schema, {"maximum": math.inf}, "the schema is not JSON: Out of range float values"),
    (Constraint.of_schema, {"enum": {1}}, "the schema is not JSON: Object of type set"),
    (Constraint.of_schema, 3, "a schema is a dictionary or JSON text, not int"),
    (Constraint.of_schema, '{"type": "foo"}', "the schema cannot be used: invalid type: foo"),
    (Constraint.of_schema, '{"uniqueItems": true}', 'the schema cannot be used: unimplemented keys: ["uniqueItems"]'),
    (Constraint.of_schema, '{"enum": []}', "the schema cannot be used: unsatisfiable schema: anyOf is empty"),
    (Constraint.of_schema, '{"pattern": "(", "type": "string"}', "the schema cannot be used: unclosed group"),
    (Constraint.of_schema, '{"$ref": "#/a"}', "the schema cannot be used: pointer '/a' does not exist"),
    (Constraint.of_schema, '{"const": "\\ud800"}', "the schema cannot be used: "),
    (Constraint.of_schema, '{"x-guidance": 3}', "x-guidance of the schema is not an object"),
    (Constraint.of_schema, '{"a": "' + "x" * 2**18 + '"}', "the schema cannot be used: larger than 256 KB"),
    (Constraint.of_schema, {"const": "\x01" * 2**17}, "the schema cannot be used: larger than 256 KB"),
    (Constraint.of_regex, "(", "the regular expression cannot be used: unclosed group"),
    (Constraint.of_regex, "(?=a)", "the regular expression cannot be used: look-around, including look-ahead and"),
    (Constraint.of_regex, r"[^\s\S]", "the regular expression cannot be used: no text conforms to it"),
    (Constraint.of_regex, "\udc80", "the regular expression cannot be used: not valid UTF-8"),
    (Constraint.of_regex, "a" * 20000, "the regular expression cannot be used: larger than 16 KB"),
    (Constraint.of_regex, 3, "regex takes a string, not 3"),
    (Constraint.of_choices, [], "there are no choices"),
    (Constraint.of_choices, ["a", ""], "a choice is empty"),
    (Constraint.of_choices, "abc", "choices takes a list of strings, not 'abc'"),
    (Constraint.of_choices, [3], "choices takes a list of strings, not 3"),
    (Constraint.of_choices, [f"number {i}" for i in range(30000)], "the choices cannot be used: larger than 256 KB"),
    (Constraint.of_grammar, "", "the grammar cannot be used: no start rule found"),
    (Constraint.of_grammar, 'start: "a" |\n\nfoo: bar\n   ]', "the grammar cannot be used: line 4, column 4: expecting rule"),
    (Constraint.of_grammar, "start: start", "the grammar cannot be used: no text conforms to it"),
    (Constraint.of_grammar, "start: <|x|>", "the grammar cannot be used: line 1, column 8: unknown special token"),
    (Constraint.of_grammar, 'root ::= "a"', "the grammar cannot be used: line 1, column 7: expected token"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "given", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_is_refused(
    make: Callable[[Any], Constraint], given: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        make(given)
    assert (
        str(caught.value).startswith(message)
        and "\n" not in str(caught.value)
        and len(str(caught.value)) < 260
    )
    assert capfd.readouterr() == ("", "")


def test_a_schema_that_is_nested_too_deeply() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(2000)  # other packages raise it
    try:
        with pytest.raises(UsageError, match=r"^the schema is nested too deeply$"):
            Constraint.of_schema('{"a": ' * 2000 + "1" + "}" * 2000)
    finally:
        sys.setrecursionlimit(before)


def test_gbnf_is_told_how_to_become_lark() -> None:
    with pytest.raises(UsageError) as caught:
        Constraint.of_grammar('# a\nroot ::= [a-z]+ "x"')
    assert caught.value.hint == "that is GBNF: `python -m llguidance.gbnf_to_lark FILE.gbnf` writes FILE.lark"


def test_one_of_several() -> None:
    assert Constraint.of({"schema": None, "seed": 3}) is None
    assert Constraint.of({"regex": "a"}) == Constraint.of_regex("a")
    assert Constraint.of({"choices": ("a", "b")}) == Constraint.of_choices(["a", "b", "a"])
    assert Constraint.of_schema(json.dumps(PERSON)) == Constraint.of_schema(PERSON)
    with pytest.raises(UsageError, match=r"^schema and grammar do not go together$"):
        Constraint.of({"schema": {}, "grammar": 'start: "a"'})


def test_white_space_in_json_has_an_end() -> None:
    matcher = Constraint.of_schema({"type": "array", "items": {"type": "null"}}).matcher(ByteTokenizer())
    for byte in b"[\n" + 32 * b" ":
        assert byte in let_through(matcher, 256)
        matcher.push(byte)
    assert let_through(matcher, 256) == set(b"n]")
    own = {"type": "array", "x-guidance": {"whitespace_flexible": False, "whitespace_pattern": None}}
    matcher = Constraint.of_schema(own).matcher(ByteTokenizer())
    matcher.push(ord("["))
    assert not let_through(matcher, 256) & set(b" \n")


def test_long_chains_of_rules_do_not_end_the_program() -> None:
    rules = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(9000)) + 'r9000: "x"\n'
    matcher = Constraint.of_grammar(rules).matcher(ByteTokenizer())
    assert let_through(matcher, 256) == {ord("x")}
    chain: dict[str, Any] = {
        f"d{i}": {"items": {"$ref": f"#/d{i + 1}"}, "type": "array"} for i in range(2000)
    }
    matcher = Constraint.of_schema({**chain, "d2000": {}, "$ref": "#/d0"}).matcher(ByteTokenizer())
    assert let_through(matcher, 256) == {ord("[")}


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for make, given in (
        (Constraint.of_schema, {}),
        (Constraint.of_regex, "a"),
        (Constraint.of_choices, ["a"]),
        (Constraint.of_grammar, ""),
    ):
        with pytest.raises(
            MissingExtra, match=r' needs packages that are not installed: pip install "rwkvcli\[grammar\]"$'
        ):
            make(given)  # type: ignore[operator]


def test_what_signals_raise_is_no_word_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that is over, Ctrl-C and SIGTERM: between calls, and in what the library calls to encode a text."""
    world = WorldTokenizer()
    yes = Constraint.of_choices(["hello there, world"])
    matcher = yes.matcher(world)
    monkeypatch.setattr(grammars, "_bits", lambda *_: throw(TimedOut("not finished after 1 s")))
    with pytest.raises(TimedOut, match=r"^not finished after 1 s$"):
        let_through(matcher, world.vocab_size)
    monkeypatch.undo()
    for raised in (KeyboardInterrupt(), SystemExit(143)):
        matcher = yes.matcher(world)
        with monkeypatch.context() as patch:
            patch.setattr(grammars._Encoder, "__call__", lambda *_, raised=raised: throw(raised))
            with pytest.raises(type(raised)) as caught:
                let_through(matcher, world.vocab_size)
        assert caught.value.args == raised.args


def test_no_memory_for_a_grammar_is_no_fault_of_the_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OutOfMemory, match=r"^there is no memory for reading the grammar$"):
        Constraint.of_choices(["a"])


def throw(error: BaseException) -> NoReturn:
    raise error
