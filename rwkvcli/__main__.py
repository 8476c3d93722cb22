"""The command `rwkv`, also as `python -m rwkvcli`. Only to be run: importing it changes what Ctrl-C does."""

from __future__ import annotations

import signal

# Until `main` takes over, Ctrl-C ends the process at once, rather than with a traceback from the middle of an
# import. One that was set to be ignored stays ignored.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys

from rwkvcli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
