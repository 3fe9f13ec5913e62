"""``manage.py automation_capture``: show which tables are captured, and write the migration that installs triggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from django.db.migrations.loader import MigrationLoader

from ....db.writer import alias_of
from ....queues.acting_command import acting_as_command, add_because
from ....queues.history import note_key
from ....queues.models import Action
from ...capture_migration import missing_changes, new_migration
from ...models import CapturedWrite
from ...triggers.installation import Installation, installation_of, needed_captures, stray_captures


class Command(BaseCommand):
    help = (
        "Show the tables whose writes are captured (EventDefinition(..., capture=True)), and whether their triggers "
        "are installed and current. With --migration APP: write the migration that installs what is missing. Exit "
        "code 1: triggers are missing, outdated or not needed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--migration", metavar="APP", help="write the migration into this app")
        parser.add_argument("--dry-run", action="store_true", help="with --migration: only print the migration")
        add_because(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["dry_run"] and not options["migration"]:
            raise CommandError("--dry-run needs --migration APP: only that writes a file.")
        if options["migration"]:
            with acting_as_command("automation_capture", options["because"]):
                self._write(options["migration"], only_print=options["dry_run"])
        else:
            self._show()

    def _show(self) -> None:
        connection = connections[alias_of(CapturedWrite)]
        is_complete = True
        for capture in needed_captures():
            found = installation_of(capture, connection)
            is_complete = is_complete and found is Installation.CURRENT
            self.stdout.write(f"{capture.name_of_model} ({capture.table}): {found}")
        for stray in stray_captures(connection):
            is_complete = False
            self.stdout.write(f"{stray.table}: has triggers, and no event with capture=True needs them")
        if not is_complete:
            raise CommandError(
                "Write the migration with --migration APP, and run migrate, which also replaces outdated triggers.",
                returncode=1,
            )

    def _write(self, app_label: str, *, only_print: bool) -> None:
        loader = MigrationLoader(None, ignore_no_migrations=True)
        changes = missing_changes(loader)
        if not changes:
            self.stdout.write("The migrations install all triggers that the declared events need.")
            return
        try:
            writer = new_migration(loader, app_label, changes)
        except ValueError as error:
            raise CommandError(str(error)) from error
        if only_print:
            self.stdout.write(writer.as_string())
            return
        Path(writer.path).write_text(writer.as_string(), encoding="utf-8")
        self._note(app_label, Path(writer.path))
        self.stdout.write(f"Wrote {writer.path}. Run manage.py migrate.")

    def _note(self, app_label: str, path: Path) -> None:
        """Note that the migration was written, unless it is one of the first: then no table of the history exists."""
        if Action._meta.db_table in connections[alias_of(Action)].introspection.table_names():
            note_key(CapturedWrite, app_label, f"migration {app_label}.{path.stem}, which captures writes", "Added")
