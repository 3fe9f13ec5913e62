"""For the tests of a project that uses this package: a time machine, and assertions on what happened.

The names are imported at their first use, so that a root conftest may name ``testing.plugin`` before Django is set up.
Only ``testing.plugin`` needs pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assertions import assert_not_occurred, assert_occurred, runs_of
    from .errors import ParkedRowError
    from .machine import TimeMachine, time_machine

__all__ = [
    "ParkedRowError",
    "TimeMachine",
    "assert_not_occurred",
    "assert_occurred",
    "runs_of",
    "time_machine",
]

_HOMES = {"ParkedRowError": "errors", "TimeMachine": "machine", "time_machine": "machine"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'assertions')}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
