"""The subscription table: what callbacks, workflows and agents have declared to listen to, in one place.

Each floor declares its subscriptions while its modules are imported. What a name, a pattern, a template and a namespace
mean is decided in one lookup, and ``timing`` reads every offset here without asking a floor above.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from ..values.clock import Offset, milestone_key
from ..values.digests import digest
from .names import in_namespace, means, overlap

if TYPE_CHECKING:
    from .models import Event

MAX_CACHED_NAMES = 10_000
"""A templated event name is another name for each entity, so the cache of lookups needs a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """Which events a subscriber means, and at which offset from their date. ``event_name`` may be a pattern."""

    is_told: ClassVar[bool] = True
    """Whether the event's own row is the timer of the offset; a workflow's planned run is a timer of its own."""

    event_name: str
    namespace: str | None = None
    offset: Offset | None = None
    recheck: bool = False

    @property
    def milestone(self) -> str:
        return milestone_key(self.offset, self.recheck)

    def hears(self, event: Event) -> bool:
        """Return whether this subscription is for ``event``."""
        return in_namespace(self.namespace, event.namespace) and means(self.event_name, event.event_name)


S = TypeVar("S", bound=Subscription)


class SubscriptionTable:
    """All subscriptions by their kind (a subclass of ``Subscription``) and the key of what has declared them."""

    def __init__(self) -> None:
        self._declared: dict[tuple[type[Subscription], Hashable], tuple[Subscription, ...]] = {}
        self._forget_lookups()

    def _forget_lookups(self) -> None:
        # New dicts: a lookup of another thread that has just read the old table fills a cache that nobody reads.
        self._matches: dict[tuple[str, str | None], dict[type[Subscription], list[Any]]] = {}
        self._reach: dict[str, list[Offset]] = {}
        self._plans: dict[str, str] = {}

    def declare(self, kind: type[S], key: Hashable, subscriptions: Iterable[S]) -> None:
        """Replace what ``key`` has declared by ``subscriptions``, which may be none."""
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

    def meaning(self, kind: type[S], event_name: str) -> Sequence[S]:
        """Return the subscriptions that mean events of this name, of whatever namespace."""
        return self._matching(event_name, None).get(kind, ())

    def hearing(self, kind: type[S], event_name: str, namespace: str) -> Sequence[S]:
        """Return the subscriptions that an event of this name and namespace is for, in the order of declaration."""
        return self._matching(event_name, namespace).get(kind, ())

    def offsets(self, event_name: str, namespace: str) -> dict[str, Offset]:
        """Return the distinct offsets at which subscribers are told of such an event, by the key of their beat."""
        return {
            each.milestone: each.offset
            for each in chain.from_iterable(self._matching(event_name, namespace).values())
            if each.offset is not None and each.is_told
        }

    def reach(self, declared_as: str) -> list[Offset]:
        """Return every offset that a subscriber may want for events of a definition, whatever their name and
        namespace."""
        cache = self._reach
        found = cache.get(declared_as)
        if found is None:
            everything = chain.from_iterable(self._declared.values())
            mine = [each for each in everything if each.offset is not None and overlap(each.event_name, declared_as)]
            found = cache[declared_as] = [each.offset for each in mine if each.offset is not None]
        return found

    def plan_of(self, declared_as: str) -> str:
        """Return what tells whether the timer of a row was set by code with the same subscribers as today's: a digest
        of every offset that somebody may want for events of a definition, and of whom a run is planned for."""
        cache = self._plans
        found = cache.get(declared_as)
        if found is None:
            wishes = {
                f"{kind.__name__} {'' if each.is_told else key} {each.event_name} {each.namespace} {each.milestone}"
                for (kind, key), declared in self._declared.items()
                for each in declared
                if each.milestone and overlap(each.event_name, declared_as)
            }
            found = cache[declared_as] = digest("plan", *sorted(wishes))
        return found

    def _matching(self, event_name: str, namespace: str | None) -> dict[type[Subscription], list[Any]]:
        cache, key = self._matches, (event_name, namespace)
        found = cache.get(key)
        if found is None:
            found = {}
            for (kind, _), declared in self._declared.items():
                for each in declared:
                    is_in = namespace is None or in_namespace(each.namespace, namespace)
                    if is_in and means(each.event_name, event_name):
                        found.setdefault(kind, []).append(each)
            if len(cache) < MAX_CACHED_NAMES:
                cache[key] = found
        return found


subscriptions = SubscriptionTable()
