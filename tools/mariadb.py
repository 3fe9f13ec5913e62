"""A MariaDB server for the tests: one that the environment names, a temporary one, or one on the loopback address.

``MYSQL_HOST`` (with ``MYSQL_TCP_PORT``) or ``MYSQL_UNIX_PORT``, ``MYSQL_USER`` and ``MYSQL_PASSWORD`` name a server.
Without them, one is started from Debian's package, on a socket in a temporary directory. It never waits for the disk,
and runs until the ``with`` block ends. If the package is not installed, 127.0.0.1 is tried as root without a password.
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

OLDEST_VERSION = (10, 6)
HOW_TO_START = (
    "Run `apt-get install mariadb-server libmariadb-dev pkg-config gcc`, and the gate starts a server; or "
    "name a server with MYSQL_HOST, MYSQL_USER and MYSQL_PASSWORD; or run `docker run -p 3306:3306 "
    "-e MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1 mariadb:10.6`."
)
LIKE_DEBIAN = ("--character-set-server=utf8mb4", "--collation-server=utf8mb4_general_ci")
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


class NoServerError(RuntimeError):
    """No MariaDB is reachable, and none could be started."""


@contextlib.contextmanager
def server() -> Iterator[dict[str, str]]:
    """Yield the environment variables to reach a server. Raises ``NoServerError`` with the reason."""
    if "MYSQL_HOST" in os.environ or "MYSQL_UNIX_PORT" in os.environ:
        _try_to_connect({})
        yield {}
        return
    if _programs() is None:
        loopback = {"MYSQL_HOST": "127.0.0.1", "MYSQL_USER": "root", "MYSQL_PASSWORD": ""}
        _try_to_connect(loopback)
        yield loopback
        return
    with _temporary_server() as found:
        yield found


def _programs() -> tuple[str, str] | None:
    """Return the programs that create and run a server, or None if they are not installed."""
    install, daemon = shutil.which("mariadb-install-db", path=SEARCH_PATH), shutil.which("mariadbd", path=SEARCH_PATH)
    return (install, daemon) if install and daemon else None


def _try_to_connect(found: dict[str, str]) -> None:
    try:
        import MySQLdb
    except ImportError as error:
        raise NoServerError(
            f"MariaDB's driver is not installed: run `pip install mysqlclient`. {HOW_TO_START}"
        ) from error
    variables = {**os.environ, **found}
    arguments: dict[str, Any] = {
        "user": variables.get("MYSQL_USER", "root"),
        "password": variables.get("MYSQL_PASSWORD", ""),
    }
    if "MYSQL_UNIX_PORT" in variables:
        arguments["unix_socket"] = variables["MYSQL_UNIX_PORT"]
    else:
        arguments["host"], arguments["port"] = variables["MYSQL_HOST"], int(variables.get("MYSQL_TCP_PORT", "3306"))
    try:
        connection = MySQLdb.connect(connect_timeout=5, **arguments)
    except MySQLdb.Error as error:
        raise NoServerError(f"MariaDB does not answer: {error}. {HOW_TO_START}") from error
    version = connection.get_server_info()
    connection.close()
    numbers = version.removeprefix("5.5.5-").split("-")[0].split(".")
    if "MariaDB" not in version or tuple(map(int, numbers[:2])) < OLDEST_VERSION:
        raise NoServerError(f"The server is {version}, but the tests need MariaDB 10.6 or newer.")


@contextlib.contextmanager
def _temporary_server() -> Iterator[dict[str, str]]:
    programs = _programs()
    if programs is None:
        raise NoServerError(f"MariaDB is not installed. {HOW_TO_START}")
    install, daemon = programs
    folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
    log, found = folder / "log", {"MYSQL_UNIX_PORT": f"{folder}/s", "MYSQL_USER": "root", "MYSQL_PASSWORD": ""}
    common = ["--no-defaults", f"--datadir={folder}/data"]
    if os.geteuid() == 0:
        common.append(f"--user={_owner(folder)}")
    create = [install, *common, "--skip-test-db", "--auth-root-authentication-method=normal"]
    # The data is deleted after the tests, so nothing needs to wait for the disk.
    careless = ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--innodb-flush-method=nosync"]
    start = [daemon, *common, f"--socket={folder}/s", "--skip-networking", "--sync-frm=0", *careless, *LIKE_DEBIAN]
    process = None
    try:
        with log.open("wb") as output:
            if subprocess.run(create, stdout=output, stderr=output, check=False).returncode:
                raise NoServerError(f"mariadb-install-db failed: {_tail_of(log)}")
            process = subprocess.Popen(start, stdout=output, stderr=output)
        _wait_for(process, found, log)
        yield found
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _owner(folder: Path) -> str:
    """Make a user that is not root the owner of the folder, and return its name: MariaDB refuses to run as root."""
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
                raise NoServerError(f"mariadbd did not start: {error} {_tail_of(log)}") from error
        time.sleep(0.1)


def _tail_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
