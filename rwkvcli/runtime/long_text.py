"""Token ids of a text of any length, piece by piece: the same ids as of the whole text at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from rwkvcli.errors import NotUtf8

if TYPE_CHECKING:
    from rwkvcli.runtime.tokenizer import Tokenizer

PIECE = 1 << 16
"""Bytes that are read, and encoded, together."""
_BOM = b"\xef\xbb\xbf"


class Encoded(NamedTuple):
    """Some ids, and how many bytes of the text they stand for."""

    ids: list[int]
    nbytes: int


def read_text(stream: BinaryIO) -> Iterator[bytes]:
    """The text of `stream` in pieces, as prompts are read: no BOM, LF for CRLF, not the newline at the end."""
    held = b""
    first = True
    while data := stream.read(PIECE):
        if first:
            data, first = data.removeprefix(_BOM), False
        data = held + data
        # what may turn out to be half a line end, or the one at the end, waits for the next piece
        held = next((end for end in (b"\r\n", b"\n", b"\r") if data.endswith(end)), b"")
        if text := data.removesuffix(held).replace(b"\r\n", b"\n"):
            yield text
    if held == b"\r":
        yield held


def in_pieces(text: bytes) -> Iterator[bytes]:
    """A text that is in memory, for `encode_long`."""
    return (text[at : at + PIECE] for at in range(0, len(text), PIECE))


def encode_long(tokenizer: Tokenizer, text: Iterable[bytes]) -> Iterator[Encoded]:
    """Ids of the text that the pieces `text` make up; of memory only about PIECE bytes are used.

    Which bytes come together never changes the ids; see `Tokenizer.encode_settled` for what is certain of them.
    Raises NotUtf8, with the position in the whole text, where the vocabulary takes valid text only.
    """
    held = b""
    done = 0
    try:
        for piece in text:
            held += piece
            while len(held) >= 2 * PIECE:  # exact sizes, so that it does not matter how the pieces were cut
                ids, used = tokenizer.encode_settled(held[: 2 * PIECE])
                yield Encoded(ids, used)
                held, done = held[used:], done + used
        if held:
            yield Encoded(tokenizer.encode_bytes(held), len(held))
    except NotUtf8 as e:
        raise NotUtf8(done + e.position) from None
