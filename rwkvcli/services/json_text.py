"""JSON that every reader takes, whatever the text in it was made of."""

from __future__ import annotations

import contextlib
import json
from typing import Any


def json_text(value: Any) -> str:
    """`value` in one line. Bytes that Python took for no characters are UTF-8 where they can be; what is left of them, and half
    a surrogate pair, which UTF-8 has no bytes for either, is escaped as JSON has it.
    """
    text = json.dumps(value, ensure_ascii=False)
    with contextlib.suppress(UnicodeEncodeError):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return text.encode("utf-8", "backslashreplace").decode()
