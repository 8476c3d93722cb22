"""The text for the demo model: a folder of books cut into training and validation pieces."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def clean(raw: bytes) -> str:
    """Decode (UTF-8, or Latin-1 where a file is not UTF-8) and make the line structure uniform."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    text = re.sub(r" +\n", "\n", text)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip() + "\n"


def split_book(text: str, share: float) -> tuple[str, str]:
    """Cut off the last `share` of a book for validation, at the first paragraph break after that point."""
    cut = text.find("\n\n", int(len(text) * (1 - share)))
    return text[:cut] + "\n", text[cut:].lstrip("\n")


def dialogue(text: str, longest: int = 320) -> str:
    """Rewrite conversations as "User: ...\\n\\nAssistant: ...\\n\\n".

    A simple rule finds them: what stands in double quotes in one paragraph is one utterance, and the
    utterances of two paragraphs in a row are taken as a question and its answer.
    """
    turns: list[str] = []
    run: list[str] = []
    for paragraph in [*re.split(r"\n\s*\n", text), ""]:
        flat = " ".join(paragraph.split())
        spoken = " ".join(q.strip() for q in re.findall(r'"([^"]+)"', flat))
        spoken = re.sub(r",$", ".", spoken)
        if flat.count('"') % 2 == 0 and 2 <= len(spoken) <= longest:
            run.append(spoken)
            continue
        for user, assistant in zip(run[0::2], run[1::2], strict=False):
            turns.append(f"User: {user}\n\nAssistant: {assistant}\n\n")
        run = []
    return "".join(turns)


def segments(text: str, length: int, start_mark: str) -> list[bytes]:
    """Cut a text into pieces of `length` + 1 bytes (inputs and, moved by one, targets).

    Training starts every piece from an empty state, just as a user's prompt does. So with a `start_mark`, a
    piece begins where a prompt might begin: right behind a line feed, or at "User: ". Neighbours then overlap
    by a few bytes. Without a mark (validation) each target byte occurs once.
    """
    data = text.encode("utf-8")
    mark = start_mark.encode("utf-8")
    starts = [0]
    if mark:
        marks = [m.start() + 1 for m in re.finditer(re.escape(mark), data)]
        while starts[-1] + length + 1 < len(data):
            limit = starts[-1] + length
            found = bisect.bisect_right(marks, limit)  # the last mark up to the limit, if there is one
            starts.append(marks[found - 1] if found and marks[found - 1] > starts[-1] else limit)
    else:
        starts = list(range(0, len(data), length))
    return [data[s : s + length + 1] for s in starts if s + length + 1 <= len(data)]


@dataclass
class Corpus:
    """Training and validation pieces: uint8 tensors [pieces, length + 1]."""

    train: Tensor
    valid: Tensor
    facts: dict[str, Any]


def load_corpus(folder: Path, length: int, valid_share: float) -> Corpus:
    train: list[bytes] = []
    valid: list[bytes] = []
    book_bytes = talk_bytes = 0
    names = sorted(folder.glob("*.txt"))
    for path in names:
        first, last = split_book(clean(path.read_bytes()), valid_share)
        talk = dialogue(first)  # from the training part only: validation text must stay unseen in every form
        train += segments(first, length, "\n") + segments(talk, length, "\nUser: ")
        valid += segments(last, length, "")
        book_bytes += len(first.encode("utf-8"))
        talk_bytes += len(talk.encode("utf-8"))
    if not train or not valid:
        raise SystemExit(f"not enough text in the .txt files of {folder}")
    facts = {
        "books": [p.name for p in names],
        "train_book_bytes": book_bytes,
        "train_dialogue_bytes": talk_bytes,
        "train_segments": len(train),
        "valid_bytes": len(valid) * length,
        "segment_length": length,
    }

    def pack(pieces: list[bytes]) -> Tensor:
        return torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8).view(len(pieces), length + 1)

    return Corpus(pack(train), pack(valid), facts)


def training_batch(pieces: Tensor, step: int, batch: int, window: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bytes [batch, window + 1] of one step, and which rows begin a new piece.

    A pure function of the step number, so that a resumed run sees exactly what an uninterrupted one would.
    Each row walks through its piece window by window, keeping its recurrent state; the rows are staggered, so
    that at every step some rows are at the beginning of a piece and others far into it.
    """
    per_piece = (pieces.shape[1] - 1) // window
    per_epoch = pieces.shape[0] // batch
    rows, fresh = [], []
    for row in range(batch):
        group, part = divmod(step + row, per_piece)
        epoch, slot = divmod(group, per_epoch)
        piece = pieces[epoch_order(pieces.shape[0], seed + epoch)[slot * batch + row]]
        rows.append(piece[part * window : (part + 1) * window + 1])
        fresh.append(part == 0)
    return torch.stack(rows).long(), torch.tensor(fresh)


_orders: dict[tuple[int, int], Tensor] = {}


def epoch_order(count: int, seed: int) -> Tensor:
    if (count, seed) not in _orders:
        _orders[count, seed] = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return _orders[count, seed]
