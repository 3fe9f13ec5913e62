"""The day itself: do what is due at the desk, look at the tables, show it, judge it; until all is decided."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.utils import timezone
from rich.live import Live

from .promise import Promise
from .promises import promises
from .screen import Feed, Notification, console, live_view, print_news
from .story import Day, acts, open_the_book


def live_through_the_day(deadline: float, is_running: Callable[[], bool]) -> list[Promise]:
    """Return the promises, each kept or broken; at ``deadline`` (of the monotonic clock) or when the cluster dies, what
    has not happened is broken."""
    day, feed = open_the_book(), Feed()
    promised, to_do = list(promises()), list(acts())
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while time.monotonic() < deadline and is_running():
            while to_do and timezone.now() >= day.at(to_do[0].hour):
                act = to_do.pop(0)
                act.do(day)
                print_news(day, Notification(timezone.now(), "desk", act.what))
            for news in feed.news():
                print_news(day, news)
            look_at(day, promised)
            if console.is_terminal:
                live.update(live_view(day, promised))
            if all(promise.is_decided for promise in promised):
                return promised
            time.sleep(0.1)  # half the processor is for those who work
    why = "did not happen in time" if is_running() else "the cluster has died"
    for promise in promised:
        if not promise.is_decided:
            promise.broken = why
    return promised


def look_at(day: Day, promised: list[Promise]) -> None:
    for promise in promised:
        if not promise.at_last or all(other.is_decided for other in promised if not other.at_last):
            promise.look(day)
