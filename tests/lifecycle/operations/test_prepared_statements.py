"""The engine's hot statements are prepared on PostgreSQL, where that can harm nobody."""

from __future__ import annotations

import threading

import pytest
from django.db import DatabaseError, ProgrammingError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext, override_settings
from django.utils import timezone

from django_ai.automation.db import prepared
from django_ai.automation.db.prepared import prepared_cursor
from django_ai.automation.exceptions import LeaseLostError
from django_ai.automation.queues.advance import advance
from django_ai.automation.queues.claim import claim, claim_rows
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.due_query import DueQuery
from django_ai.automation.queues.lanes import Lane
from django_ai.automation.workflows.core import complete, engine, goto, wait
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.support.lanes import is_look
from tests.support.marks import only_on
from tests.support.rows import effects, leave
from tests.support.workflows import flow, run

pytestmark = [
    pytest.mark.django_db(transaction=True),
    only_on("postgresql", reason="only PostgreSQL prepares"),
]

SUM = "SELECT %s + 1"


@pytest.fixture(autouse=True)
def warm(monkeypatch):
    """Give each test a session that has prepared nothing, and prepares from its second hot statement on."""
    connection.close()
    monkeypatch.setattr(prepared, "WARM_UP", 1)
    yield
    connection.close()


@pytest.fixture
def two_steps():
    def first(self):
        leave("first")
        return goto(self.second)

    def second(self):
        return complete()

    flow(first, second=second)


