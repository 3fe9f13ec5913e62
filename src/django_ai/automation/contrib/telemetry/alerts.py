"""Alerts: parked and failed rows, by mail to ``ADMINS`` and as a webhook.

Rows with the same problem (``queues.problems``) are one group, whatever ids their errors have. A group that is muted
does not alert. Of each other group one alert is sent in ``ALERT_INTERVAL``; the next one says how many it stands for.
Django's cache remembers it, so the interval holds across workers.

A thread of its own sends, so the engine is never delayed: at the end of the process it waits for that thread, for
``ALERT_TIMEOUT`` at most. Nothing that fails here reaches the engine; it is logged.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from django.core.cache import caches
from django.core.mail import mail_admins
from django.db import connections

from ...conf import conf
from ...queues.problems import is_muted, kind_of, name_of, problem_key
from ...queues.signals import row_failed, row_parked
from ...values.text import last_line, one_line
from .facts import Facts, facts_of

logger = logging.getLogger("django_ai.automation")

MAX_WAITING = 100
"""How many alerts may wait for the thread that sends. More are dropped, and logged."""
RETRY_DELAY = timedelta(minutes=1)
"""After an alert that could not be sent, the next row of its group is tried again after this time."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A parked or failed row.

    Attributes:
        state: ``"parked"`` or ``"failed"``.
        row: The row, for display.
        facts: What is known of it.
        reason: Why; the last line names the cause.
        at: When, an aware datetime.
        group: The key of its problem (``queues.problems``): the same for all rows of one kind and name whose error
            differs in ids only.
    """

    state: str
    row: str
    facts: Facts
    reason: str
    at: datetime
    group: str

    @property
    def cause(self) -> str:
        return last_line(self.reason)

    def as_dict(self, more: int) -> dict[str, Any]:
        """Return the body of the webhook. ``more``: how many rows of the group were not reported since the last one."""
        return {
            "type": f"automation.row.{self.state}",
            "timestamp": self.at.isoformat(),
            "data": {
                "state": self.state,
                "kind": self.facts.kind,
                "id": self.facts.id,
                "name": self.facts.name,
                "part": self.facts.part,
                "row": self.row,
                "entity": self.facts.entity,
                "causes": list(self.facts.causes),
                "error": self.cause,
                "group": self.group,
                "more": more,
            },
        }


def connect() -> None:
    row_failed.connect(_on_failed, dispatch_uid="automation.alert_failed")
    row_parked.connect(_on_parked, dispatch_uid="automation.alert_parked")


def disconnect() -> None:
    row_failed.disconnect(dispatch_uid="automation.alert_failed")
    row_parked.disconnect(dispatch_uid="automation.alert_parked")


def _on_failed(sender: Any, row: Any, reason: str, **kwargs: Any) -> None:
    _report("failed", row, reason)


def _on_parked(sender: Any, row: Any, reason: str, **kwargs: Any) -> None:
    _report("parked", row, reason)


def _report(state: str, row: Any, reason: str) -> None:
    try:
        group = problem_key(kind_of(type(row)), name_of(row), state, reason)
        _sender.put(Alert(state, one_line(row), facts_of(row), reason, datetime.now(UTC), group))
    except Exception:
        logger.exception("An alert could not be made")


# -- the thread that sends ---------------------------------------------------------------------------------------------


class Sender:
    """A thread that sends alerts one after another. It starts with the first one; a fork has a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._alerts: queue.Queue[Alert] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None

    def put(self, alert: Alert) -> None:
        """Let the thread send ``alert``; returns at once."""
        with self._lock:
            if self._pid != os.getpid():
                self._reset()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="automation-alerts", daemon=True)
                self._thread.start()
                atexit.register(self.flush)
        try:
            self._alerts.put_nowait(alert)
        except queue.Full:
            logger.error("%d alerts wait to be sent, so this one is dropped: %s", MAX_WAITING, alert.row)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all alerts are sent, for ``timeout`` seconds (default: ``ALERT_TIMEOUT``); return whether they
        are."""
        if self._pid != os.getpid():
            return True
        seconds = conf().ALERT_TIMEOUT.total_seconds() if timeout is None else timeout
        deadline = time.monotonic() + seconds
        with self._alerts.all_tasks_done:
            while self._alerts.unfinished_tasks:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._alerts.all_tasks_done.wait(left)
        return True

    def _run(self) -> None:
        while True:
            alert = self._alerts.get()
            try:
                _deliver(alert)
            except Exception:
                logger.exception("The alert about %s could not be sent", alert.row)
            finally:
                connections.close_all()  # those of this thread: a cache in the database opens one
                self._alerts.task_done()


_sender = Sender()


def flush(timeout: float | None = None) -> bool:
    """Wait until all alerts of this process are sent; return whether they are (for tests and short commands)."""
    return _sender.flush(timeout)


# -- grouping ----------------------------------------------------------------------------------------------------------

_sent_here: dict[str, float] = {}
"""When this process has sent an alert of a group while the cache was away."""


def _deliver(alert: Alert) -> None:
    values = conf()
    if _is_muted(alert):
        return
    more = _admitted(alert, values.ALERT_INTERVAL)
    if more is None:
        return
    failed = False
    for is_wanted, send in ((values.ALERT_WEBHOOK, _post), (values.ALERT_MAIL, _mail)):
        if is_wanted:
            try:
                send(alert, more)
            except Exception as error:
                failed = True
                # Without a traceback, whose lines may show the URL of the webhook, which is often a secret.
                logger.error("The alert about %s could not be sent: %s", alert.row, one_line(_words_of(error)))
    if failed:
        _retry_soon(alert, more, min(RETRY_DELAY, values.ALERT_INTERVAL))


def _is_muted(alert: Alert) -> bool:
    """Return whether somebody has muted the group. If the database does not answer, the alert is sent."""
    try:
        return is_muted(alert.group, datetime.now(UTC))
    except Exception as error:
        logger.warning("Mutes could not be read: %s", one_line(_words_of(error)))
        return False


def _words_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _keys(alert: Alert) -> tuple[str, str]:
    return f"automation:alert:{alert.group}", f"automation:alerts_left:{alert.group}"


def _admitted(alert: Alert, interval: timedelta) -> int | None:
    """Return None if an alert of this group was sent within ``interval``; otherwise how many were left out since."""
    sent, left = _keys(alert)
    try:
        cache = caches[conf().ALERT_CACHE]
        if cache.add(sent, 1, interval.total_seconds()):
            more = int(cache.get(left, 0))
            cache.delete(left)
            return more
        cache.add(left, 0, None)
        cache.incr(left)
    except Exception as error:
        logger.warning("The cache of alerts failed: %s", one_line(_words_of(error)))
        now = time.monotonic()
        if now - _sent_here.get(sent, float("-inf")) < interval.total_seconds():
            return None
        _sent_here[sent] = now
        return 0
    return None


def _retry_soon(alert: Alert, more: int, delay: timedelta) -> None:
    sent, left = _keys(alert)
    try:
        cache = caches[conf().ALERT_CACHE]
        cache.set(sent, 1, delay.total_seconds())
        cache.add(left, 0, None)
        cache.incr(left, more + 1)
    except Exception as error:
        logger.warning("The cache of alerts failed: %s", one_line(_words_of(error)))


# -- sending -----------------------------------------------------------------------------------------------------------


def _mail(alert: Alert, more: int) -> None:
    facts = alert.facts
    text = [
        f"{alert.row} {'has failed for good' if alert.state == 'failed' else 'is parked'}: {alert.cause}",
        f"Row: {facts.label}" + (f", entity: {facts.entity}" if facts.entity else ""),
    ]
    if facts.causes:
        text.append(f"Caused by: {', '.join(facts.causes)}")
    if more:
        text.append(f"{more} more like this since the last mail.")
    minutes = conf().ALERT_INTERVAL.total_seconds() / 60
    text += [f"The next mail about rows like this comes in {minutes:g} minutes at the earliest.", "", alert.reason]
    mail_admins(f"{alert.facts.kind} {alert.state}: {alert.cause}"[:200], "\n".join(text))


def _post(alert: Alert, more: int) -> None:
    """POST the alert. Any answer but 2xx is an error; redirects are not followed."""
    values = conf()
    body = json.dumps(alert.as_dict(more)).encode()
    message, now = f"alert_{uuid4().hex}", datetime.now(UTC)
    headers = {"Content-Type": "application/json", "User-Agent": "django-ai-automation", "webhook-id": message}
    if values.ALERT_WEBHOOK_SECRET:
        signer = import_module("standardwebhooks").Webhook(values.ALERT_WEBHOOK_SECRET)
        headers["webhook-timestamp"] = str(int(now.timestamp()))
        headers["webhook-signature"] = signer.sign(message, now, body.decode())
    parts = urlsplit(values.ALERT_WEBHOOK)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=values.ALERT_TIMEOUT.total_seconds())
    try:
        connection.request("POST", f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}", body, headers)
        status = connection.getresponse().status
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise HTTPException(f"the webhook answered {status}")
