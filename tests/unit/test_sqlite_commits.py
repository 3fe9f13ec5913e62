"""``SqliteCommits``: a sleep beside a SQLite file ends when another connection commits. Files of the tests' own."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from contextlib import closing

import pytest
from django.db import DatabaseError, connections

from django_ai.automation.db import inotify, sqlite_commits
from django_ai.automation.db.notifications import Listener
from django_ai.automation.db.sqlite_commits import SqliteCommits

pytestmark = pytest.mark.timeout(60)

ALIAS = "scratch"
LONG_SECONDS = 20
SHORT_SECONDS = 0.05
MODES = ["wal", "delete"]
needs_inotify = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has inotify")


def connect(name):
    """Make a connection of this thread to the SQLite database ``name``, under an alias that no setting names."""
    databases = {"default": {}, ALIAS: {"ENGINE": "django.db.backends.sqlite3", "NAME": name}}
    connections[ALIAS] = type(connections)(databases).create_connection(ALIAS)


@pytest.fixture
def path(tmp_path, django_db_blocker):
    """The path of a database with write-ahead log and a table, to which this thread has a connection."""
    path = tmp_path / "data.sqlite3"
    create(path)
    with django_db_blocker.unblock():
        connect(path)
        yield path
        connections[ALIAS].close()
    del connections[ALIAS]


@pytest.fixture
def commits(path):
    """What waits for commits to ``path``, prepared."""
    commits = SqliteCommits(ALIAS)
    commits.prepare()
    yield commits
    commits.close()


@pytest.fixture(params=["inotify", "intervals"])
def way(request, monkeypatch):
    """Wait with inotify, and at fixed intervals as where there is none."""
    if request.param == "intervals":
        monkeypatch.setattr(inotify, "_library", refuse)
    elif sys.platform != "linux":
        pytest.skip("only Linux has inotify")
    return request.param


def refuse():
    raise OSError("no inotify")


def create(path, mode="wal"):
    with closing(sqlite3.connect(path)) as raw:
        raw.execute(f"PRAGMA journal_mode = {mode}")
        raw.execute("CREATE TABLE IF NOT EXISTS note (text)")
        raw.commit()


def write(path):
    """Commit a row, as a program would that knows nothing of this package."""
    with closing(sqlite3.connect(path, timeout=30)) as raw, raw:
        raw.execute("INSERT INTO note VALUES ('x')")


@pytest.mark.parametrize("mode", MODES)
def test_a_commit_of_another_connection_ends_the_sleep(way, path, mode):
    create(path, mode)
    commits = SqliteCommits(ALIAS)
    for _ in range(3):
        commits.prepare()
        while commits.wait(SHORT_SECONDS):  # what was committed before
            pass
        thread = threading.Timer(SHORT_SECONDS, write, [path])
        thread.start()
        assert commits.wait(LONG_SECONDS)
        thread.join()
    commits.close()


def test_a_commit_after_the_preparation_is_reported_although_nobody_waited_yet(way, commits, path):
    write(path)
    assert commits.wait(LONG_SECONDS)
    assert not commits.wait(SHORT_SECONDS)  # once


@pytest.mark.parametrize("mode", MODES)
def test_commits_of_the_own_connection_are_not_reported(way, path, mode):
    create(path, mode)
    commits = SqliteCommits(ALIAS)
    commits.prepare()
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("INSERT INTO note VALUES ('own')")
    assert not commits.wait(SHORT_SECONDS)
    commits.close()


def test_sleep_discards_the_commits_until_its_end(commits, path):
    write(path)
    commits.sleep(0.0)
    assert not commits.wait(SHORT_SECONDS)


@needs_inotify
def test_a_commit_that_becomes_visible_after_its_writes_is_waited_for(commits, path, monkeypatch):
    """A commit is visible when the disk has it: then nothing is written any more that inotify could report."""
    real, asked = sqlite_commits._data_version, []

    def late(raw):
        asked.append(raw)
        return real(raw) if len(asked) > 5 else before

    assert not commits.wait(SHORT_SECONDS)
    before = real(connections[ALIAS].connection)
    monkeypatch.setattr(sqlite_commits, "_data_version", late)
    write(path)
    assert not commits._has_changed()
    assert commits.wait(LONG_SECONDS)


@needs_inotify
def test_a_long_sleep_asks_only_when_a_file_was_written_to(commits, path, monkeypatch):
    real, asked = sqlite_commits._data_version, []
    monkeypatch.setattr(sqlite_commits, "_data_version", lambda raw: asked.append(raw) or real(raw))
    assert not commits.wait(0.4)
    assert len(asked) <= 2


def test_the_file_descriptor_ends_the_sleep(way, commits):
    read_end, write_end = os.pipe()
    os.write(write_end, b"!")
    started = time.monotonic()
    assert not commits.wait(LONG_SECONDS, read_end)
    assert time.monotonic() - started < LONG_SECONDS / 2
    os.close(read_end)
    os.close(write_end)


def test_a_file_that_takes_the_place_of_the_database_is_connected_to(way, commits, path):
    other = path.with_name("other.sqlite3")
    create(other)
    write(other)
    os.replace(other, path)
    assert commits.wait(LONG_SECONDS)
    commits.prepare()
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM note")
        assert cursor.fetchone() == (1,)
    write(path)
    assert commits.wait(LONG_SECONDS)


def test_a_deleted_file_is_not_created_again(way, commits, path):
    path.unlink()
    assert not commits.wait(SHORT_SECONDS)
    commits.prepare()
    assert not commits.wait(SHORT_SECONDS)
    assert not path.exists()


def test_a_failure_of_the_database_ends_no_sleep_and_is_recovered_from(commits, path, monkeypatch):
    def fail(raw):
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_commits, "_data_version", fail)
        started = time.monotonic()
        assert not commits.wait(SHORT_SECONDS)
        commits.sleep(0.0)
        assert time.monotonic() - started >= SHORT_SECONDS
        with pytest.raises(DatabaseError, match="disk I/O error"):
            commits.prepare()
    commits.prepare()
    write(path)
    assert commits.wait(LONG_SECONDS)


def test_without_an_open_connection_it_sleeps_and_opens_none(commits, path):
    connections[ALIAS].close()
    write(path)
    started = time.monotonic()
    assert not commits.wait(SHORT_SECONDS)
    assert time.monotonic() - started >= SHORT_SECONDS
    assert connections[ALIAS].connection is None


def test_a_connection_in_a_transaction_is_not_asked(commits, path):
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("BEGIN")
        assert not commits.wait(SHORT_SECONDS)
        cursor.execute("COMMIT")


def test_beside_a_database_in_memory_it_sleeps(path):
    connections[ALIAS].close()
    connect(":memory:")
    commits = SqliteCommits(ALIAS)
    commits.prepare()
    started = time.monotonic()
    assert not commits.wait(SHORT_SECONDS)
    assert time.monotonic() - started >= SHORT_SECONDS
    connections[ALIAS].connection.close()  # Django keeps a database in memory


@needs_inotify
def test_a_forked_process_shares_no_reports_with_its_parent(commits, path, monkeypatch):
    assert not commits.wait(SHORT_SECONDS)
    of_parent = commits._inotify
    monkeypatch.setattr(sqlite_commits.os, "getpid", lambda: -1)
    assert not commits.wait(SHORT_SECONDS)
    assert commits._inotify is not of_parent
    write(path)
    assert commits.wait(LONG_SECONDS)


def test_a_listener_hears_the_commits_of_a_file(path):
    listener = Listener(ALIAS)
    assert not listener.hears_every_commit
    listener.prepare()
    assert listener.hears_every_commit
    write(path)
    assert listener.wait(LONG_SECONDS)
    write(path)
    listener.sleep(0.0)
    assert not listener.wait(SHORT_SECONDS)
    listener.close()
