"""The triggers of captured tables: migration operations, ``migrate``, ``automation_capture``, and the checks."""

from __future__ import annotations

from io import StringIO

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection, migrations, models, router
from django.db.migrations.exceptions import BadMigrationError
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ProjectState
from django.test.utils import isolate_apps

from django_ai.automation.events.capture_migration import missing_changes, new_migration
from django_ai.automation.events.checks import check_captures, check_triggers
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.events.operations import CaptureWrites, StopCapturingWrites
from django_ai.automation.events.triggers import installation
from django_ai.automation.events.triggers.installation import Installation, install, installation_of, needed_captures
from django_ai.automation.events.triggers.rows import Capture
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.queues.models import Action
from tests.apps.captured.models import Note, Parcel
from tests.support.captured_writes import outbox

pytestmark = pytest.mark.django_db(transaction=True)

NOTE = Capture.of(Note)


@pytest.fixture(autouse=True)
def restored():
    """Install all triggers again after the test."""
    yield
    with connection.schema_editor() as editor:
        for each in needed_captures():
            install(each, editor)


def run(operation, *, backwards: bool = False) -> None:
    migration, state = migrations.Migration("0002_more", "captured"), ProjectState.from_apps(apps)
    migration.operations = [operation]
    with connection.schema_editor(atomic=migration.atomic) as editor:
        (migration.unapply if backwards else migration.apply)(state, editor)


def test_the_suites_own_tables_are_captured():
    assert {installation_of(each, connection) for each in needed_captures()} == {Installation.CURRENT}


# -- operations --------------------------------------------------------------------------------------------------------


def test_operations_remove_and_install_the_triggers():
    run(StopCapturingWrites("captured.Note"))
    assert installation_of(NOTE, connection) is Installation.MISSING
    Note.objects.bulk_create([Note(pk=1)])
    assert outbox() == []
    run(CaptureWrites("captured.note"))
    assert installation_of(NOTE, connection) is Installation.CURRENT
    Note.objects.bulk_create([Note(pk=2)])
    assert outbox() == [("note", "2", "insert")]


def test_operations_can_be_reversed():
    run(CaptureWrites("captured.Note"), backwards=True)
    assert installation_of(NOTE, connection) is Installation.MISSING
    run(StopCapturingWrites("captured.Note"), backwards=True)
    assert installation_of(NOTE, connection) is Installation.CURRENT


def test_an_operation_is_written_as_it_was():
    operation = CaptureWrites("captured.Note")
    name, args, kwargs = operation.deconstruct()
    assert (name, args, kwargs) == ("CaptureWrites", ["captured.Note"], {})
    assert operation.describe() == "Capture writes to the table of captured.Note"
    assert operation.migration_name_fragment == "capture_writes_note"


@pytest.mark.parametrize("label", ["Note", "a.b.c", Note])
def test_an_operation_takes_the_label_of_a_model(label):
    with pytest.raises(DefinitionError, match=r"bookings\.Reservation"):
        CaptureWrites(label)


def test_an_operation_without_its_dependencies_says_so():
    with connection.schema_editor() as editor, pytest.raises(DefinitionError, match="automation_events"):
        CaptureWrites("captured.Note").database_forwards("captured", editor, ProjectState(), ProjectState())


def test_sqlmigrate_prints_the_triggers():
    state = ProjectState.from_apps(apps)
    with connection.schema_editor(collect_sql=True) as editor:
        CaptureWrites("captured.Note").database_forwards("captured", editor, state, state)
    assert sum(" TRIGGER " in each and each.startswith("CREATE") for each in editor.collected_sql) == 3


# -- migrate -----------------------------------------------------------------------------------------------------------


def migrated() -> None:
    installation.after_migrate(None, connection.alias, plan=[])


def test_migrate_replaces_triggers_that_are_not_current():
    with connection.schema_editor() as editor:
        editor.execute("DROP TRIGGER " + trigger_to_drop())
    assert installation_of(NOTE, connection) is Installation.OUTDATED
    migrated()
    assert installation_of(NOTE, connection) is Installation.CURRENT


def trigger_to_drop() -> str:
    quote = connection.ops.quote_name
    if connection.vendor == "postgresql":
        return f"automation_capture_update ON {quote(Note._meta.db_table)}"
    return quote(f"{NOTE.name}_update")


def test_migrate_installs_nothing_where_a_migration_does(monkeypatch):
    run(StopCapturingWrites("captured.Note"))
    monkeypatch.setattr(MigrationLoader, "load_disk", load_with({"captured": []}))
    migrated()
    assert installation_of(NOTE, connection) is Installation.MISSING


