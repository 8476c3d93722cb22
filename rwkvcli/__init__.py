"""Run RWKV language models (v4 to v7) on your own machine.

from rwkvcli import Model
model = Model.load("demo")
for piece in model.generate("Once upon a time", max_tokens=64):
    print(piece, end="")
"""

from __future__ import annotations

TYPE_CHECKING = False  # for type checkers; typing itself takes longer to import than all of this

__version__ = "0.1.0"
__all__ = ["Model", "State", "__version__"]

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State
else:  # or type checkers would take any name for one of this module

    def __getattr__(name: str) -> object:
        # Imported late: `rwkv --help` and `import rwkvcli` need neither numpy nor the extension.
        if name == "Model":
            from rwkvcli.runtime.model import Model

            return Model
        if name == "State":
            from rwkvcli.runtime.state import State

            return State
        raise AttributeError(f"module 'rwkvcli' has no attribute {name!r}")
