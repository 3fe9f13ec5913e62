"""``manage.py automation_baseline``: mark what already holds for existing rows as having occurred."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import models
from django.utils import timezone

from ....queues.acting_command import acting_as_command, add_because
from ....queues.progress import Progress
from ....values.text import one_line
from ...declarations import Declared
from ...recording.baseline import Baseline, definitions_by_model, skipped_because


class Command(BaseCommand):
    help = (
        "Mark what already holds for existing rows as having occurred, so that it never occurs for them: for projects "
        "that add events to full tables. Workers and users may be active meanwhile. The command may be interrupted; "
        "started again, it continues. Exit code 1: a condition raised for some rows, which are left to their next save."
    )

    has_reason = True
    """Whether it takes ``--because``. ``automation baseline`` has ``--reason``, as every verb that changes rows."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--model", nargs="+", default=[], help="only these models, such as shop.Invoice")
        parser.add_argument("--event", nargs="+", default=[], help="only events of these names, as they are declared")
        parser.add_argument(
            "--all",
            action="store_true",
            help="also record immediate events whose condition is false, so that every row counts as seen",
        )
        parser.add_argument("--dry-run", action="store_true", help="write nothing, and count by definition")
        parser.add_argument("--restart", action="store_true", help="begin again where an earlier run was interrupted")
        parser.add_argument("--batch", type=int, default=2000, help="number of rows per transaction (default: 2000)")
        if self.has_reason:
            add_because(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        self.report: list[dict[str, Any]] = []
        if options["batch"] < 1:
            raise CommandError(f"--batch={options['batch']} must be at least 1.")
        failed = 0
        with acting_as_command("automation_baseline", options.get("because", "")):
            for model, declared in _selected(options["model"], options["event"]).items():
                failed += self._perform(model, declared, options)
        if failed:
            raise CommandError(f"{failed:,} evaluation(s) raised; the first of each is above.", returncode=1)

    def _perform(self, model: type[models.Model], declared: list[Declared], options: dict[str, Any]) -> int:
        """Make the baseline of one table, and return how many evaluations raised."""
        label = model._meta.label
        for each in declared:
            if reason := skipped_because(each):
                self.stdout.write(f"{label} {each.definition.name!r}: skipped ({reason})")
        wanted = [each for each in declared if not skipped_because(each)]
        if not wanted:
            return 0
        baseline = Baseline(model, wanted, timezone.now(), options["batch"], options["all"], options["dry_run"])
        if options["restart"] and not options["dry_run"]:
            baseline.forget_position()
        if (after := baseline.position()) is not None:
            self.stdout.write(f"{label}: continues after {one_line(after)!r}; --restart begins again")
        progress = Progress(self.stderr, label, baseline.rows().count())
        for read in baseline.run():
            progress.show(read)
        progress.end()
        for name, count in baseline.counts.items():
            known = count.found - count.marked
            self.report.append({"model": label, "event": name, "marked": count.marked, "known": known})
            self.report[-1]["failed"] = count.failed
            verb = "to mark" if options["dry_run"] else "marked"
            self.stdout.write(
                f"{label} {name!r}: {count.marked:,} {verb}, {known:,} with an event already, {count.failed:,} failed"
            )
            if count.error:
                self.stderr.write(f"  {count.error}")
        return sum(count.failed for count in baseline.counts.values())


def _selected(labels: Collection[str], names: Collection[str]) -> dict[type[models.Model], list[Declared]]:
    """Return the definitions to look at. Raises ``CommandError`` for a model or an event that does not exist."""
    everything = definitions_by_model()
    models_by_label = {model._meta.label_lower: model for model in everything}
    for label in labels:
        _check(label.lower(), models_by_label, f"--model {label}: no model of this name declares events.")
    declared_names = {each.definition.name for declared in everything.values() for each in declared}
    for name in names:
        _check(name, declared_names, f"--event {name}: no model declares it.")
    chosen = [models_by_label[label.lower()] for label in labels] or list(everything)
    found = {
        model: [each for each in everything[model] if not names or each.definition.name in names] for model in chosen
    }
    if not any(found.values()):
        raise CommandError(f"None of {', '.join(labels)} declares {', '.join(names)}.")
    return {model: declared for model, declared in found.items() if declared}


def _check(given: str, known: Collection[str], problem: str) -> None:
    if given not in known:
        near = get_close_matches(given, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known)) or 'none'}."
        raise CommandError(f"{problem} {hint}")
