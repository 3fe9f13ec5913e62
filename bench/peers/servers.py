"""The servers of the contestants: one PostgreSQL with a database for each of them, and a Redis."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from tests.support.databases import postgresql
from tools.postgres import NoServerError, server

SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size")


class PostgreSQL:
    """The one server of all contestants. Each has a database of its own."""

    def __init__(self) -> None:
        found = postgresql()
        self.admin = {
            key: found[name]
            for key, name in (("host", "HOST"), ("port", "PORT"), ("user", "USER"), ("password", "PASSWORD"))
            if found[name]
        }

    def _execute(self, *statements: str) -> list[Any]:
        import psycopg

        with psycopg.connect(**self.admin, dbname="postgres", autocommit=True) as connection:
            for each in statements[:-1]:
                connection.execute(each)
            cursor = connection.execute(statements[-1])
            return cursor.fetchall() if cursor.description else []

    def describe(self) -> dict[str, str]:
        return {name: str(self._execute(f"SHOW {name}")[0][0]) for name in SETTINGS}

    def create(self, name: str) -> None:
        self.drop(name)
        self._execute(f'CREATE DATABASE "{name}"')

    def drop(self, name: str) -> None:
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def checkpoint(self) -> None:
        """Write everything to disk, so that one contestant does not pay for what another has written."""
        self._execute("CHECKPOINT")

    def environment(self, database: str) -> dict[str, str]:
        """Return the variables of libpq for a database."""
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
        return {"PGDATABASE": database, **{names[key]: value for key, value in self.admin.items()}}


@contextlib.contextmanager
def postgresql_server() -> Iterator[PostgreSQL]:
    """Yield the server that the environment names, or a temporary one.

    Raises:
        NoServerError: With the reason.
    """
    with server() as environment:
        os.environ.update(environment)
        found = PostgreSQL()
        if found.describe()["fsync"] != "on":
            raise NoServerError("The PostgreSQL server runs with fsync off: its figures would mean nothing.")
        yield found


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Yield the address of the Redis that ``PEERS_REDIS_URL`` names, or of a temporary one with default settings.

    Raises:
        NoServerError: With the reason.
    """
    if named := os.environ.get("PEERS_REDIS_URL"):
        yield named
        return
    if not shutil.which("redis-server"):
        raise NoServerError("No Redis: set PEERS_REDIS_URL, or install redis-server.")
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder], stdout=subprocess.DEVNULL
        )
        try:
            _await_port(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait(10)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise NoServerError(f"redis-server does not answer: {error}") from error
            time.sleep(0.05)
