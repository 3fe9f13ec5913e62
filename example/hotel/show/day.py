"""The main loop of the demo: perform the story's actions, show new rows, evaluate the promises."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.utils import timezone
from rich.live import Live

from .promise import Promise
from .promises import promises
from .screen import Entry, Timeline, console, live_view, print_entry
from .story import Day, actions, create_bookings


def run_day(deadline: float, is_running: Callable[[], bool]) -> list[Promise]:
    """Return the promises, each kept or broken.

    A promise is broken if it is not kept at ``deadline`` (of the monotonic clock) or when the cluster ends.
    """
    day, timeline = create_bookings(), Timeline()
    promised, remaining = list(promises()), list(actions())
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while time.monotonic() < deadline and is_running():
            while remaining and timezone.now() >= day.at(remaining[0].hour):
                action = remaining.pop(0)
                action.do(day)
                print_entry(day, Entry(timezone.now(), "desk", action.what))
            for entry in timeline.new_entries():
                print_entry(day, entry)
            evaluate(day, promised)
            if console.is_terminal:
                live.update(live_view(day, promised))
            if all(promise.is_decided for promise in promised):
                return promised
            time.sleep(0.1)  # leaves the processor to the workers
    why = "did not happen in time" if is_running() else "the cluster has ended"
    for promise in promised:
        if not promise.is_decided:
            promise.broken = why
    return promised


def evaluate(day: Day, promised: list[Promise]) -> None:
    for promise in promised:
        if not promise.at_last or all(other.is_decided for other in promised if not other.at_last):
            promise.evaluate(day)
