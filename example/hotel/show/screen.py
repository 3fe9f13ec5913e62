"""The output of the demo: a line for each change, a live table below, and a summary at the end.

If the output is not a terminal, the lines are plain and there is no live table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from django.utils import timezone
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from hotel.models import Message

from .promise import Promise
from .story import Day

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
COLOURS = {"desk": "yellow", "event": "cyan", "message": "green", "step": "magenta", "agent": "bright_blue"}


@dataclass(frozen=True, order=True)
class Entry:
    """A line of the timeline, with the time of its row."""

    at: datetime
    kind: str
    line: str


class Timeline:
    """Finds new and changed rows."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, int]] = set()

    def new_entries(self) -> list[Entry]:
        return sorted(self._read())

    def _read(self) -> Iterator[Entry]:
        for event in self._new("event", Event.objects.occurred()):
            yield Entry(event.occurred_at, "event", f"{event.event_name} of {event.entity or event.entity_id}")
        for message in self._new("message", Message.objects.all()):
            yield Entry(message.sent_at, "message", message.text)
        for step in self._new("step", StepExecution.objects.select_related("run")):
            error = f"  ({step.error.strip().splitlines()[-1]})" if step.error else ""
            line = f"{step.run.name}.{step.step}, attempt {step.attempt}: {step.outcome}{error}"
            yield Entry(step.finished, "step", line)
        executions = HandlerExecution.objects.select_related("run").filter(started_at__isnull=False)
        for execution in self._new("agent", executions, lambda row: 2 * row.attempt + bool(row.finished_at)):
            yield Entry(execution.finished_at or execution.started_at, "agent", line_of(execution))

    def _new(self, kind: str, rows: Any, state: Callable[[Any], int] = lambda row: 0) -> Iterator[Any]:
        """Yield the rows that are new, or whose ``state`` has changed."""
        for row in rows.order_by("pk"):
            found = (kind, row.pk, state(row))
            if found not in self._seen:
                self._seen.add(found)
                yield row


def line_of(execution: HandlerExecution) -> str:
    """Return a line with the state of an execution. One that is to be retried is still pending, and has an error."""
    outcome = execution.status if execution.finished_at else "error"
    error = f"  ({execution.error.strip().splitlines()[-1]})" if execution.error else ""
    attempt = f", attempt {execution.attempt}" if execution.attempt else ""
    return f"{execution.run}.{execution.handler}{attempt}: {outcome}{error}"


def print_entry(day: Day, entry: Entry) -> None:
    text = Text(f"{day.hour_of(entry.at):5.1f} h  ")
    text.append(f"{entry.kind:<8}", style=COLOURS[entry.kind])
    text.append(entry.line)
    console.print(text, soft_wrap=True)


def live_view(day: Day, promises: Sequence[Promise]) -> Group:
    """Return the clock and the open promises, on at most half of the screen; the timeline uses the other half."""
    still_open = [promise for promise in promises if promise.kept is None]
    count = Text(f"{len(promises) - len(still_open)} of {len(promises)} promises kept; the others:", style="bold")
    return Group(Text(), clock_of(day), count, table_of(still_open[: console.height // 2 - 4]))


def clock_of(day: Day) -> Text:
    now = timezone.now()
    timers = [
        *Event.objects.filter(wake_at__gt=now).values_list("wake_at", flat=True),
        *WorkflowRun.objects.filter(wake_at__gt=now).values_list("wake_at", flat=True),
        *AgentRun.objects.filter(wake_at__gt=now).values_list("wake_at", flat=True),
    ]
    next_one = f"the next in {(min(timers) - now).total_seconds():.1f} s" if timers else "none"
    waiting = WorkflowRun.objects.filter(status="suspended").count()
    agents = AgentRun.objects.active().count()
    line = f"{day.hour_of(now):.1f} h   timers: {len(timers)}, {next_one}; runs that wait: {waiting}; agents: {agents}"
    return Text(line, style="bold")


def table_of(promises: Sequence[Promise]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for name in ("", "promise", "measured"):
        table.add_column(name)
    for promise in promises:
        mark = "[green]✓" if promise.kept else "[red]✗" if promise.broken else "[dim]…"
        table.add_row(mark, promise.what, Text(promise.kept or promise.broken or ""))
    return table


def print_summary(promises: Sequence[Promise], seconds: float) -> None:
    console.print()
    console.rule("[bold]Promises")
    console.print(table_of(promises))
    kept = sum(promise.kept is not None for promise in promises)
    console.print(f"\n{kept} of {len(promises)} promises kept in {seconds:.0f} s")


def print_tail(log: Path) -> None:
    console.print("\nThe last lines of the cluster's log:")
    lines = log.read_text(errors="replace").splitlines()[-30:]
    console.print("\n".join(lines) or "(none)", markup=False, soft_wrap=True)
