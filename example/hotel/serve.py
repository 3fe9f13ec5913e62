"""``make serve``: the hotel with the Django admin and a cluster, on a database that is kept. Ctrl-C stops both."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from subprocess import Popen

from cluster import command, exit_on_signals, set_up_django

HOST, PORT = "127.0.0.1", 8000


def main() -> None:
    require_free_port()
    set_up_django()
    from django.core.management import call_command

    exit_on_signals()
    try:
        call_command("migrate", verbosity=0)
        for line in prepare():
            print(line, flush=True)
        with command("qcluster") as cluster, command("runserver", f"{HOST}:{PORT}", "--noreload") as web:
            print(f"The hotel runs at http://{HOST}:{PORT}/admin/  (Ctrl-C stops it)", flush=True)
            ended = wait_for_first_exit({"qcluster": cluster, "runserver": web})
    except KeyboardInterrupt:
        print("\nStopped.", flush=True)
        return
    raise SystemExit(f"FAILED: {ended} ended unexpectedly; see its output above.")


def require_free_port() -> None:
    with contextlib.closing(socket.socket()) as probe:
        if probe.connect_ex((HOST, PORT)) == 0:
            raise SystemExit(
                f"FAILED: {HOST}:{PORT} is in use, perhaps by another `make serve`. Stop that process first."
            )


def wait_for_first_exit(processes: dict[str, Popen[bytes]]) -> str:
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                return name
        time.sleep(0.2)


def prepare() -> Iterator[str]:
    """Create a superuser and some reservations, unless there are any; yield what was done."""
    from django.contrib.auth import get_user_model
    from django.utils import timezone

    from hotel.models import Guest, Reservation

    users = get_user_model().objects
    if not users.filter(is_superuser=True).exists():
        users.create_superuser("admin", password="admin")
        yield "Created the superuser admin with the password admin: use it on this machine only."
    if not Reservation.objects.exists():
        for number, name in enumerate(("Ada", "Ben", "Cleo"), 1):
            checkin = timezone.now() + timedelta(minutes=2 * number)
            Reservation.objects.create(
                guest=Guest.objects.create(name=name),
                room=str(100 + number),
                status=Reservation.Status.CONFIRMED,
                checkin_at=checkin,
                checkout_at=checkin + timedelta(days=2),
            )
        yield "Created three reservations; the first guest arrives in two minutes, and all are asked for documents."
        yield "The night audit starts at two in the morning, or when you fire its schedule in the admin."


if __name__ == "__main__":
    main()
