"""A server with the demo model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from model_server import Here, serving

from rwkvcli import Model


@pytest.fixture(scope="session")
def model() -> Model:
    return Model.load("demo", threads=1)


@pytest.fixture(scope="module")
def here(model: Model) -> Iterator[Here]:
    with serving(model) as server:
        yield server
