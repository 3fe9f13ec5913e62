"""Migrations change captured tables and the outbox: writes are captured at each step, also in the same ``migrate``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.apps import apps
from django.db import connection, migrations, models
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from django_ai.automation.events.models import CapturedWrite
from django_ai.automation.events.operations import CaptureWrites, StopCapturingWrites, uncaptured
from django_ai.automation.events.triggers.installation import (
    Installation,
    install,
    installation_of,
    installed_captures,
    needed_captures,
)
from tests.apps.captured.models import Note, Parcel
from tests.support.captured_writes import outbox

pytestmark = pytest.mark.django_db(transaction=True)


class Migrating:
    """The state of the project while operations are applied one by one, each in a schema editor of its own."""

    def __init__(self) -> None:
        self.state = ProjectState.from_apps(apps)

    def apply(self, operation: Operation, app_label: str = "captured") -> None:
        before, self.state = self.state, self.state.clone()
        operation.state_forwards(app_label, self.state)
        with connection.schema_editor() as editor:
            operation.database_forwards(app_label, editor, before, self.state)

    @property
    def note(self) -> type[models.Model]:
        return self.state.apps.get_model("captured", "note")  # type: ignore[no-any-return]


@pytest.fixture
def migrating() -> Iterator[Migrating]:
    yield Migrating()
    with connection.schema_editor() as editor:
        for each in needed_captures():
            install(each, editor)


def check_that_writes_are_captured(note: type[models.Model], name: str = "parcel_id") -> None:
    """Write a row as a migration does, with a new value of one field, and compare the outbox with what was written."""
    CapturedWrite.objects.all().delete()
    parcel = Parcel.objects.bulk_create([Parcel()])[0]
    value = parcel.pk if name == "parcel_id" else "new"
    note._base_manager.bulk_create([note(pk=7)])
    note._base_manager.update(**{name: value})
    note._base_manager.all()._raw_delete(connection.alias)
    assert outbox() == [("parcel", str(parcel.pk), "insert"), *(("note", "7", each) for each in WRITES)]
    _, inserted, updated, deleted = CapturedWrite.objects.order_by("pk")
    column = note._meta.get_field(name).column
    assert inserted.old is None
    assert set(updated.old) == {column}
    assert set(deleted.old) == {field.column for field in note._meta.local_concrete_fields}
    assert deleted.old[column] == str(value)


WRITES = ("insert", "update", "delete")

TEXT = models.CharField(max_length=50, blank=True, default="")

CHANGES = {
    "a column that may be null": (
        migrations.AddField("note", "more", models.CharField(max_length=9, null=True)),
        "more",
        migrations.RemoveField("note", "more"),
    ),
    "a column with a default": (
        migrations.AddField("note", "more", models.CharField(max_length=9, default="x", db_index=True)),
        "more",
        migrations.RemoveField("note", "more"),
    ),
    "a column is dropped": (migrations.RemoveField("note", "text"), "", migrations.AddField("note", "text", TEXT)),
    "a column is renamed": (
        migrations.RenameField("note", "text", "words"),
        "words",
        migrations.RenameField("note", "words", "text"),
    ),
    "a column is altered": (
        migrations.AlterField("note", "text", models.TextField(db_column="odd name")),
        "text",
        migrations.AlterField("note", "text", TEXT),
    ),
    "the primary key is renamed": (
        migrations.RenameField("note", "id", "number"),
        "",
        migrations.RenameField("note", "number", "id"),
    ),
    "the table is renamed": (
        migrations.AlterModelTable("note", "captured_memo"),
        "text",
        migrations.AlterModelTable("note", "captured_note"),
    ),
    "SQL of the project": (
        migrations.RunSQL(
            "ALTER TABLE captured_note ADD COLUMN more varchar(9)",
            state_operations=[migrations.AddField("note", "more", models.CharField(max_length=9, null=True))],
        ),
        "more",
        migrations.RunSQL(
            "ALTER TABLE captured_note DROP COLUMN more", state_operations=[migrations.RemoveField("note", "more")]
        ),
    ),
}


@pytest.mark.parametrize(("change", "name", "back"), CHANGES.values(), ids=CHANGES)
def test_a_captured_table_is_changed(migrating, change, name, back):
    try:
        migrating.apply(change)
        check_that_writes_are_captured(migrating.note)
        if name:
            check_that_writes_are_captured(migrating.note, name)
    finally:
        migrating.apply(back)
    check_that_writes_are_captured(migrating.note)
    assert [each.table for each in installed_captures(connection)].count("captured_note") == 1
    assert {installation_of(each, connection) for each in needed_captures()} == {Installation.CURRENT}


@pytest.mark.parametrize(
    ("change", "back"),
    [
        (
            migrations.AddField("capturedwrite", "more", models.CharField(max_length=9, null=True)),
            migrations.RemoveField("capturedwrite", "more"),
        ),
        (
            migrations.AlterField("capturedwrite", "error", models.CharField(max_length=9, default="")),
            migrations.AlterField("capturedwrite", "error", CapturedWrite._meta.get_field("error").clone()),
        ),
        (
            migrations.RenameField("capturedwrite", "error", "problem"),
            migrations.RenameField("capturedwrite", "problem", "error"),
        ),
    ],
)
def test_the_outbox_is_changed(migrating, change, back):
    try:
        migrating.apply(change, "automation_events")
        if isinstance(change, migrations.AddField):
            check_that_writes_are_captured(Note)
    finally:
        migrating.apply(back, "automation_events")
    check_that_writes_are_captured(Note)
    assert {installation_of(each, connection) for each in needed_captures()} == {Installation.CURRENT}


@pytest.mark.parametrize(
    ("changes", "back"),
    [
        (
            [migrations.AddField("note", "more", models.TextField(default="x"))],
            migrations.RemoveField("note", "more"),
        ),
        (
            [
                migrations.AddField("note", "more", models.CharField(max_length=9, null=True)),
                migrations.AlterField("note", "more", models.CharField(max_length=9, default="x")),
            ],
            migrations.RemoveField("note", "more"),
        ),
    ],
    ids=["a new column", "a column that may no longer be null"],
)
def test_the_default_of_a_column_is_no_write(migrating, changes, back):
    with uncaptured():
        Note.objects.bulk_create([Note(), Note()])
    try:
        for change in changes:
            migrating.apply(change)
        assert set(migrating.note.objects.values_list("more", flat=True)) == {"x"}
        assert outbox() == []
    finally:
        migrating.apply(back)
    assert outbox() == []


def test_what_a_migration_updates_itself_is_captured(migrating):
    Note.objects.bulk_create([Note(pk=1)])
    CapturedWrite.objects.all().delete()
    migrating.apply(migrations.RunSQL("UPDATE captured_note SET text = 'x'"))
    migrating.apply(migrations.RunSQL([("UPDATE captured_note SET text = %s WHERE id = 1", ["y"])]))
    assert outbox() == [("note", "1", "update")] * 2


def test_what_is_not_captured_is_left_alone(migrating):
    migrating.apply(StopCapturingWrites("captured.note"))
    for operation in CHANGES["a column with a default"][::2]:
        migrating.apply(operation)
    assert "captured_note" not in [each.table for each in installed_captures(connection)]
    migrating.apply(CaptureWrites("captured.note"))
    check_that_writes_are_captured(Note)


def test_a_table_that_is_dropped_and_made_again_is_another_one(migrating):
    model = migrating.state.models["captured", "note"]
    migrating.apply(migrations.DeleteModel("note"))
    migrating.apply(migrations.CreateModel("Note", list(model.fields.items()), bases=(models.Model,)))
    assert "captured_note" not in [each.table for each in installed_captures(connection)]
    migrating.apply(CHANGES["a column with a default"][0])
    migrating.apply(CHANGES["a column with a default"][2])
    assert "captured_note" not in [each.table for each in installed_captures(connection)]
