"""Database servers of a soak's own, which may be stopped at once and started again: nobody else lives on them.

They are started from the binaries of the machine, in a temporary directory, on a socket (and no port), with fsync on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class NoServerError(RuntimeError):
    """The binaries of this server are not here."""


class Server:
    """A server process. ``environment`` leads to it; ``restart`` stops it at once and starts it again."""

    user = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def environment(self) -> dict[str, str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(self.command, stdout=log, stderr=log, **self.as_user())
        deadline = time.monotonic() + 60
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"{self.command[0]} does not start: {(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(60)

    def restart(self) -> None:
        self.stop(self.at_once)
        self.start()

    at_once = signal.SIGKILL

    def as_user(self) -> dict[str, Any]:
        """Database servers refuse to run as root; return how to start one as somebody else."""
        return {"user": self.user, "group": self.user, "extra_groups": []} if os.getuid() == 0 else {}

    def run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self.as_user())
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")


class Postgres(Server):
    user = "postgres"
    at_once = signal.SIGQUIT
    """What ``pg_ctl stop -m immediate`` sends: no shutdown checkpoint, recovery at the next start."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.binaries = Path(_found("postgres", "/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")).parent
        data = str(self.folder / "data")
        self.run(str(self.binaries / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    @property
    def command(self) -> list[str]:
        data, socket = str(self.folder / "data"), str(self.folder)
        return [str(self.binaries / "postgres"), "-D", data, "-k", socket, "-c", "listen_addresses="]

    @property
    def environment(self) -> dict[str, str]:
        return {"TEST_DATABASE": "postgresql", "PGHOST": str(self.folder), "PGUSER": "postgres", "DATABASE_URL": ""}

    def answers(self) -> bool:
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", str(self.folder), "-U", "postgres"]
        return subprocess.run(ready, check=False).returncode == 0


class MariaDB(Server):
    user = "mysql"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server = _found("mariadbd", "/usr/sbin", "/usr/local/sbin")
        install = _found("mariadb-install-db", "/usr/bin", "/usr/local/bin")
        self.run(
            install, "--no-defaults", f"--datadir={folder}/data", "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )  # fmt: skip

    @property
    def socket(self) -> str:
        return str(self.folder / "socket")

    @property
    def command(self) -> list[str]:
        return [
            self.server, "--no-defaults", f"--datadir={self.folder}/data", f"--socket={self.socket}",
            "--skip-networking", f"--pid-file={self.folder}/pid",
        ]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        # Django takes a host that begins with a slash for a socket.
        return {"TEST_DATABASE": "mariadb", "MYSQL_HOST": self.socket, "MYSQL_USER": "root", "MYSQL_PASSWORD": ""}

    def answers(self) -> bool:
        ping = [_found("mariadb-admin", "/usr/bin"), "--no-defaults", f"--socket={self.socket}", "-u", "root", "ping"]
        return subprocess.run(ping, check=False, capture_output=True).returncode == 0


def _found(name: str, *folders: str) -> str:
    places = [*(str(path) for each in folders for path in sorted(Path("/").glob(each[1:]), reverse=True))]
    path = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))
    if path is None:
        raise NoServerError(f"{name} is not on this machine; install Debian's package of the server.")
    return path


@contextlib.contextmanager
def private(kind: type[Server]) -> Iterator[Server]:
    """Run a server until the block ends. Raises ``NoServerError``."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, kind.user, kind.user)
        server = kind(folder)
        server.start()
        try:
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop(signal.SIGKILL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
