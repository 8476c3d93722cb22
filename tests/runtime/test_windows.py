"""What Windows says of its processors, in records as its documentation lays them out."""

from __future__ import annotations

import struct

import pytest

from rwkvcli.runtime.windows import cores_of, largest_cache


def core(*masks: tuple[int, int]) -> bytes:
    """PROCESSOR_RELATIONSHIP of one core: (mask, group) of its logical processors."""
    body = struct.pack("<BB20xH", len(masks) > 1, 0, len(masks))
    body += b"".join(struct.pack("<QH6x", mask, group) for mask, group in masks)
    return struct.pack("<II", 0, 8 + len(body)) + body


def cache(level: int, nbytes: int) -> bytes:
    """CACHE_RELATIONSHIP."""
    body = struct.pack("<BBHII18xHQH6x", level, 8, 64, nbytes, 0, 1, 1, 0)
    return struct.pack("<II", 2, 8 + len(body)) + body


PACKAGE = struct.pack("<IIBB20xHQH6x", 3, 48, 0, 0, 1, 0xFF, 0)
FOUR_CORES = PACKAGE + b"".join(core((0b11 << 2 * n, 0)) + cache(1, 48 << 10) for n in range(4)) + cache(3, 8 << 20)  # fmt: skip
TWO_GROUPS = core((1, 0)) + core((2, 0)) + core((1, 1)) + core((2, 1))


@pytest.mark.parametrize(
    ("records", "allowed", "expected"),
    [
        (FOUR_CORES, None, (8, 4)),
        (FOUR_CORES, {0: 0xFF}, (8, 4)),
        (FOUR_CORES, {0: 0b00001111}, (4, 2)),
        (FOUR_CORES, {0: 0b01010101}, (4, 4)),  # one processor of each
        (FOUR_CORES, {0: 0b00000110}, (2, 2)),
        (TWO_GROUPS, None, (4, 4)),
        (TWO_GROUPS, {1: 0b11}, (2, 2)),
        (b"", None, (0, 0)),
    ],
)
def test_cores_that_may_be_used(
    records: bytes, allowed: dict[int, int] | None, expected: tuple[int, int]
) -> None:
    assert cores_of(records, allowed) == expected


def test_the_largest_cache() -> None:
    assert largest_cache(FOUR_CORES) == 8 << 20
    assert largest_cache(PACKAGE) is None
