"""Loops over columns as machine code: what NumPy can only say in many passes over many temporary arrays is one pass here.

Numba compiles a function when it is first called, and keeps the code beside the module (or in NUMBA_CACHE_DIR) for the
processes that come after. Nothing but arrays and numbers goes in and out, so that each function is compiled once.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from numba import njit

Loop = TypeVar("Loop", bound=Callable[..., Any])

# Without Numba's runtime no array can be made in a loop, and no reference is counted whenever one is handed on, which
# would cost more than the loops.
_OPTIONS: Final = {"error_model": "numpy", "_nrt": False}


def compiled(loop: Loop) -> Loop:
    """A function that reads and fills arrays, as machine code.

    Integers wrap around, a division by zero is what NumPy makes of it, and no index is checked: none may be out of bounds.
    """
    return _compiled(loop)


def inlined(loop: Loop) -> Loop:
    """A function that such loops call, put in their place."""
    return _compiled(loop, inline="always")


def _compiled(loop: Loop, **options: Any) -> Loop:
    try:
        return njit(loop, cache=True, **_OPTIONS, **options)
    except RuntimeError:  # there is nowhere to keep the code: each process compiles its own
        return njit(loop, **_OPTIONS, **options)