def statements() -> list[str]:
    """Return what this session has prepared, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement FROM pg_prepared_statements WHERE from_sql ORDER BY prepare_time, name")
        return [statement for (statement,) in cursor.fetchall()]


def given(sql: str, *params: object) -> object:
    """Execute a hot statement, and return what it returns."""
    with prepared_cursor(connection) as cursor:
        cursor.execute(sql, params)
        (value,) = cursor.fetchone()
    return value


def elsewhere(*sqls: str) -> None:
    """Execute statements in another session."""

    def execute() -> None:
        with connection.cursor() as cursor:
            for sql in sqls:
                cursor.execute(sql)
        connections.close_all()

    thread = threading.Thread(target=execute)
    thread.start()
    thread.join(30)


@pytest.fixture
def wider():
    """Make a column of runs wider when it is called, and narrow again after the test."""
    table = f"ALTER TABLE {WorkflowRun._meta.db_table} ALTER COLUMN current_step TYPE varchar"
    length = WorkflowRun._meta.get_field("current_step").max_length
    yield lambda: elsewhere(f"{table}({length + 50})")
    elsewhere(f"{table}({length})")


def test_claims_progress_and_looks_are_prepared(two_steps):
    for _ in range(2):
        run(drain)
    sqls = " ".join(statements())
    for part in ("WITH due AS", "WITH kept AS (UPDATE"):
        assert part in sqls
    assert is_look(sqls)


def test_every_hot_statement_can_be_prepared(two_steps):
    """A statement that fails as a prepared one would be sent as it is, and nobody would notice."""

    def listens(self):
        return wait("word", then=self.done)

    def done(self):
        return complete()

    flow(listens, name="listens", done=done)
    now = timezone.now()
    for _ in range(2):
        waiting = run(drain, name="listens")
        engine.signal("word", {})
        run(drain)
        look = DueQuery(connection)
        look.add_lane(1, Lane(WorkflowRun, "mail", 3), now)
        look.add_lane(2, Lane(WorkflowRun), now)
        look.add_all_lanes(3, WorkflowRun)
        look.execute()
        claim(WorkflowRun, now, 1, now, "mail", 3)
        claim_rows(WorkflowRun, [waiting.pk, waiting.pk + 70_000], now)
    calls = prepared._sessions[connection.connection]._calls
    assert len(calls) > 6
    assert [sql for sql, (call, _) in calls.items() if call is None] == []


def inserts() -> list[str]:
    return [each for each in statements() if 'INSERT INTO "automation_workflows_workflowrun"' in each]


@pytest.mark.parametrize("key", [None, "order:%d"])
def test_starts_outside_of_a_transaction_are_prepared(two_steps, key):
    given(SUM, 1)
    keys = [{"key": key % number} if key else {} for number in range(5)]
    runs = [engine.start("flow", **keys[number]) for number in range(2)]
    before = inserts()  # what this process knows of positions may have changed in between
    runs += [engine.start("flow", **keys[number]) for number in range(2, 4)]
    assert before
    assert inserts() == before
    if key:
        assert [engine.start("flow", **keys[number]).pk for number in range(4)] == [run.pk for run in runs]
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
    runs.append(engine.start("flow", **keys[4]))
    drain()
    assert list(WorkflowRun.objects.order_by("pk").values_list("pk", "status")) == [
        (run.pk, "completed") for run in runs
    ]


def test_starts_in_a_transaction_are_not_prepared(two_steps):
    given(SUM, 1)
    with transaction.atomic():
        started = [engine.start("flow"), engine.start("flow", key="order:1")]
    assert inserts() == []
    assert WorkflowRun.objects.count() == len(started)


def test_columns_that_change_between_two_starts(two_steps, wider):
    given(SUM, 1)
    started = [engine.start("flow") for _ in range(2)]
    wider()
    started += [engine.start("flow") for _ in range(2)]
    assert WorkflowRun.objects.count() == len(started)


def test_statements_of_others_and_options_are_left_alone(two_steps):
    connection.ensure_connection()
    raw = connection.connection
    before = raw.cursor_factory, raw.prepare_threshold
    for _ in range(2):
        run(drain)
    assert connection.connection is raw
    assert (raw.cursor_factory, raw.prepare_threshold) == before
    with connection.cursor() as cursor:
        for _ in range(10):
            cursor.execute(SUM, [1])
    assert not any(SUM[:6] == statement[:6] and "+ 1" in statement for statement in statements())


def test_wrappers_see_the_statement_itself():
    seen = []

    def note(execute, sql, params, many, context):
        seen.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        assert [given(SUM, number) for number in range(4)] == [1, 2, 3, 4]
    assert seen == [(SUM, (number,)) for number in range(4)]
    assert len(statements()) == 1


def test_the_query_log_has_the_statement_itself():
    given(SUM, 1)
    given(SUM, 1)
    with CaptureQueriesContext(connection) as captured:
        assert [given(SUM, number) for number in range(4)] == [1, 2, 3, 4]
    assert [each["sql"] for each in captured] == [f"SELECT {number} + 1" for number in range(4)]


def test_not_in_a_transaction(two_steps):
    with transaction.atomic():
        assert [given(SUM, number) for number in range(4)] == [1, 2, 3, 4]
    assert statements() == []


def test_not_in_a_transaction_that_django_did_not_open():
    given(SUM, 1)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        given(SUM, 1)
        cursor.execute("ROLLBACK")
    assert statements() == []


def test_not_on_a_connection_that_is_closed_soon(monkeypatch):
    monkeypatch.setattr(prepared, "WARM_UP", 3)
    for _ in range(3):
        given(SUM, 1)
    assert statements() == []
    given(SUM, 1)
    assert len(statements()) == 1


def test_not_with_a_cursor_class_of_the_project():
    connection.ensure_connection()

    class Counting(connection.connection.cursor_factory):
        pass

    connection.connection.cursor_factory = Counting
    for _ in range(4):
        with prepared_cursor(connection) as cursor:
            assert isinstance(cursor.cursor, Counting)
            cursor.execute(SUM, [1])
    assert statements() == []


def test_not_if_a_setting_says_so():
    with override_settings(AUTOMATION={"PREPARED_STATEMENTS": False}):
        for _ in range(4):
            given(SUM, 1)
    assert statements() == []


@pytest.mark.parametrize("options", [{"server_side_binding": True}, {"prepare_threshold": 0}])
def test_with_options_of_the_project(options, two_steps):
    connection.settings_dict["OPTIONS"] |= options
    try:
        for _ in range(2):
            assert run(drain).status == "completed"
        assert any("WITH kept AS" in statement for statement in statements())
    finally:
        for name in options:
            del connection.settings_dict["OPTIONS"][name]


@pytest.mark.parametrize("statement", ["DISCARD ALL", "DEALLOCATE ALL"])
def test_what_user_code_deallocates_is_prepared_again(statement):
    for number in range(3):
        assert given(SUM, number) == number + 1
    with connection.cursor() as cursor:
        cursor.execute(statement)
    assert [given(SUM, number) for number in range(3)] == [1, 2, 3]
    assert len(statements()) == 1


def test_a_session_that_keeps_losing_its_statements_prepares_no_more(two_steps):
    for number in range(2 * prepared.MAX_DEALLOCATED + 4):
        assert given(SUM, number) == number + 1
        with connection.cursor() as cursor:
            cursor.execute("DEALLOCATE ALL")
    given(SUM, 1)
    given(SUM, 1)
    assert statements() == []
    assert run(drain).status == "completed"


def test_columns_that_change_while_a_worker_lives(two_steps, wider):
    for _ in range(2):
        run(drain)
    wider()
    assert run(drain).status == "completed"
    assert run(drain).status == "completed"
    assert set(StepExecution.objects.values_list("attempt", flat=True)) == {1}


def test_columns_that_change_inside_a_transaction_of_a_step(wider):
    """The claim is prepared, then a step writes, and its progress is in the same transaction."""
    altered = []

    def first(self):
        leave("first")
        if len(effects()) == 3 and not altered:
            altered.append(True)
            with connection.cursor() as cursor:  # in this transaction: another session would wait for its locks
                cursor.execute(f"ALTER TABLE {WorkflowRun._meta.db_table} ALTER COLUMN current_step TYPE varchar(190)")
        return goto(self.second)

    def second(self):
        return complete()

    flow(first, second=second)
    for _ in range(5):
        assert run(drain).status == "completed"
    assert altered
    assert len(effects()) == 5
    assert set(StepExecution.objects.values_list("attempt", flat=True)) == {1}


def test_a_column_that_is_added_while_a_worker_lives(two_steps):
    table = f"ALTER TABLE {WorkflowRun._meta.db_table}"
    for _ in range(2):
        run(drain)
    elsewhere(f"{table} ADD COLUMN later integer")
    try:
        assert run(drain).status == "completed"
        calls = prepared._sessions[connection.connection]._calls
        assert all(call for call, _ in calls.values())
    finally:
        elsewhere(f"{table} DROP COLUMN later")


def test_a_lease_that_was_lost_is_noticed(two_steps):
    for _ in range(2):
        run(drain)
    started = engine.start("flow")
    (row,) = claim(WorkflowRun, timezone.now(), 1)
    assert row.pk == started.pk
    row.seq += 1
    with pytest.raises(LeaseLostError):
        advance(row, {"wake_at": None, "lease": None})


def test_errors_are_those_of_django():
    for _ in range(3):
        given(SUM, 1)
    with pytest.raises(DatabaseError) as found:
        given("SELECT 1 / %s", 0)
    assert found.value.__cause__.sqlstate == "22012"
    with pytest.raises(ProgrammingError):
        given("SELECT * FROM nowhere WHERE id = %s", 0)
    assert connection.errors_occurred
    assert given(SUM, 5) == 6


def test_a_statement_with_a_percent_sign_is_sent_as_it_is():
    assert [given("SELECT 7 %% %s", 4) for _ in range(3)] == [3, 3, 3]
    assert statements() == []


def test_no_more_statements_than_the_limit(monkeypatch):
    monkeypatch.setattr(prepared, "MAX_STATEMENTS", 2)
    for number in range(5):
        assert given(f"SELECT %s + {number}", 1) == number + 1
    assert len(statements()) == 2


def test_one_more_replaces_one_that_was_not_used_lately(monkeypatch):
    monkeypatch.setattr(prepared, "MAX_STATEMENTS", 2)
    monkeypatch.setattr(prepared, "REPLAN_SECONDS", 0.0)
    for number in range(5):
        assert given(f"SELECT %s + {number}", 1) == number + 1
    assert [each.rpartition(" ")[2] for each in statements()] == ["3", "4"]
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
    assert given("SELECT %s + 7", 1) == 8
    assert len(statements()) == 1


def test_plans_are_renewed(monkeypatch):
    """A plan for an empty table reads a full one from its beginning to its end, until somebody analyses it."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE grown (id integer PRIMARY KEY)")
        try:
            cursor.execute("INSERT INTO grown VALUES (1)")
            cursor.execute("VACUUM ANALYZE grown")
            find = "SELECT count(*) FROM grown WHERE id = %s"
            for _ in range(10):
                assert given(find, 1) == 1  # PostgreSQL decides for a generic plan after five

            def reads_all() -> bool:
                (sql,) = [sql for sql in prepared._sessions[connection.connection]._calls if "grown" in sql]
                call, _ = prepared._sessions[connection.connection]._calls[sql]
                cursor.execute(f"EXPLAIN {call}", [1])
                return any("Seq Scan" in line for (line,) in cursor.fetchall())

            assert reads_all()
            cursor.execute("ALTER TABLE grown SET (autovacuum_enabled = false)")
            cursor.execute("INSERT INTO grown SELECT generate_series(2, 20000)")
            given(find, 1)
            later = prepared.time.monotonic() + prepared.REPLAN_SECONDS
            monkeypatch.setattr(prepared.time, "monotonic", lambda: later)
            for _ in range(10):
                given(find, 1)
            assert not reads_all()
        finally:
            monkeypatch.undo()
            cursor.execute("DROP TABLE grown")


def test_a_failed_step_keeps_what_is_prepared():
    def first(self):
        leave("first")
        if len(effects()) == 3:
            raise ValueError("once")
        return complete()

    flow(first, retry=None)
    for _ in range(2):
        run(drain)
    before = statements()
    connection.close_at = None  # as with CONN_MAX_AGE=None: otherwise the failure closes the connection
    run(drain)
    assert set(before) <= set(statements())
