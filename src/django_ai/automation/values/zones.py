"""Time zones by their names in the IANA database: ``"Europe/Berlin"``."""

from __future__ import annotations

from datetime import UTC, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from django.utils import timezone

from ..exceptions import DefinitionError


def find_zone(name: Any) -> ZoneInfo | None:
    """Return the time zone of this name, or None if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        return None


def zone_or_default(name: str) -> tzinfo:
    """Return the time zone of this name; ``TIME_ZONE`` for an empty or unknown one."""
    return (find_zone(name) if name else None) or timezone.get_default_timezone()


def zone_named(name: Any, what: str) -> tzinfo | None:
    """Return the time zone of this name; None for none. Raises ``DefinitionError`` with the nearest name."""
    if name is None or name == "":
        return None
    if isinstance(name, tzinfo):
        return name
    found = find_zone(name)
    if found is None:
        raise DefinitionError(f"{what}: there is no time zone {name!r}. {nearest_zone(name)}")
    return found


def nearest_zone(name: object) -> str:
    """Return a hint for a name that no time zone has."""
    near = get_close_matches(str(name), _known_names(), n=1)
    return f"Did you mean {near[0]!r}?" if near else 'Write a name such as "Europe/Berlin".'


@lru_cache(maxsize=1)
def _known_names() -> tuple[str, ...]:
    return tuple(sorted(available_timezones()))


def key_of(zone: Any) -> str | None:
    """Return the name of a time zone; None for what has no name, such as a fixed offset."""
    if zone is UTC:
        return "UTC"
    key = getattr(zone, "key", None)
    return key if isinstance(key, str) and key else None
