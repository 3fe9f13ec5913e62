"""The subscription table: the events that callbacks, workflows and agents subscribe to, in one place.

Each layer declares its subscriptions while its modules are imported. Names, patterns, templates and namespaces are
matched in one lookup, and ``timing`` reads every offset here without a call to a higher layer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from ..values.clock import Offset, milestone_key
from ..values.digests import digest
from ..values.windows import Window
from .names import in_namespace, matches, may_match

if TYPE_CHECKING:
    from .models import Event

MAX_CACHED_NAMES = 10_000
"""The size of the cache of lookups: a templated event name is a different name for each entity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """Which events a subscriber subscribes to, and at which offset from their date. ``event_name`` may be a pattern."""

    uses_event_timer: ClassVar[bool] = True
    """Whether the row of the event is the timer of the offset; the planned run of a workflow is its own timer."""

    event_name: str
    namespace: str | None = None
    offset: Offset | None = None
    recheck: bool = False
    fixed_milestone: str = ""
    """The milestone of callbacks for the creation or cancellation; empty: at the event, or at the offset."""
    window: Window | None = None
    """How its events are collected; None: each is handled alone."""

    @property
    def window_target(self) -> tuple[str, str]:
        """The kind and the name of what handles the events of a window."""
        raise NotImplementedError

    @property
    def milestone(self) -> str:
        return self.fixed_milestone or milestone_key(self.offset, self.recheck)

    @property
    def subscriber(self) -> tuple[str, str]:
        """The kind and the name of who subscribes: "callback", "workflow", "agent" or "handler"."""
        raise NotImplementedError

    def matches(self, event: Event) -> bool:
        """Return whether this subscription is for ``event``."""
        return self.matches_namespace(event) and self.matches_name(event)

    def matches_name(self, event: Event) -> bool:
        return matches(self.event_name, event.event_name)

    def matches_namespace(self, event: Event) -> bool:
        return in_namespace(self.namespace, event.namespace)


S = TypeVar("S", bound=Subscription)


class SubscriptionTable:
    """All subscriptions by kind (a subclass of ``Subscription``) and by the key of the declaration."""

    def __init__(self) -> None:
        self._declared: dict[tuple[type[Subscription], Hashable], tuple[Subscription, ...]] = {}
        self._forget_lookups()

    def _forget_lookups(self) -> None:
        # New dicts: a concurrent lookup that has read the old table then fills a cache that is no longer used.
        self._matches: dict[tuple[str, str | None], dict[type[Subscription], list[Any]]] = {}
        self._possible_offsets: dict[str, list[Offset]] = {}
        self._plans: dict[str, str] = {}
        self._has_windows: bool | None = None

    def declare(self, kind: type[S], key: Hashable, subscriptions: Iterable[S]) -> None:
        """Replace the subscriptions that ``key`` has declared. ``subscriptions`` may be empty."""
        declared = tuple(subscriptions)
        if declared:
            self._declared[kind, key] = declared
        else:
            self._declared.pop((kind, key), None)
        self._forget_lookups()

    def declared_by(self, kind: type[S], key: Hashable) -> tuple[S, ...]:
        return cast("tuple[S, ...]", self._declared.get((kind, key), ()))

    def all(self, kind: type[S]) -> list[S]:
        return [cast("S", each) for (of, _), declared in self._declared.items() if of is kind for each in declared]

    def everything(self) -> list[Subscription]:
        """Return all subscriptions of all kinds, in the order of declaration."""
        return [each for declared in self._declared.values() for each in declared]

    def named(self, kind: type[S], event_name: str) -> Sequence[S]:
        """Return the subscriptions that match events of this name in any namespace."""
        return self._matching(event_name, None).get(kind, ())

    def subscribed_to(self, kind: type[S], event_name: str, namespace: str) -> Sequence[S]:
        """Return the subscriptions that match an event of this name and namespace, in the order of declaration."""
        return self._matching(event_name, namespace).get(kind, ())

    def subscribed(self, event_name: str, namespace: str) -> list[Subscription]:
        """Return the subscriptions of all kinds to an event of this name and namespace."""
        return list(chain.from_iterable(self._matching(event_name, namespace).values()))

    def offsets(self, event_name: str, namespace: str) -> dict[str, Offset]:
        """Return the distinct offsets at which subscribers are notified of such an event, by their milestone."""
        return {
            each.milestone: each.offset
            for each in chain.from_iterable(self._matching(event_name, namespace).values())
            if each.offset is not None and each.uses_event_timer
        }

    @property
    def has_windows(self) -> bool:
        """Whether any subscription collects events."""
        if self._has_windows is None:
            self._has_windows = any(each.window for declared in self._declared.values() for each in declared)
        return self._has_windows

    def with_windows(self, event_name: str, namespace: str) -> list[Subscription]:
        """Return the subscriptions to an event of this name and namespace that collect events."""
        if not self.has_windows:
            return []
        found = chain.from_iterable(self._matching(event_name, namespace).values())
        return [each for each in found if each.window is not None]

    def possible_offsets(self, declared_as: str) -> list[Offset]:
        """Return every offset that may apply to events of a definition, for any name and namespace."""
        cache = self._possible_offsets
        found = cache.get(declared_as)
        if found is None:
            everything = chain.from_iterable(self._declared.values())
            mine = [each for each in everything if each.offset is not None and may_match(each.event_name, declared_as)]
            found = cache[declared_as] = [each.offset for each in mine if each.offset is not None]
        return found

    def plan_of(self, declared_as: str) -> str:
        """Return a digest of every offset that may apply to events of a definition, and of the runs planned for them.

        A row with another digest had its timer set by code with other subscribers.
        """
        cache = self._plans
        found = cache.get(declared_as)
        if found is None:
            plan = {
                f"{kind.__name__} {'' if each.uses_event_timer else key} {each.event_name} {each.namespace} "
                f"{each.milestone}"
                for (kind, key), declared in self._declared.items()
                for each in declared
                if each.milestone and may_match(each.event_name, declared_as)
            }
            found = cache[declared_as] = digest("plan", *sorted(plan))
        return found

    def _matching(self, event_name: str, namespace: str | None) -> dict[type[Subscription], list[Any]]:
        cache, key = self._matches, (event_name, namespace)
        found = cache.get(key)
        if found is None:
            found = {}
            for (kind, _), declared in self._declared.items():
                for each in declared:
                    is_in = namespace is None or in_namespace(each.namespace, namespace)
                    if is_in and matches(each.event_name, event_name):
                        found.setdefault(kind, []).append(each)
            if len(cache) < MAX_CACHED_NAMES:
                cache[key] = found
        return found


subscriptions = SubscriptionTable()
