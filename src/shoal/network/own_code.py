"""Functions with code of their own, which `torch.compile` keeps apart from all others.

It keeps what it compiled with the code of a function, at most 8 versions, and knows code by its
name too: with one code for all, the ninth network in a process would run uncompiled.
"""

from __future__ import annotations

import itertools
from types import FunctionType
from typing import Any

_numbers = itertools.count()


def with_own_code(function: Any) -> FunctionType:
    """Return the same function over code of its own, under a name that no other code has."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    name, defaults = function.__name__, function.__defaults__
    return FunctionType(code, function.__globals__, name, defaults, function.__closure__)