@pytest.mark.parametrize("is_applied", [True, False])
def test_migrate_installs_again_what_a_migration_has_installed(monkeypatch, is_applied):
    run(StopCapturingWrites("captured.Note"))
    monkeypatch.setattr(MigrationLoader, "load_disk", load_with({"captured": [CaptureWrites("captured.Note")]}))
    if is_applied:
        MigrationRecorder(connection).record_applied("captured", "0001_initial")
    try:
        migrated()
        assert installation_of(NOTE, connection) is (Installation.CURRENT if is_applied else Installation.MISSING)
    finally:
        MigrationRecorder(connection).record_unapplied("captured", "0001_initial")


def test_migrate_removes_what_no_migration_can_remove(declare, monkeypatch):
    declare(Note, EventDefinition("note_written"))
    with monkeypatch.context() as patch:
        patch.setattr(MigrationLoader, "load_disk", load_with({"captured": []}))
        migrated()
        assert installation_of(NOTE, connection) is Installation.CURRENT  # that is for StopCapturingWrites
    migrated()
    assert installation_of(NOTE, connection) is Installation.MISSING


def test_migrate_leaves_what_is_current_alone(monkeypatch):
    monkeypatch.setattr(installation, "install", lambda *args: pytest.fail("installed again"))
    migrated()


def test_a_table_that_django_does_not_manage_can_be_captured(monkeypatch):
    monkeypatch.setitem(Note._meta.original_attrs, "managed", False)
    run(StopCapturingWrites("captured.Note"))
    assert installation_of(NOTE, connection) is Installation.MISSING
    run(CaptureWrites("captured.Note"))
    assert installation_of(NOTE, connection) is Installation.CURRENT


def test_a_database_without_an_outbox_gets_no_triggers(monkeypatch):
    class Elsewhere:
        def allow_migrate(self, db, app_label, **hints):
            return app_label == "captured"

    run(StopCapturingWrites("captured.Note"))
    monkeypatch.setattr(router, "routers", [Elsewhere()])
    run(CaptureWrites("captured.Note"))
    assert installation_of(NOTE, connection) is Installation.MISSING


def test_a_flush_forgets_what_it_has_deleted():
    Parcel.objects.bulk_create([Parcel()])
    installation.after_migrate(None, connection.alias)
    assert len(outbox()) == 1  # not a flush: there are rows
    Parcel.objects.all()._raw_delete(connection.alias)
    Event.objects.all().delete()
    installation.after_migrate(None, connection.alias)
    assert outbox() == []


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_shows_the_state_of_each_table():
    out = StringIO()
    call_command("automation_capture", stdout=out)
    assert "captured.Note (captured_note): current" in out.getvalue()
    run(StopCapturingWrites("captured.Note"))
    out = StringIO()
    with pytest.raises(CommandError, match="--migration APP") as raised:
        call_command("automation_capture", stdout=out)
    assert raised.value.returncode == 1
    assert "captured.Note (captured_note): missing" in out.getvalue()


def load_with(apps_with_migrations: dict[str, list[object]]):
    """Return a ``load_disk`` for which these apps have migrations with these operations, besides those of the package
    and the models that they refer to."""
    original = MigrationLoader.load_disk

    def load_disk(loader) -> None:
        original(loader)
        for label, operations in apps_with_migrations.items():
            migration = type("Migration", (migrations.Migration,), {"operations": operations})("0001_initial", label)
            migration.dependencies = [("automation_events", "0001_initial")]
            loader.unmigrated_apps.discard(label)
            loader.migrated_apps.add(label)
            loader.disk_migrations[label, "0001_initial"] = migration

    return load_disk


def test_the_migration_captures_what_no_migration_captures(monkeypatch):
    existing = [CaptureWrites("captured.Parcel"), CaptureWrites("captured.Old"), StopCapturingWrites("captured.Shelf")]
    monkeypatch.setattr(MigrationLoader, "load_disk", load_with({"captured": existing}))
    loader = MigrationLoader(None, ignore_no_migrations=True)
    changes = missing_changes(loader)
    assert sorted(changes.capture) == [
        "captured.Cabinet",
        "captured.Everything",
        "captured.Note",
        "captured.Shelf",
        "captured.Slot",
    ]
    assert changes.stop == []  # there is no model Old
    written = new_migration(loader, "captured", changes).as_string()
    assert "CaptureWrites(\n" in written or 'CaptureWrites("captured.Note")' in written.replace("'", '"')
    assert "('automation_events', '0001_initial')" in written
    assert "('captured', '0001_initial')" in written
    namespace: dict[str, object] = {}
    exec(written, namespace)
    assert namespace["Migration"].operations[0].label == changes.capture[0].lower()  # type: ignore[attr-defined]


def test_the_migration_stops_what_is_no_longer_captured(monkeypatch, declare):
    create = migrations.CreateModel("Gone", [("id", models.BigAutoField(primary_key=True))])
    existing = [create, *(CaptureWrites(each.model._meta.label) for each in needed_captures())]
    rename = [CaptureWrites("captured.Gone"), migrations.RenameModel("Gone", "Renamed")]
    monkeypatch.setattr(MigrationLoader, "load_disk", load_with({"captured": [*existing, *rename]}))
    loader = MigrationLoader(None, ignore_no_migrations=True)
    changes = missing_changes(loader)
    assert (changes.capture, changes.stop) == ([], ["captured.renamed"])
    assert "StopCapturingWrites" in new_migration(loader, "captured", changes).as_string()


