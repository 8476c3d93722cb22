"""Small models, quantized once per session."""

from __future__ import annotations

import pytest
from small_models import ModelMaker, model_maker


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """make_model(version, kind, ...) -> path of a model file."""
    return model_maker(tmp_path_factory.mktemp("models"))
