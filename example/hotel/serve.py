"""``make serve``: the hotel with the Django admin and a cluster, on a database that is kept. Ctrl-C stops both."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from subprocess import Popen

from cluster import command, set_up_django, stop_in_order

HOST, PORT = "127.0.0.1", 8000


def main() -> None:
    refuse_a_busy_port()
    set_up_django()
    from django.core.management import call_command

    stop_in_order()
    try:
        call_command("migrate", verbosity=0)
        for line in prepare():
            print(line, flush=True)
        with command("qcluster") as cluster, command("runserver", f"{HOST}:{PORT}", "--noreload") as web:
            print(f"The hotel is open: http://{HOST}:{PORT}/admin/  (Ctrl-C closes it)", flush=True)
            ended = wait_for_the_first_to_end({"qcluster": cluster, "runserver": web})
    except KeyboardInterrupt:
        print("\nClosed.", flush=True)
        return
    raise SystemExit(f"{ended} ended by itself; its last words are above.")


def refuse_a_busy_port() -> None:
    with contextlib.closing(socket.socket()) as probe:
        if probe.connect_ex((HOST, PORT)) == 0:
            raise SystemExit(f"Something listens on {HOST}:{PORT} already. Stop it first; it may be another hotel.")


def wait_for_the_first_to_end(processes: dict[str, Popen[bytes]]) -> str:
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                return name
        time.sleep(0.2)


def prepare() -> Iterator[str]:
    """Put somebody at the desk and some guests in the book; say what was done."""
    from django.contrib.auth import get_user_model
    from django.utils import timezone

    from hotel.desk import open_day
    from hotel.models import Guest, Reservation

    users = get_user_model().objects
    if not users.filter(is_superuser=True).exists():
        users.create_superuser("admin", password="admin")
        yield "Made a superuser: admin, password admin. Good enough for this machine, and for nothing else."
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
        run = open_day(f"{timezone.localdate():%A}")
        yield "Took three reservations; the first guest arrives in two minutes, and the three are asked for papers."
        yield f"{run} waits for `manage.py desk close 420`."


if __name__ == "__main__":
    main()