def test_the_command_writes_the_migration(monkeypatch, tmp_path):
    folder = tmp_path / "captured_app_migrations"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(MigrationLoader, "load_disk", load_with({"captured": []}))
    monkeypatch.setattr("django.conf.settings.MIGRATION_MODULES", {"captured": folder.name})
    out = StringIO()
    call_command("automation_capture", "--migration", "captured", "--dry-run", stdout=out)
    assert "CaptureWrites" in out.getvalue()
    assert [path.name for path in folder.glob("0*")] == []
    call_command("automation_capture", "--migration", "captured", stdout=StringIO())
    assert [path.name for path in folder.glob("0*")] == ["0002_capture_writes.py"]
    assert "CaptureWrites" in (folder / "0002_capture_writes.py").read_text()
    action = Action.objects.get()
    assert (action.done, action.key) == ("Added", "captured")
    assert action.what == "migration captured.0002_capture_writes, which captures writes"


def test_the_command_refuses_what_it_cannot_do(monkeypatch):
    with pytest.raises(CommandError, match="needs --migration"):
        call_command("automation_capture", "--dry-run")
    monkeypatch.setattr(MigrationLoader, "load_disk", load_with({"captured": []}))
    with pytest.raises(CommandError, match=r"'captures' has no migrations\. Did you mean 'captured'"):
        call_command("automation_capture", "--migration", "captures")
    with pytest.raises(CommandError, match=r"'x' has no migrations\. Name one of: admin, auth"):
        call_command("automation_capture", "--migration", "x")


def test_apps_without_migrations_need_none():
    out = StringIO()
    call_command("automation_capture", "--migration", "captured", stdout=out)
    assert "install all triggers" in out.getvalue()


# -- checks ------------------------------------------------------------------------------------------------------------


def ids_of(problems) -> list[str]:
    return [each.id for each in problems]


def test_w142_triggers_are_missing():
    assert check_triggers(None, databases=[connection.alias]) == []
    run(StopCapturingWrites("captured.Note"))
    assert ids_of(check_triggers(None, databases=[connection.alias])) == ["automation.W142"]
    assert check_triggers(None, databases=None) == []


def test_w145_no_migration_installs_the_triggers(monkeypatch):
    installed = [CaptureWrites(each.model._meta.label) for each in needed_captures() if each.model is not Note]
    monkeypatch.setattr(MigrationLoader, "load_disk", load_with({"captured": installed}))
    (problem,) = check_captures(None)
    assert (problem.id, problem.obj) == ("automation.W145", Note)
    assert "automation_capture --migration APP" in problem.hint
    assert check_captures(None, databases=[connection.alias]) == []  # the database says it: W142
    monkeypatch.setattr(
        MigrationLoader, "load_disk", load_with({"captured": [*installed, CaptureWrites("captured.Note")]})
    )
    assert check_captures(None) == []


def test_w145_leaves_migrations_that_cannot_be_read_to_django(monkeypatch):
    def load_disk(loader) -> None:
        raise BadMigrationError("no class Migration")

    monkeypatch.setattr(MigrationLoader, "load_disk", load_disk)
    assert check_captures(None) == []


def test_w143_triggers_are_not_current():
    with connection.schema_editor() as editor:
        editor.execute("DROP TRIGGER " + trigger_to_drop())
    (problem,) = check_triggers(None, databases=[connection.alias])
    assert problem.id == "automation.W143"
    assert "migrate" in problem.hint


def test_w144_triggers_that_no_event_needs(declare):
    declare(Note, EventDefinition("note_written"))
    (problem,) = check_triggers(None, databases=[connection.alias])
    assert problem.id == "automation.W144"
    assert "captured_note" in problem.msg


@isolate_apps("tests.apps.captured")
def test_e140_and_e141_a_key_that_triggers_cannot_write(monkeypatch):
    class Dated(models.Model):
        day = models.DateField(primary_key=True)
        events = [EventDefinition("dated", capture=True)]

        class Meta:
            app_label = "captured"

    class Base(models.Model):
        class Meta:
            app_label = "captured"

    class Child(Base):
        number = models.IntegerField(primary_key=True)
        link = models.OneToOneField(Base, models.CASCADE, parent_link=True)
        events = [EventDefinition("child", capture=True)]

        class Meta:
            app_label = "captured"

    monkeypatch.setattr("django_ai.automation.events.checks.captured_models", lambda: [Dated, Child])
    assert ids_of(check_captures(None)) == ["automation.E141", "automation.E140"]


def test_the_suites_own_models_can_be_captured():
    assert check_captures(None) == []
