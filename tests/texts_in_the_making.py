"""Texts for many askers, made in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rwkvcli.services.serving import Texts


@contextmanager
def making(texts: Texts) -> Iterator[Texts]:
    """Has `texts` made until the end, or until they are closed."""
    thread = threading.Thread(target=texts.run)
    thread.start()
    try:
        yield texts
    finally:
        texts.close()
        thread.join(timeout=60)
        assert not thread.is_alive()
