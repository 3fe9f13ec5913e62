"""The database of the test suite, as the environment configures it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REDIS_URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/5")


def database_from_environment(scratch: Path) -> dict[str, Any]:
    """Return the ``DATABASES["default"]`` that ``TEST_DATABASE`` asks for.

    ``TEST_LIVE_NAME`` names an existing database. A running test sets it for the processes that it starts.
    """
    found = _named(scratch)
    if live := os.environ.get("TEST_LIVE_NAME"):
        found["NAME"] = live
    return found


def _named(scratch: Path) -> dict[str, Any]:
    kind = os.environ.get("TEST_DATABASE", "sqlite")
    if kind == "postgresql":
        return postgresql()
    if kind == "mariadb":
        return mariadb()
    file = str(scratch / "db.sqlite3")
    # A file in tests, too: processes cannot share an in-memory database, and its locks differ.
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "TEST": {"NAME": f"{file}.test"}}


def postgresql() -> dict[str, Any]:
    """Return the settings of the server that ``DATABASE_URL`` names, or else the usual ``PG*`` variables."""
    url = urlsplit(os.environ.get("DATABASE_URL", ""))
    if url.scheme in ("postgres", "postgresql"):
        query = dict(part.split("=", 1) for part in url.query.split("&") if "=" in part)
        found = {
            "HOST": unquote(url.hostname or query.get("host", "")),
            "PORT": str(url.port or query.get("port", "")),
            "USER": unquote(url.username or ""),
            "PASSWORD": unquote(url.password or ""),
            "NAME": url.path.lstrip("/") or "postgres",
        }
        found["HOST"] = unquote(query.get("host", found["HOST"]))
    else:
        found = {
            "HOST": os.environ.get("PGHOST", ""),
            "PORT": os.environ.get("PGPORT", ""),
            "USER": os.environ.get("PGUSER", ""),
            "PASSWORD": os.environ.get("PGPASSWORD", ""),
            "NAME": os.environ.get("PGDATABASE", "postgres"),
        }
    return {"ENGINE": "django.db.backends.postgresql", **found, "TEST": {"NAME": _test_name()}}


def mariadb() -> dict[str, Any]:
    """Return the settings of the server that ``MYSQL_UNIX_PORT`` (a socket) or the other ``MYSQL_*`` variables name."""
    return {
        "ENGINE": "django.db.backends.mysql",
        # Django's MySQL backend uses a host that is a path as a socket.
        "HOST": os.environ.get("MYSQL_UNIX_PORT") or os.environ.get("MYSQL_HOST", "127.0.0.1"),
        "PORT": os.environ.get("MYSQL_TCP_PORT", "3306"),
        "USER": os.environ.get("MYSQL_USER", "root"),
        "PASSWORD": os.environ.get("MYSQL_PASSWORD", ""),
        "NAME": os.environ.get("MYSQL_DATABASE", "automation"),
        "TEST": {"NAME": _test_name()},
    }


def _test_name() -> str:
    return os.environ.get("TEST_DATABASE_NAME", f"test_automation_{os.getpid()}")
