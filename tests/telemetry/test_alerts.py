"""Alerts about parked and failed rows: grouped, at most one in an interval, and never in the way of the engine."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import django
import pytest
from django.core import mail
from django.core.cache import caches
from django.core.mail import mail_admins
from django.test import override_settings
from pydantic import BaseModel

from django_ai.automation import Retry, engine, fail, on_event, step, workflow
from django_ai.automation.contrib.telemetry import alerts
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "whsec_" + base64.b64encode(bytes([7] * 24)).decode()
MINUTE = timedelta(minutes=1)
ADMINS: list[Any] = ["night@example.com"] if django.VERSION >= (6,) else [("Night", "night@example.com")]


class Receiver(HTTPServer):
    """An HTTP server that keeps what is posted to it. ``status``: what it answers. ``hold``: it answers after that."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 204
        self.hold: threading.Event | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/alerts?team=night"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in self.got]


class Request(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if server.hold is not None:
            server.hold.wait(30)
        server.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(server.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        if server.hold is not None:
            server.hold.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def connected(settings: Any) -> Iterator[None]:
    settings.ADMINS = ADMINS
    settings.AUTOMATION = {**settings.AUTOMATION, "ALERT_TIMEOUT": timedelta(seconds=20)}
    caches["default"].clear()
    alerts._sent_here.clear()
    alerts.connect()
    yield
    alerts.disconnect()
    assert alerts.flush()


def using(**values: Any) -> Any:
    return override_settings(AUTOMATION={"RUNTIME": "silent", "ALERT_TIMEOUT": timedelta(seconds=20), **values})


@pytest.fixture
def failing():
    @workflow("alerts:fails")
    class Fails:
        class Context(BaseModel):
            reason: str = "no stock"

        @step(start=True)
        def go(self):
            return fail(self.context.reason)

    return Fails


def test_a_failed_run_is_posted_with_a_signature(failing, receiver, work):
    standardwebhooks = pytest.importorskip("standardwebhooks")
    with using(ALERT_WEBHOOK=receiver.url, ALERT_WEBHOOK_SECRET=SECRET):
        run = engine.start(failing)
        work()
        assert alerts.flush()
    ((path, headers, body),) = receiver.got
    assert path == "/alerts?team=night"
    verified = standardwebhooks.Webhook(SECRET).verify(body, headers)
    data = verified["data"]
    assert verified["type"] == "automation.row.failed"
    assert (data["kind"], data["id"], data["name"], data["row"]) == ("workflow", str(run.pk), run.name, str(run))
    assert (data["error"], data["more"]) == ("no stock", 0)


def test_without_a_secret_nothing_is_signed(failing, receiver, work):
    with using(ALERT_WEBHOOK=receiver.url):
        engine.start(failing)
        work()
        assert alerts.flush()
    ((_, headers, _),) = receiver.got
    assert "webhook-signature" not in headers


def test_a_parked_row_is_mailed_to_the_admins_with_its_reason(failing, work):
    run = engine.start(failing)
    WorkflowRun.objects.filter(pk=run.pk).update(name="alerts:gone")
    with using(ALERT_MAIL=True):
        work()
        assert alerts.flush()
    (sent,) = mail.outbox
    assert sent.to == ["night@example.com"]
    assert "workflow parked" in sent.subject
    assert "alerts:gone" in sent.body
    assert f"workflow:{run.pk}" in sent.body


def test_a_group_alerts_once_in_an_interval_and_then_says_how_many_it_stands_for(failing, receiver, work):
    with using(ALERT_WEBHOOK=receiver.url, ALERT_INTERVAL=MINUTE):
        for number in range(4):
            engine.start(failing, reason=f"no stock of item {number}")
        engine.start(failing, reason="the card was refused")
        work()
        assert alerts.flush()
        assert [each["data"]["more"] for each in receiver.bodies] == [0, 0]
        assert len({each["data"]["group"] for each in receiver.bodies}) == 2
        first = receiver.bodies[0]["data"]["group"]
        caches["default"].delete(f"automation:alert:{first}")  # as if the interval were over
        engine.start(failing, reason="no stock of item 5")
        work()
        assert alerts.flush()
    assert [each["data"]["more"] for each in receiver.bodies] == [0, 0, 3]


def test_the_interval_is_kept_in_the_cache_that_workers_share(failing, receiver, work):
    with using(ALERT_WEBHOOK=receiver.url, ALERT_INTERVAL=MINUTE):
        engine.start(failing)
        work()
        assert alerts.flush()
        alerts._sent_here.clear()  # as in another process
        engine.start(failing)
        work()
        assert alerts.flush()
    assert len(receiver.got) == 1


@override_settings(CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}})
def test_a_cache_that_fails_alerts_once_in_the_interval_from_each_process(failing, receiver, work, monkeypatch):
    def broken(*args, **kwargs):
        raise ConnectionError("no cache")

    for name in ("add", "set", "get", "incr"):
        monkeypatch.setattr("django.core.cache.backends.locmem.LocMemCache." + name, broken)
    with using(ALERT_WEBHOOK=receiver.url, ALERT_INTERVAL=MINUTE):
        for _ in range(3):
            engine.start(failing)
        work()
        assert alerts.flush()
    assert len(receiver.got) == 1


