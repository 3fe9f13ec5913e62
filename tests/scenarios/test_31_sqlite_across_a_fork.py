"""SQLite and forks: a process that forks closes its connections to SQLite first, in every runtime.

Django 6.1 opens a connection when it checks models (for JSON fields), also in the command that then forks a cluster.
The forked workers relied on locks that a fork does not copy: the first web process that closed the database deleted the
write-ahead log that they still used. From then on, they and all other processes did not see each other's writes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from django.db import connections

from django_ai.automation.workflows.models import WorkflowRun
from tests.support.child_processes import children_of, qcluster, run_script
from tests.support.marks import only_on
from tests.support.polling import until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(180),
    only_on("sqlite", reason="only SQLite fails like this"),
]

FORKS = """
import multiprocessing, os
from django.db import connection
from tests.apps.reservations.models import Reservation

fork = multiprocessing.get_context("fork")

def held():
    folder = f"/proc/{os.getpid()}/fd"
    paths = [os.readlink(f"{folder}/{each}") for each in os.listdir(folder) if os.path.islink(f"{folder}/{each}")]
    return [path for path in paths if ".sqlite3" in path]

def child(queue):
    queue.put(held())
"""


def test_31_no_connection_crosses_a_fork():
    done = run_script(
        FORKS
        + """
Reservation.objects.count()
assert held(), "the parent has the file open"
queue = fork.Queue()
process = fork.Process(target=child, args=(queue,))
process.start()
assert queue.get(timeout=30) == []
process.join()
assert Reservation.objects.count() == 0  # the parent connects again
"""
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_31_a_child_that_could_corrupt_the_file_is_refused():
    """If another thread of the parent uses SQLite during the fork, a query of the child raises an error."""
    done = run_script(
        FORKS
        + """
import threading
from django_ai.automation.exceptions import ForkedConnectionError

opened, end = threading.Event(), threading.Event()

def other():
    Reservation.objects.count()
    opened.set()
    end.wait(30)
    connection.close()

def refused(queue):
    try:
        Reservation.objects.count()
    except ForkedConnectionError as error:
        queue.put(str(error))
    else:
        queue.put("it was not refused")

thread = threading.Thread(target=other)
thread.start()
opened.wait(30)
queue = fork.Queue()
process = fork.Process(target=refused, args=(queue,))
process.start()
said = queue.get(timeout=30)
end.set()
thread.join()
process.join()
assert ".sqlite3" in said and "spawn" in said, said
process = fork.Process(target=lambda: Reservation.objects.create(note="later"))
process.start()
process.join()
assert process.exitcode == 0  # nobody had it open any more
assert Reservation.objects.get().note == "later"
""",
        before="import warnings; warnings.simplefilter('ignore')",
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_31_a_worker_that_waits_for_commits_lends_nothing_to_a_child():
    """The connection on which a worker asks for commits is closed before a fork; the child waits on its own."""
    done = run_script(
        FORKS
        + """
from django_ai.automation.db.notifications import Listener

listener = Listener("default")
listener.prepare()
assert not listener.wait(0.05)
assert held(), "the parent has the file open"

def hear(queue):
    queue.put(held())
    listener.prepare()
    queue.put("prepared")
    queue.put(listener.wait(30))
    connection.close()

queue = fork.Queue()
process = fork.Process(target=hear, args=(queue,))
process.start()
assert queue.get(timeout=30) == []
assert queue.get(timeout=30) == "prepared"
listener.prepare()
other = connection.copy()
with other.cursor() as cursor:
    cursor.execute("UPDATE automation_workflows_workflowrun SET name = name")
    cursor.execute("CREATE TABLE proof (number integer)")
    cursor.execute("DROP TABLE proof")
other.close()
assert listener.wait(30)
assert queue.get(timeout=30) is True
process.join()
""",
        before="import warnings; warnings.simplefilter('ignore')",
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_31_apps_that_are_made_ready_again_hang_no_fork():
    done = run_script(
        FORKS
        + """
import time
from django.apps import apps
apps.get_app_config("automation_queues").ready()
started = time.monotonic()
process = fork.Process(target=print)
process.start()
process.join()
assert time.monotonic() - started < 4  # no lock was waited for
"""
    )
    assert done.returncode == 0, done.stderr[-3000:]


def deleted_files_of(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    links = [os.readlink(each) for each in folder.iterdir()] if folder.exists() else []
    return [link for link in links if "sqlite3" in link and link.endswith("(deleted)")]


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists the open files of a process in /proc")
def test_31_a_cluster_hears_of_what_short_lived_processes_save(tmp_path):
    """A cluster that connects before it forks still performs the runs that short-lived processes start.

    Only Django 6.1 connects in its checks; the test connects early with every version of Django.
    """
    log = tmp_path / "q2.log"
    connections.close_all()  # a web process must be the last one to close the file
    with qcluster(log, TEST_CONNECTS_EARLY="1") as cluster:
        for _ in range(5):
            done = run_script("from django_ai.automation import engine; engine.start('story:count', steps=2)")
            assert done.returncode == 0, done.stderr[-3000:]
        completed = WorkflowRun.objects.filter(status="completed")
        until(lambda: completed.count() == 5, 30, "The work of the cluster", log)
        processes = [cluster.pid, *children_of(cluster.pid)]
        processes += [grandchild for pid in processes for grandchild in children_of(pid)]
        assert len(processes) > 3
        assert [file for pid in processes for file in deleted_files_of(pid)] == []
