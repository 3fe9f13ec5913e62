"""Scenario 22: there are more workers than database connections.

The cases are a PgBouncer in transaction mode, a small psycopg pool, and a server that accepts no more clients. Workers
poll where LISTEN does not work, wait for a free connection, and retry: no row is lost, and no attempt is used up.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import threading
import time

import pytest
from django.db import OperationalError, connection, connections

from django_ai.automation import engine
from django_ai.automation.db.notifications import Listener
from django_ai.automation.queues import heartbeat
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.notifier import WorkerNotifier, set_notifier
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.story.models import Mark
from tests.support.child_processes import automation_worker
from tests.support.marks import only_on
from tests.support.polling import until
from tests.support.services import PGBOUNCER, free_port, needs, wait_for_port

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(180),
    pytest.mark.alone,
    only_on("postgresql", reason="connection poolers are tested on PostgreSQL only"),
]


@pytest.fixture(autouse=True)
def _no_notifier_afterwards():
    yield
    set_notifier(None)


def done() -> bool:
    return not WorkflowRun.objects.unfinished().exists()


def assert_all_once(runs: int, steps: int) -> None:
    assert Mark.objects.filter(name="story:count").count() == runs * steps
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
    assert set(StepExecution.objects.values_list("outcome", "attempt")) <= {("goto", 1), ("complete", 1)}


def needs_tcp() -> None:
    """Skip on a server that listens only on a private Unix socket, which other users cannot open."""
    if "://" in os.environ.get("DATABASE_URL", "") and not os.environ.get("PGHOST"):
        pytest.skip("this PostgreSQL listens only on a Unix socket; set PGHOST and PGUSER to use a server with TCP")


@pytest.fixture
def pooled(tmp_path_factory):
    """Return the environment for processes that use this database through a PgBouncer with two connections."""
    needs("pgbouncer")
    needs_tcp()
    connection.ensure_connection()
    found = connection.connection.info
    folder, port = tmp_path_factory.mktemp("pgbouncer"), free_port()
    password = f" password={found.password}" if found.password else ""
    server = f"host={found.host} port={found.port} user={found.user}{password}"
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = {server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 100\n"
        "ignore_startup_parameters = extra_float_digits\n"
    )
    identity = {}
    if os.getuid() == 0:  # PgBouncer refuses to run as root
        nobody = pwd.getpwnam("nobody")
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)
    assert PGBOUNCER is not None
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [PGBOUNCER, str(folder / "pgbouncer.ini")], stdout=log, stderr=subprocess.STDOUT, **identity
        )
    try:
        wait_for_port(port)
        yield {"PGHOST": "127.0.0.1", "PGPORT": str(port), "DATABASE_URL": "", "PGUSER": found.user}
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def redirected(options: dict, **changes):
    """Change the settings of this process's database connection until the block ends."""
    before = dict(connection.settings_dict)
    connections.close_all()
    connection.settings_dict.update({**changes, "OPTIONS": {**before["OPTIONS"], **options}})
    try:
        yield
    finally:
        if hasattr(connection, "close_pool"):
            connection.close()
            connection.close_pool()
        connection.settings_dict.clear()
        connection.settings_dict.update(before)


def test_22_more_workers_than_pgbouncer_has_connections(tmp_path, pooled):
    set_notifier(WorkerNotifier())
    log = tmp_path / "worker.log"
    runs = [engine.start("story:count", steps=5) for _ in range(30)]
    with automation_worker(log, "--processes", "4", "--poll", "0.5", **pooled):
        until(done, 90, "The end of all runs", log)
        late = engine.start("story:listen")
        until(lambda: WorkflowRun.objects.get(pk=late.pk).status == "suspended", 30, "The wait", log)
        engine.signal("story:word", {"word": "hello"})
        until(done, 30, "The wake-up", log)
    assert Mark.objects.filter(name="story:count").count() == len(runs) * 5
    assert set(StepExecution.objects.values_list("outcome", flat=True)) == {"goto", "complete", "wait"}
    assert "Traceback" not in log.read_text()


