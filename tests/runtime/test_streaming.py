"""Streams give the same text however the bytes are split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracles import first_stop

from rwkvcli.errors import UsageError
from rwkvcli.runtime.streaming import StopMatcher, TextStream, Utf8Stream

# whole characters of every length, halves of them, overlong forms, surrogates and what is past U+10FFFF
fragments = st.sampled_from(
    [
        *(text.encode() for text in "aé你😀\u0000\ufffd"),
        *(b"\xc3", b"\xe4", b"\xe4\xbd", b"\xf0\x9f", b"\xf0\x9f\x98", b"\x80", b"\xa0\xa0"),
        *(
            b"\xc0\x80",
            b"\xe0\x80\x80",
            b"\xf0\x80\x80\x80",
            b"\xed\xa0\x80",
            b"\xed\xb0",
            b"\xf4\x90\x80\x80",
            b"\xff",
        ),
    ]
)
texts = st.lists(fragments, max_size=12).map(b"".join) | st.binary(max_size=40)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(texts, st.lists(st.integers(0, 1000), max_size=10))
@settings(derandomize=True, deadline=None, max_examples=1000)
def test_any_split_decodes_as_the_whole(data: bytes, cuts: list[int]) -> None:
    stream = Utf8Stream()
    given_out, seen = "", b""
    for part in split(data, cuts):
        given_out += stream.push(part)
        seen += part
        # nothing is promised that more bytes could change, and at most three bytes wait
        assert data.decode("utf-8", "replace").startswith(given_out)
        assert any(seen[: len(seen) - held].decode("utf-8", "replace") == given_out for held in range(4))
    assert given_out + stream.flush() == data.decode("utf-8", "replace")


def test_every_byte_alone() -> None:
    stream = Utf8Stream()
    assert [stream.push(bytes([byte])) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert stream.push(b"\xe4\xbd") == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(b"a") == "a"


stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


@given(st.text("ab\n", max_size=30), stop_lists, st.lists(st.integers(0, 1000), max_size=10))
@settings(derandomize=True, deadline=None, max_examples=1500)
def test_any_split_stops_at_the_same_place(text: str, stops: list[str], cuts: list[int]) -> None:
    shown, stop = first_stop(text, stops)
    matcher = StopMatcher(stops)
    given_out = ""
    for part in split(text.encode(), cuts):
        given_out += matcher.push(part.decode())
        assert shown.startswith(given_out)
    given_out += matcher.flush()
    assert (given_out, matcher.matched) == (shown, stop)


@given(
    st.lists(
        st.binary(min_size=1, max_size=3) | st.sampled_from([b"\xe4", b"ab", b"b\xff", "é".encode()]),
        max_size=12,
    ),
    st.lists(st.text("abé\ufffd", min_size=1, max_size=4), min_size=1, max_size=3),
)
@settings(derandomize=True, deadline=None, max_examples=1000)
def test_the_bytes_before_a_stop_string_are_those_that_were_shown(
    tokens: list[bytes], stops: list[str]
) -> None:
    stream, fed, settled, shown = TextStream(stops), b"", b"", ""
    for token in tokens:
        if stream.settled:
            settled = fed
        shown += stream.push(token)
        fed += token
        if stream.matched is not None:
            before = settled + stream.before_stop()
            assert fed.startswith(before) and before.decode("utf-8", "replace") == shown
            assert stream.state() == {"text": "", "bytes": ""}
            return


def test_half_a_character_before_a_stop_string_is_one_byte_and_after_it_none() -> None:
    stream = TextStream(["END"])
    assert (stream.push(b"\xe4"), stream.push(b"EN"), stream.push(b"D\xe4")) == ("", "\ufffd", "")
    assert (stream.matched, stream.before_stop()) == ("END", b"\xe4")
    assert stream.state() == {"text": "", "bytes": ""}


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["\n\nUser", "END"])
    assert matcher.push("a\n") == "a"
    assert matcher.push("b\n\n") == "\nb"
    assert matcher.push("Use") == ""
    assert matcher.push("s E") == "\n\nUses "
    assert matcher.push("ND and more") == ""
    assert matcher.matched == "END"
    assert matcher.push("x") == matcher.flush() == ""


def test_without_stop_strings_nothing_is_held_back() -> None:
    matcher = StopMatcher([])
    assert matcher.push("a\n\n") == "a\n\n"
    assert matcher.matched is None


def test_bad_stop_strings() -> None:
    with pytest.raises(UsageError):
        StopMatcher(["a", ""])
    with pytest.raises(UsageError):
        StopMatcher("END")
