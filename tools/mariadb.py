"""A MariaDB for the tests: the one that the environment names, one that answers on loopback, or one of our own.

``MYSQL_HOST`` (with ``MYSQL_TCP_PORT``) or ``MYSQL_UNIX_PORT``, ``MYSQL_USER`` and ``MYSQL_PASSWORD`` name a server.
Without them root without a password is tried on 127.0.0.1. Else one is started from Debian's package: on a socket in a
temporary directory, as long as the ``with`` block lasts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OLDEST = (10, 6)
HOW = (
    "`apt-get install mariadb-server libmariadb-dev pkg-config gcc`, and the gate starts one by itself; or name one "
    "with MYSQL_HOST, MYSQL_USER and MYSQL_PASSWORD; or `docker run -p 3306:3306 "
    "-e MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1 mariadb:10.6`"
)
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


class NoServerError(RuntimeError):
    """No MariaDB is reachable, and none could be started."""


@contextlib.contextmanager
def server() -> Iterator[dict[str, str]]:
    """Yield the environment variables that lead to a server. Raises ``NoServerError`` with the reason."""
    if "MYSQL_HOST" in os.environ or "MYSQL_UNIX_PORT" in os.environ:
        _try_to_connect({})
        yield {}
        return
    loopback = {"MYSQL_HOST": "127.0.0.1", "MYSQL_USER": "root", "MYSQL_PASSWORD": ""}
    with contextlib.suppress(NoServerError):
        _try_to_connect(loopback)
        yield loopback
        return
    with _own() as found:
        yield found


def _try_to_connect(found: dict[str, str]) -> None:
    try:
        import MySQLdb
    except ImportError as error:
        raise NoServerError(f"No driver for MariaDB: `pip install mysqlclient`; {HOW}") from error
    known = {**os.environ, **found}
    arguments: dict[str, Any] = {"user": known.get("MYSQL_USER", "root"), "password": known.get("MYSQL_PASSWORD", "")}
    if "MYSQL_UNIX_PORT" in known:
        arguments["unix_socket"] = known["MYSQL_UNIX_PORT"]
    else:
        arguments["host"], arguments["port"] = known["MYSQL_HOST"], int(known.get("MYSQL_TCP_PORT", "3306"))
    try:
        connection = MySQLdb.connect(connect_timeout=5, **arguments)
    except MySQLdb.Error as error:
        raise NoServerError(f"MariaDB does not answer: {error}; {HOW}") from error
    version = connection.get_server_info()
    connection.close()
    numbers = version.removeprefix("5.5.5-").split("-")[0].split(".")
    if "MariaDB" not in version or tuple(map(int, numbers[:2])) < OLDEST:
        raise NoServerError(f"The server that answers is {version}; needed is MariaDB 10.6 or newer.")


@contextlib.contextmanager
def _own() -> Iterator[dict[str, str]]:
    install, daemon = shutil.which("mariadb-install-db", path=SBIN), shutil.which("mariadbd", path=SBIN)
    if install is None or daemon is None:
        raise NoServerError(f"No MariaDB: {HOW}")
    folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
    log, found = folder / "log", {"MYSQL_UNIX_PORT": f"{folder}/s", "MYSQL_USER": "root", "MYSQL_PASSWORD": ""}
    common = ["--no-defaults", f"--datadir={folder}/data"]
    if os.geteuid() == 0:
        common.append(f"--user={_owner(folder)}")
    made = [install, *common, "--skip-test-db", "--auth-root-authentication-method=normal"]
    # Nothing here outlives the tests, so no commit needs to wait for the disk.
    started = [daemon, *common, f"--socket={folder}/s", "--skip-networking", "--innodb-flush-log-at-trx-commit=0"]
    process = None
    try:
        with log.open("wb") as output:
            if subprocess.run(made, stdout=output, stderr=output, check=False).returncode:
                raise NoServerError(f"mariadb-install-db failed: {_end_of(log)}")
            process = subprocess.Popen(started, stdout=output, stderr=output)
        _wait_for(process, found, log)
        yield found
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _owner(folder: Path) -> str:
    """Return a user for the server, which refuses to be root, and give it the folder."""
    import pwd

    name = next((name for name in ("mysql", "nobody") if name in {each.pw_name for each in pwd.getpwall()}), "nobody")
    shutil.chown(folder, name)
    return name


def _wait_for(process: subprocess.Popen[bytes], found: dict[str, str], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return _try_to_connect(found)
        except NoServerError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoServerError(f"mariadbd did not start: {error} {_end_of(log)}") from error
        time.sleep(0.1)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
