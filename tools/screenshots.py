"""Write pictures of the admin into the documentation: the example hotel after a day, light, dark and on a phone.

    python tools/screenshots.py [--only run-failed ...] [--to docs/images/console]

The day passes in a time machine on a new SQLite file, so that the pictures change only where the pages do. It needs
Debian's ``chromium`` and the packages of the group ``test``.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "example" / "hotel"), str(ROOT)]

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
LOOKS: dict[str, tuple[Any, Any]] = {
    "light": ("light", DESKTOP),
    "dark": ("dark", DESKTOP),
    "phone": ("light", PHONE),
}
MAX_HEIGHT = 1400
HIGHER = {"entity-form": 2000}  # what saving does is below the form
QUALITY = 70
MAX_BYTES = 3_000_000
MORNING = "2031-03-03T08:00+01:00"
HOURS = 6.3  # some guests have arrived, others are expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="the names of pictures; all, if none is named")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "images" / "console")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        set_up(Path(scratch))
        with time_stands_after_a_day() as pictures:
            chosen = {name: path for name, path in pictures.items() if not options.only or name in options.only}
            options.to.mkdir(parents=True, exist_ok=True)
            for name, look, picture in take(chosen):
                (options.to / f"{name}-{look}.webp").write_bytes(picture)
                print(f"{name}-{look}.webp: {len(picture):,} bytes", flush=True)
    total = sum(each.stat().st_size for each in options.to.glob("*.webp"))
    print(f"together: {total:,} bytes")
    if total > MAX_BYTES:
        raise SystemExit(f"FAILED: the pictures are larger than {MAX_BYTES:,} bytes.")


def set_up(scratch: Path) -> None:
    from cluster import set_up_django

    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"  # Playwright has an event loop in this thread
    set_up_django(HOTEL_DATABASE=str(scratch / "hotel.sqlite3"), HOTEL_FAULTS="1", HOTEL_NO_CARDS="101,107")
    from django.conf import settings
    from django.core.management import call_command

    settings.AUTOMATION = {"RUNTIME": "silent"}
    call_command("migrate", verbosity=0)


@contextmanager
def time_stands_after_a_day() -> Iterator[dict[str, str]]:
    """Let a day pass, stop the clock of Django there, and yield the address of each picture by its name."""
    from django.utils import timezone

    from django_ai.automation.testing import time_machine
    from hotel import external_services

    with (
        time_machine(MORNING, schedules=True) as machine,
        patch.object(external_services, "print_page", lambda losses: None),  # it kills the process, to show recovery
    ):
        spend_day(machine)
        now = machine.now
    with patch.object(timezone, "now", lambda: now):
        yield pictures()


def spend_day(machine: Any) -> None:
    """Let the story of the demo happen, and what an operator does meanwhile."""
    from django.contrib.auth.models import User

    from django_ai.automation import acting_as, engine
    from django_ai.automation.queues.heartbeat import register_worker
    from django_ai.automation.workflows.models import WorkflowRun
    from hotel.models import Guest, Reservation
    from show.story import actions, complain, create_bookings

    olga = User.objects.create_superuser("olga", password="olga", first_name="Olga")
    register_worker("qcluster")
    day = create_bookings()
    for name, room, hour in (("Iris", "109", HOURS + 2.5), ("Jon", "110", 30)):
        guest = Guest.objects.create(name=name)
        checkin = day.at(hour)
        Reservation.objects.create(guest=guest, room=room, status="confirmed", checkin_at=checkin)
    machine.process()
    for action in actions():
        if action.hour < HOURS:
            machine.advance_to(day.at(action.hour))
            action.do(day)
            machine.process()
    machine.advance_to(day.at(HOURS))
    lost = engine.start("hotel.clean", reservation_id=day.guests["Eve"].pk)
    WorkflowRun.objects.filter(pk=lost.pk).update(name="hotel.deep_clean")  # a deployment has removed its code
    machine.process()
    with acting_as(olga, "The lift is being repaired."):
        engine.pause(workflow="hotel.departure")
    complain(day, "Hana", "The tap drips again")
    machine.process()
    machine.advance(timedelta(minutes=4))
    begin_bulk_action(olga)


def begin_bulk_action(user: Any) -> None:
    """Cancel many runs in bulk, and let a worker get halfway. The runs are gone then: no other page counts them."""
    from django_ai.automation import acting_as, engine
    from django_ai.automation.queues.drain import drain
    from django_ai.automation.queues.models import BulkAction
    from django_ai.automation.workflows.models import WorkflowRun

    runs = [
        WorkflowRun(name="hotel.reminder", version="1", status="suspended", current_step="remind") for _ in range(240)
    ]
    WorkflowRun.objects.bulk_create(runs)
    group = WorkflowRun.objects.filter(status="suspended", name="hotel.reminder")
    with acting_as(user, "The congress was called off."):
        bulk = engine.bulk("cancel", name="hotel.reminder", status="suspended")

    def is_halfway() -> bool:
        bulk.refresh_from_db()
        return bulk.performed * 2 >= bulk.total

    pks = list(group.values_list("pk", flat=True))
    drain(models=[BulkAction], stop=is_halfway)
    WorkflowRun.objects.filter(pk__in=pks).delete()


def pictures() -> dict[str, str]:
    """Return the address of each picture, by its name."""
    from django.urls import reverse

    from django_ai.automation.agents.models import AgentRun
    from django_ai.automation.events.models import Event, EventClaim
    from django_ai.automation.queues.models import BulkAction
    from django_ai.automation.workflows.models import WorkflowRun
    from hotel.models import Reservation

    def page(model: str, kind: str = "changelist", row: Any = None) -> str:
        return reverse(f"admin:automation_{model}_{kind}", args=[] if row is None else [row.pk])

    def stay(guest: str, kind: str) -> str:
        found = Reservation.objects.get(guest__name=guest)
        return reverse(f"admin:hotel_reservation_{kind}", args=[found.pk])

    runs = WorkflowRun.objects.order_by("pk")
    failed = runs.filter(name="hotel.arrival", status="failed").first()
    due = Event.objects.filter(event_name="checkin_due", status="pending").first()
    return {
        "overview": page("console_overview"),
        "agenda": page("console_agenda"),
        "problems": page("queues_mutedproblem"),
        "catalogue": page("console_catalogue"),
        "queues": page("console_queues"),
        "run-failed": page("workflows_workflowrun", "change", failed),
        "run-repair": page("workflows_workflowrun", "repair", failed),
        "run-waiting": page("workflows_workflowrun", "change", runs.filter(status="suspended").last()),
        "agent": page("agents_agentrun", "change", AgentRun.objects.filter(name="hotel.journey").last()),
        "event": page("events_event", "change", due),
        "entity-form": stay("Ben", "change"),
        "entity": stay("Ben", "automations"),
        "entity-why": stay("Cleo", "automations") + "?subscriber=hotel.reminder",
        "claim": page("events_eventclaim", "change", EventClaim.objects.last()),
        "bulk-confirm": page("workflows_workflowrun"),
        "bulk": page("queues_bulkaction", "change", BulkAction.objects.last()),
    }


def preview_a_delay(tab: Any) -> None:
    """Type a later check-in into the form of a reservation, and ask what saving it would do."""
    hour = tab.locator("#id_checkin_at_1")
    hour.fill("20:30:00")
    with tab.expect_response("**/automations/preview/"):
        tab.locator("[data-automation-preview]").click()
    tab.wait_for_selector("[data-automation-preview-answer] li")


def choose_all(tab: Any) -> None:
    """Choose to cancel every run of the list, and come to the page that asks whether that is meant."""
    tab.locator("#action-toggle").check()
    tab.get_by_label("Action:").select_option("cancel")
    tab.locator("#changelist button[name=index]").first.click()
    tab.wait_for_selector(".automation-repair")


PREPARED: dict[str, Callable[[Any], None]] = {"entity-form": preview_a_delay, "bulk-confirm": choose_all}
"""What happens on a page before its picture is taken, by the name of the picture."""


def take(chosen: dict[str, str]) -> Iterator[tuple[str, str, bytes]]:
    """Open each page in each look, and yield its name, the look and the picture."""
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.test import Client
    from django.test.testcases import LiveServerThread
    from tests.support.browser import chromium

    client = Client()
    client.force_login(User.objects.get(username="olga"))
    cookie = {"name": settings.SESSION_COOKIE_NAME, "value": client.cookies[settings.SESSION_COOKIE_NAME].value}
    thread = LiveServerThread("127.0.0.1", StaticFilesHandler, port=0)
    thread.daemon = True
    thread.start()
    thread.is_ready.wait()
    server = f"http://127.0.0.1:{thread.port}"
    with chromium() as started:
        for look, (scheme, size) in LOOKS.items():
            context = started.browser.new_context(viewport=size, color_scheme=scheme, is_mobile=look == "phone")
            context.add_cookies([{**cookie, "url": server}])
            tab = context.new_page()
            for name, path in chosen.items():
                answer = tab.goto(f"{server}{path}")
                if answer is None or not answer.ok:
                    raise SystemExit(f"FAILED: {path} could not be opened: {answer}")
                PREPARED.get(name, lambda tab: None)(tab)
                width = tab.evaluate("document.documentElement.scrollWidth")
                if width > size["width"]:
                    raise SystemExit(f"FAILED: {name} is {width} px wide and scrolls sideways ({look}).")
                yield name, look, shot(tab, size, HIGHER.get(name, MAX_HEIGHT))
            context.close()
    thread.terminate()


def shot(tab: Any, size: dict[str, int], max_height: int) -> bytes:
    """Return a picture of the page as WebP."""
    tab.evaluate("scrollTo(0, 0)")
    height = min(max(tab.evaluate("document.documentElement.scrollHeight"), size["height"]), max_height)
    clip = {"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1}
    session = tab.context.new_cdp_session(tab)
    options = {"format": "webp", "quality": QUALITY, "clip": clip, "captureBeyondViewport": True}
    return base64.b64decode(session.send("Page.captureScreenshot", options)["data"])


if __name__ == "__main__":
    main()
