"""What the system is asked about processors."""

from __future__ import annotations

import pytest

from rwkvcli.runtime import device


def test_caches_and_names_are_told_in_one_unit_and_never_empty() -> None:
    assert device.last_level_cache() >= 1 << 16
    assert device.processor_name()


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("32768K", 32 << 20), ("32M", 32 << 20)])
def test_sizes_of_caches(text: str, size: int) -> None:
    assert device._cache_size(text) == size
