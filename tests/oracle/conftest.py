"""What the oracle tests share."""

from __future__ import annotations

import pytest
from oracle.cases import CASES, Case, GoldenCase


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def golden_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GoldenCase:
    """Every golden case with its checkpoint on disk."""
    case: Case = request.param
    folder = tmp_path_factory.mktemp(case.name)
    return GoldenCase(case, case.write(folder / "model.safetensors"), case.golden())
