"""``make serve``: the hotel with the Django admin and a cluster, on a database that is kept. Ctrl-C stops both."""

from __future__ import annotations

import signal
import time
from datetime import timedelta

from cluster import command, set_up_django

ADDRESS = "127.0.0.1:8000"


def main() -> None:
    set_up_django()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    print(prepare(), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with command("qcluster") as cluster, command("runserver", ADDRESS, "--noreload") as web:
        print(f"The hotel is open: http://{ADDRESS}/admin/  (Ctrl-C closes it)", flush=True)
        try:
            while cluster.poll() is None and web.poll() is None:
                time.sleep(0.5)
        except KeyboardInterrupt:
            print("\nClosing.", flush=True)
            return
    raise SystemExit("One of the two processes ended by itself; its last words are above.")


def prepare() -> str:
    """Put somebody at the desk and some guests in the book; say what was done."""
    from django.contrib.auth.models import User
    from django.utils import timezone

    from hotel.models import Guest, Reservation

    done = []
    if not User.objects.filter(is_superuser=True).exists():
        User.objects.create_superuser("admin", password="admin")
        done.append("Made a superuser: admin, password admin.")
    if not Reservation.objects.exists():
        for number, name in enumerate(("Ada", "Ben", "Cleo"), 1):
            checkin = timezone.now() + timedelta(minutes=2 * number)
            Reservation.objects.create(
                guest=Guest.objects.create(name=name), room=str(100 + number), status="confirmed",
                checkin_at=checkin, checkout_at=checkin + timedelta(days=2),
            )  # fmt: skip
        done.append("Took three reservations; the first guest arrives in two minutes.")
    return "\n".join(done)


if __name__ == "__main__":
    main()
