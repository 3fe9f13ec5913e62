"""``make demo``: a hotel's day in under a minute, on a real cluster; it shows what happens and checks all of it.

An hour lasts two seconds. Reservations are saved, moved, cancelled and deleted as a web process would do it; a
``qcluster`` with two workers does the rest. The script ends with a table of what was promised and what was measured,
and exits 0 only if everything happened.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster import command, set_up_django

HOUR = 2.0
GIVE_UP = 45.0
ON_TIME = 0.5
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass
class Promise:
    """Something that must happen. ``check`` returns what it measured, or nothing as long as it has not happened."""

    what: str
    check: Callable[[], str | None]
    kept: str | None = None
    broken: str | None = None

    def look(self) -> None:
        if self.kept is None and self.broken is None:
            try:
                self.kept = self.check()
            except AssertionError as error:
                self.broken = str(error)


@dataclass
class Day:
    """The people of the story, and when it began."""

    began: datetime
    guests: dict[str, Any] = field(default_factory=dict)
    audit: Any = None
    moved_from: datetime | None = None
    planned_wakes: tuple[datetime, datetime] | None = None
    had_planned_run: bool = False

    def at(self, hours: float) -> datetime:
        return self.began + timedelta(seconds=hours * HOUR)


def main() -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hotel-") as folder:
        log = Path(folder) / "cluster.log"
        set_up_django(HOTEL_DATABASE=str(Path(folder) / "demo.sqlite3"), HOTEL_HOUR_SECONDS=str(HOUR))
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        console.rule("[bold]A day at the hotel: one hour lasts two seconds")
        with log.open("wb") as output, command("qcluster", log=output) as cluster:
            wait_until(lambda: log.read_text().count("ready for work") >= 2 or cluster.poll() is not None, 30)
            console.print("qcluster is up, with 2 workers, on a fresh SQLite file\n")
            promises = live_through_the_day()
        show_summary(promises, time.monotonic() - started)
        if not all(promise.kept for promise in promises):
            console.print("\nThe cluster's last words:\n" + "\n".join(log.read_text().splitlines()[-30:]), markup=False)
            raise SystemExit(1)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("The cluster did not start.")
        time.sleep(0.05)


# -- the story ---------------------------------------------------------------------------------------------------------


def live_through_the_day() -> list[Promise]:
    day, feed = open_the_book(), Feed()
    promises = list(what_is_promised(day))
    acts = list(the_desk(day))
    deadline = time.monotonic() + GIVE_UP
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while time.monotonic() < deadline:
            for hour, what, act in list(acts):
                if now() >= day.at(hour):
                    acts.remove((hour, what, act))
                    act()
                    feed.say(live, "desk", what)
            for kind, line in feed.news():
                feed.say(live, kind, line)
            for promise in promises:
                promise.look()
            live.update(Group(Text(), clock_of(day), table_of(promises)))
            if not acts and all(promise.kept or promise.broken for promise in promises):
                break
            time.sleep(0.05)
    return promises


def now() -> datetime:
    from django.utils import timezone

    return timezone.now()


def open_the_book() -> Day:
    """Take the reservations of the day (Eve has been here for days), and start the night audit."""
    from django_ai.automation import engine
    from hotel.models import Guest, Reservation

    day = Day(began=now())
    for room, (name, checkin, checkout, paid) in enumerate(
        (("Ada", 6, None, False), ("Ben", 6, None, False), ("Cleo", 7, None, False), ("Dan", 8, None, False),
         ("Eve", -50_000, 4, True)), 101
    ):  # fmt: skip
        day.guests[name] = Reservation.objects.create(
            guest=Guest.objects.create(name=name),
            room=str(room),
            status="confirmed",
            checkin_at=day.at(checkin),
            checkout_at=None if checkout is None else day.at(checkout),
            paid=paid,
        )
    day.audit = engine.start("hotel.night_audit", day="Monday")
    return day


def the_desk(day: Day) -> Iterator[tuple[float, str, Callable[[], None]]]:
    """Yield what the people at the desk do, and at which hour."""
    from django_ai.automation import engine
    from django_ai.automation.workflows.models import WorkflowRun
    from hotel.models import Document

    def move_ben() -> None:
        ben, runs = day.guests["Ben"], WorkflowRun.objects.filter(name="hotel.arrival")
        planned = runs.filter(entity_id=ben.pk).get()
        before, day.moved_from = planned.wake_at, ben.checkin_at
        ben.checkin_at = day.at(8)
        ben.save()
        planned.refresh_from_db()
        day.planned_wakes = (before, planned.wake_at)

    def cancel_cleo() -> None:
        cleo = day.guests["Cleo"]
        day.had_planned_run = WorkflowRun.objects.filter(name="hotel.arrival", entity_id=cleo.pk).exists()
        cleo.status = "cancelled"
        cleo.save()

    def upload_for_ada() -> None:
        Document.objects.create(reservation=day.guests["Ada"], kind="passport")

    yield 0.75, "Ben's check-in is put off by two hours", move_ben
    yield 1.0, "Cleo cancels", cancel_cleo
    yield 1.25, "Dan's reservation is deleted", lambda: day.guests["Dan"].delete() and None
    yield 2.5, "the day is closed: a signal for the night audit", lambda: _signal(engine)
    yield 3.5, "Ada uploads her passport (Ben never does)", upload_for_ada


def _signal(engine: Any) -> None:
    engine.signal("desk:day_closed", {"takings": 420, "weather": "fine"})


# -- what is promised --------------------------------------------------------------------------------------------------


def what_is_promised(day: Day) -> Iterator[Promise]:
    from django_ai.automation.events.models import Event
    from django_ai.automation.workflows.models import WorkflowRun
    from hotel.models import HousekeepingTask, Message

    def message(name: str, text: str) -> Any:
        return Message.objects.filter(reservation=day.guests[name].pk, text__contains=text).first()

    def run_of(name: str, workflow: str = "hotel.arrival") -> Any:
        return WorkflowRun.objects.filter(name=workflow, entity_id=day.guests[name].pk).first()

    def confirmed() -> str | None:
        delays = [
            (found.sent_at - day.began).total_seconds()
            for name in ("Ada", "Ben", "Eve")
            if (found := message(name, "is confirmed"))
        ]
        return f"the last {max(delays):.2f} s after the first save" if len(delays) == 3 else None

    def reminded(name: str, checkin: float) -> Callable[[], str | None]:
        def check() -> str | None:
            found = message(name, "in two hours")
            return found and in_time(found.sent_at, day.at(checkin - 2), "after its time")

        return check

    def occurred() -> str | None:
        events = Event.objects.filter(
            event_name="checkin_due", entity_id__in=[day.guests["Ada"].pk, day.guests["Ben"].pk]
        ).exclude(occurred_at=None)
        if len(events) < 2:
            return None
        return "; ".join(in_time(event.occurred_at, event.at, "late") for event in events)

    def moved() -> str | None:
        if day.planned_wakes is None:
            return None
        before, after = day.planned_wakes
        assert after - before == timedelta(seconds=2 * HOUR), f"from {before} to {after}"
        return f"its run by {(after - before).total_seconds():.1f} s, in the same transaction"

    def papers(name: str, expected: str) -> Callable[[], str | None]:
        def check() -> str | None:
            run = run_of(name)
            if run is None or not run.is_finished:
                return None
            assert run.status == "completed", f"{run.status}: {run.error[-200:]}"
            assert message(name, f"papers: {expected}"), f"the room is not ready with {expected}"
            return f"{run.data['documents']}, {run.steps.count()} steps"

        return check

    def retried() -> str | None:
        waits = []
        for name in ("Ada", "Ben"):
            run = run_of(name)
            tries = list(run.steps.filter(step="make_up_the_room").order_by("pk")) if run else []
            if len(tries) < 2:
                return None
            assert [each.outcome for each in tries] == ["error", "goto"], [each.outcome for each in tries]
            waits.append((tries[1].started - tries[0].finished).total_seconds())
        assert all(2.0 <= wait <= 2.0 + ON_TIME + 0.1 for wait in waits), f"{waits}"
        return ", ".join(f"{wait:.2f} s" for wait in waits)

    def once() -> str | None:
        if not all(run_of(name) and run_of(name).is_finished for name in ("Ada", "Ben")):
            return None
        counts = [
            HousekeepingTask.objects.filter(reservation=day.guests[name], what="Make up the room").count()
            for name in ("Ada", "Ben")
        ]
        assert counts == [1, 1], f"{counts} rows"
        return "two tries, one row, twice"

    def signalled() -> str | None:
        day.audit.refresh_from_db()
        if not day.audit.is_finished:
            return None
        assert Message.objects.filter(text="Takings of Monday: 420").count() == 1, day.audit.error
        return "takings 420 came with it"

    def withdrawn() -> str | None:
        if now() < day.at(6):
            return None  # long enough for a reminder, if there were one
        assert day.had_planned_run, "there was no planned run to withdraw"
        assert run_of("Cleo") is None, "the planned run is still there"
        assert message("Cleo", "in two hours") is None, "a reminder went out"
        return "its run is gone, no reminder"

    def deleted() -> str | None:
        return "with a snapshot of it" if Message.objects.filter(text__startswith="Deleted: 104").exists() else None

    def departed() -> str | None:
        run = run_of("Eve", "hotel.departure")
        if run is None or not run.is_finished:
            return None
        assert run.status == "completed", f"{run.status}: {run.error[-200:]}"
        return "a child workflow cleaned the room" if run.data["cleaned"] else None

    def asked() -> str | None:
        found = message("Eve", "how did you find us")
        return found and in_time(found.sent_at, day.at(5), "after its time")

    yield Promise("Confirmations go out right after the commit", confirmed)
    yield Promise("Ada is reminded two hours before check-in", reminded("Ada", 6))
    yield Promise("Ben's check-in is moved, and his timers with it", moved)
    yield Promise("Ben is reminded before his new check-in", reminded("Ben", 8))
    yield Promise("Both check-ins occur at their date", occurred)
    yield Promise("Ada's workflow waits for her passport and gets it", papers("Ada", "passport"))
    yield Promise("Ben's times out and falls back", papers("Ben", "at the desk"))
    yield Promise("A retry waits the 2 s that it says", retried)
    yield Promise("What a failed try wrote is not kept", once)
    yield Promise("A signal wakes the night audit", signalled)
    yield Promise("Cleo's cancellation withdraws what was planned", withdrawn)
    yield Promise("Dan's deletion is noted", deleted)
    yield Promise("Eve departs", departed)
    yield Promise("Eve is asked one hour after check-out", asked)


def in_time(happened: datetime, due: datetime, word: str) -> str:
    late = (happened - due).total_seconds()
    assert 0 <= late <= ON_TIME, f"{late:+.2f} s"
    return f"{late * 1000:.0f} ms {word}"


# -- what is shown -----------------------------------------------------------------------------------------------------


class Feed:
    """Finds what is new in the tables, and prints a line for each."""

    COLOURS = {"desk": "yellow", "event": "cyan", "message": "green", "step": "magenta"}

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()
        self._began = time.monotonic()

    def say(self, live: Live, kind: str, line: str) -> None:
        text = Text(f"{(time.monotonic() - self._began) / HOUR:5.1f} h  ")
        text.append(f"{kind:<8}", style=self.COLOURS[kind])
        text.append(line)
        live.console.print(text)

    def news(self) -> Iterator[tuple[str, str]]:
        from django_ai.automation.events.models import Event
        from django_ai.automation.workflows.models import StepExecution
        from hotel.models import Message

        for event in self._new("event", Event.objects.occurred()):
            yield "event", f"{event.event_name} of {event.entity or event.entity_id}"
        for message in self._new("message", Message.objects.all()):
            yield "message", message.text
        for step in self._new("step", StepExecution.objects.select_related("run")):
            trouble = f"  ({step.error.strip().splitlines()[-1]})" if step.error else ""
            yield "step", f"{step.run.name}.{step.step}, try {step.attempt}: {step.outcome}{trouble}"

    def _new(self, kind: str, rows: Any) -> Iterator[Any]:
        for row in rows.order_by("pk"):
            if (kind, row.pk) not in self._seen:
                self._seen.add((kind, row.pk))
                yield row


def clock_of(day: Day) -> Text:
    from django_ai.automation.events.models import Event
    from django_ai.automation.workflows.models import WorkflowRun

    timers = [*Event.objects.exclude(wake_at=None), *WorkflowRun.objects.exclude(wake_at=None)]
    ahead = sorted((row.wake_at - now()).total_seconds() for row in timers if row.wake_at > now())
    waiting = WorkflowRun.objects.filter(status="suspended").count()
    next_one = f"the next in {ahead[0]:.1f} s" if ahead else "none"
    return Text(f"{(now() - day.began).total_seconds() / HOUR:.1f} h   timers: {len(ahead)}, {next_one}; "
                f"runs that wait for something: {waiting}", style="bold")  # fmt: skip


def table_of(promises: list[Promise]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for name in ("", "promise", "measured"):
        table.add_column(name)
    for promise in promises:
        mark = "[green]✓" if promise.kept else "[red]✗" if promise.broken else "[dim]…"
        table.add_row(mark, promise.what, promise.kept or promise.broken or "")
    return table


def show_summary(promises: list[Promise], seconds: float) -> None:
    for promise in promises:
        if promise.kept is None and promise.broken is None:
            promise.broken = f"did not happen within {GIVE_UP:.0f} s"
    console.print()
    console.rule("[bold]What was promised")
    console.print(table_of(promises))
    kept = sum(promise.kept is not None for promise in promises)
    console.print(f"\n{kept} of {len(promises)} promises kept in {seconds:.0f} s")


if __name__ == "__main__":
    main()
