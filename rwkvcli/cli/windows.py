"""What Windows alone needs: consoles that draw, and pipes that are looked into before they are read."""

from __future__ import annotations

import sys

_DRAWS = 4
"""Of a console's mode: it takes escape sequences for what they mean (ENABLE_VIRTUAL_TERMINAL_PROCESSING)."""

if sys.platform == "win32":
    import ctypes
    import msvcrt

    _kernel32 = ctypes.WinDLL("kernel32")
    _kernel32.GetConsoleMode.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    _kernel32.SetConsoleMode.argtypes = (ctypes.c_void_p, ctypes.c_ulong)
    _kernel32.PeekNamedPipe.argtypes = (*[ctypes.c_void_p] * 2, ctypes.c_ulong, *[ctypes.c_void_p] * 3)

    def console_mode(descriptor: int) -> int | None:
        """The mode of a console; None: it is none, as NUL, which Python takes for a terminal."""
        mode = ctypes.c_ulong()
        try:
            handle = msvcrt.get_osfhandle(descriptor)
        except OSError:
            return None
        return mode.value if _kernel32.GetConsoleMode(handle, ctypes.byref(mode)) else None

    def let_draw(descriptor: int) -> bool:
        """Make a console take escape sequences for what they mean; False: it cannot."""
        mode = console_mode(descriptor)
        if mode is None:
            return False
        if mode & _DRAWS:
            return True
        return bool(_kernel32.SetConsoleMode(msvcrt.get_osfhandle(descriptor), mode | _DRAWS))

    def would_wait(descriptor: int) -> bool:
        """Whether reading has to wait: it is a pipe that holds nothing, and is open at its other end."""
        held = ctypes.c_ulong()
        try:
            handle = msvcrt.get_osfhandle(descriptor)
        except OSError:
            return False
        # what is no pipe, and a pipe that has ended, makes it fail
        return (
            bool(_kernel32.PeekNamedPipe(handle, None, 0, None, ctypes.byref(held), None)) and not held.value
        )
