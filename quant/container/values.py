"""Whether the float32 values of a model file can be what they should: looked at whenever one is opened."""

from __future__ import annotations

from typing import Protocol


class ValueChecks(Protocol):
    """What looks at values: `WithNumpy` here, or native code, with which a file is opened without numpy."""

    def are_finite(self, values: memoryview) -> bool:
        """Whether none of the float32 whose bytes these are is NaN or infinite."""
        ...

    def are_scales(self, values: memoryview) -> bool:
        """The same, nor below zero."""
        ...


class WithNumpy:
    """Looks by numpy, which is imported for it."""

    def are_finite(self, values: memoryview) -> bool:
        import numpy as np

        return bool(np.isfinite(np.frombuffer(values, "<f4")).all())

    def are_scales(self, values: memoryview) -> bool:
        import numpy as np

        return self.are_finite(values) and bool((np.frombuffer(values, "<f4") >= 0).all())
