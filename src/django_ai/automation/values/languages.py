"""In which language texts are.

What the admin shows is in the language of its reader: it is made with ``gettext`` when it is shown. What is stored,
logged or raised is read by others, later, and searched for: it is English.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from django.utils import translation

P = ParamSpec("P")
T = TypeVar("T")


def in_english(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function whose texts are English, whatever language is active."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with translation.override(None):
            return function(*args, **kwargs)

    return call