def test_a_receiver_that_hangs_delays_no_row(failing, receiver, work):
    receiver.hold = threading.Event()
    with using(ALERT_WEBHOOK=receiver.url, ALERT_TIMEOUT=timedelta(seconds=30)):
        run = engine.start(failing)
        before = time.monotonic()
        work()
        run.refresh_from_db()
        assert run.status == "failed"
        assert time.monotonic() - before < 10
        assert not alerts.flush(0.01)
        receiver.hold.set()
        assert alerts.flush()
    assert len(receiver.got) == 1


@pytest.mark.parametrize("status", [302, 500])
def test_what_is_refused_is_logged_and_tried_again_sooner(failing, receiver, work, caplog, status):
    receiver.status = status
    with using(ALERT_WEBHOOK=receiver.url, ALERT_INTERVAL=timedelta(hours=1)):
        run = engine.start(failing)
        work()
        assert alerts.flush()
        run.refresh_from_db()
        assert run.status == "failed"
        assert f"the webhook answered {status}" in caplog.text
        assert "team=night" not in caplog.text
        receiver.status = 200
        caches["default"].delete(f"automation:alert:{receiver.bodies[0]['data']['group']}")  # a minute later
        engine.start(failing)
        work()
        assert alerts.flush()
    assert [each["data"]["more"] for each in receiver.bodies] == [0, 1]
    assert len(receiver.got) == 2


def test_after_a_refusal_the_group_is_kept_for_a_minute_only(failing, receiver, work, monkeypatch):
    kept: list[tuple[str, float]] = []
    cache = caches["default"]
    original = type(cache).set
    monkeypatch.setattr(type(cache), "set", lambda self, key, value, timeout=None, **more: kept.append((key, timeout)))
    receiver.status = 500
    with using(ALERT_WEBHOOK=receiver.url, ALERT_INTERVAL=timedelta(hours=1)):
        engine.start(failing)
        work()
        assert alerts.flush()
    monkeypatch.setattr(type(cache), "set", original)
    assert [timeout for key, timeout in kept if key.startswith("automation:alert:")] == [60.0]


def test_a_mail_server_that_fails_changes_nothing(failing, work, caplog, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to the mail server")

    assert alerts.mail_admins is mail_admins
    monkeypatch.setattr(alerts, "mail_admins", refuse)
    with using(ALERT_MAIL=True):
        run = engine.start(failing)
        work()
        assert alerts.flush()
    run.refresh_from_db()
    assert run.status == "failed"
    assert "no route to the mail server" in caplog.text


def test_more_alerts_than_can_wait_are_dropped_and_logged(failing, receiver, work, caplog, monkeypatch):
    monkeypatch.setattr(alerts, "MAX_WAITING", 1)
    monkeypatch.setattr(alerts, "_sender", alerts.Sender())
    receiver.hold = threading.Event()
    with using(ALERT_WEBHOOK=receiver.url, ALERT_TIMEOUT=timedelta(seconds=30)):
        for _ in range(4):
            engine.start(failing)
        work()
        assert "this one is dropped" in caplog.text
        receiver.hold.set()
        assert alerts.flush()


def test_an_attempt_that_is_retried_causes_no_alert(work):
    @on_event("reservation_confirmed", retry=Retry(max_attempts=2))
    def once(event):
        raise RuntimeError("not yet")

    with using(ALERT_MAIL=True):
        Reservation.objects.create(status="confirmed")
        work()
        assert alerts.flush()
    assert mail.outbox == []