def test_22_a_listener_notices_the_pooler_and_only_sleeps(pooled):
    with redirected({}, HOST="127.0.0.1", PORT=pooled["PGPORT"], USER=pooled["PGUSER"]):
        listener = Listener("default")
        listener.wait(0.05)
        assert listener._connection is None
        assert listener._retry_at == float("inf")
    direct = Listener("default")
    direct.wait(0.05)
    assert direct._connection is not None
    direct.close()


def test_22_nothing_is_prepared_behind_the_pooler(pooled):
    def prepared_after_a_drain() -> int:
        for _ in range(2):
            engine.start("story:count", steps=5)
            drain()
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_prepared_statements")
            return cursor.fetchone()[0]

    with redirected({}, HOST="127.0.0.1", PORT=pooled["PGPORT"], USER=pooled["PGUSER"]):
        assert prepared_after_a_drain() == 0
    assert prepared_after_a_drain() > 0
    assert_all_once(4, 5)


def test_22_a_pool_that_discards_what_is_prepared():
    """A pool may reset each connection that it gets back. The next thread sends its statements as they are."""
    needs("psycopg-pool")

    def reset(raw) -> None:
        raw.execute("DISCARD ALL")
        raw.commit()

    with redirected({"pool": {"min_size": 1, "max_size": 1, "reset": reset}}, CONN_MAX_AGE=0):
        for _ in range(6):
            engine.start("story:count", steps=5)
            drain()
            connection.close()
    assert_all_once(6, 5)


@pytest.mark.parametrize("size", [1, 2])
def test_22_a_pool_with_fewer_places_than_threads(size):
    """Four threads that share a smaller pool complete all runs, and every step runs once."""
    needs("psycopg-pool")
    for _ in range(12):
        engine.start("story:count", steps=5)
    failures = []

    def work() -> None:
        try:
            while True:
                try:
                    drain(heartbeat=True)
                    if done():
                        return
                except OperationalError:
                    time.sleep(0.01)  # no connection became free in time
                finally:
                    connection.close()
        except Exception as error:
            failures.append(error)

    pool = {"min_size": 1, "max_size": size, "timeout": 1}
    with redirected({"pool": pool}, CONN_MAX_AGE=0):
        connection.close()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert_all_once(12, 5)


def test_22_heartbeat_and_listen_take_no_place_in_the_pool():
    needs("psycopg-pool")
    with redirected({"pool": {"min_size": 1, "max_size": 1, "timeout": 2}}, CONN_MAX_AGE=0):
        connection.ensure_connection()  # the only connection of the pool
        listener = Listener("default")
        listener.wait(0.05)
        assert listener._connection is not None
        listener.close()
        own = heartbeat.dedicated_connection("default")
        own.ensure_connection()
        own.close()
        connection.close()


def test_22_real_seconds_the_server_takes_no_more_clients(tmp_path):
    """A worker that the server refuses at its start retries, and then performs the work that is due.

    The connection limit of the database is 0. It applies because the role of the worker is not a superuser.
    """
    needs_tcp()
    set_notifier(WorkerNotifier())
    log = tmp_path / "worker.log"
    role = connection.ops.quote_name(f"automation_few_{os.getpid()}")
    database = connection.ops.quote_name(connection.settings_dict["NAME"])

    def execute(*statements: str) -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    execute(f"CREATE ROLE {role} LOGIN PASSWORD 'few'", f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}", f"ALTER DATABASE {database} CONNECTION LIMIT 0")
    try:
        engine.start("story:count", steps=3)
        few = {"PGUSER": f"automation_few_{os.getpid()}", "PGPASSWORD": "few", "DATABASE_URL": ""}
        with automation_worker(log, **few):
            until(lambda: "could not use the database" in log.read_text(), 40, "The refusal", log)
            assert "too many connections" in log.read_text()
            assert Mark.objects.count() == 0
            execute(f"ALTER DATABASE {database} CONNECTION LIMIT -1")
            until(done, 40, "The work", log)
    finally:
        execute(f"ALTER DATABASE {database} CONNECTION LIMIT -1", f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    assert_all_once(1, 3)
