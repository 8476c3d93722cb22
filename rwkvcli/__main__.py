"""`python -m rwkvcli` is the command `rwkv`."""

from __future__ import annotations

import sys

from rwkvcli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
