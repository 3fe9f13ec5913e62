"""System checks of telemetry: which extras are listed, their libraries, and the settings of alerts."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning

from ... import conf as conf_module
from ...conf import Conf, conf
from .extras import EXTRAS

UNSHARED_CACHES = ("django.core.cache.backends.locmem.LocMemCache", "django.core.cache.backends.dummy.DummyCache")


def check_telemetry(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if conf_module.problems(getattr(settings, "AUTOMATION", {})):
        return []  # automation.E001 reports them
    found = [problem for name in conf().TELEMETRY for problem in _check_extra(name)]
    if "alerts" in conf().TELEMETRY:
        found += _check_alerts(conf())
    return found


def _check_extra(name: str) -> list[CheckMessage]:
    extra = EXTRAS.get(name)
    if extra is None:
        near = get_close_matches(name, EXTRAS, n=1)
        return [
            Error(
                f"AUTOMATION['TELEMETRY'] lists {name!r}, which is no telemetry.",
                hint=f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(EXTRAS)}.",
                id="automation.E401",
            )
        ]
    if not extra.is_installed:
        return [
            Error(
                f"AUTOMATION['TELEMETRY'] lists {name!r}, but {extra.package} is not installed.",
                hint=f"pip install 'django-ai-automation[{name}]'",
                id="automation.E402",
            )
        ]
    return []


def _check_alerts(values: Conf) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if not values.ALERT_MAIL and not values.ALERT_WEBHOOK:
        found.append(
            Warning(
                "AUTOMATION['TELEMETRY'] lists 'alerts', but neither a mail nor a webhook is sent.",
                hint="Set AUTOMATION['ALERT_MAIL'] = True, or AUTOMATION['ALERT_WEBHOOK'] to a URL.",
                id="automation.W403",
            )
        )
    if values.ALERT_MAIL and not settings.ADMINS:
        found.append(
            Warning(
                "AUTOMATION['ALERT_MAIL'] is on, but ADMINS is empty, so mails have no recipient.",
                hint="Set ADMINS to a list of addresses.",
                id="automation.W404",
            )
        )
    if values.ALERT_WEBHOOK and not is_http_url(values.ALERT_WEBHOOK):
        found.append(
            Error(
                "AUTOMATION['ALERT_WEBHOOK'] is no URL of http or https.",  # without the value, which may hold a token
                hint="Write a whole URL: 'https://alerts.example.com/automation'.",
                id="automation.E405",
            )
        )
    if values.ALERT_WEBHOOK_SECRET:
        found += _check_secret(values.ALERT_WEBHOOK_SECRET)
    return found + _check_cache(values.ALERT_CACHE)


def is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _check_secret(secret: str) -> list[CheckMessage]:
    if find_spec("standardwebhooks") is None:
        return [
            Error(
                "AUTOMATION['ALERT_WEBHOOK_SECRET'] is set, but standardwebhooks, which signs, is not installed.",
                hint="pip install 'django-ai-automation[webhooks]'",
                id="automation.E406",
            )
        ]
    try:
        import_module("standardwebhooks").Webhook(secret)
    except Exception as error:  # without its message, which may show the secret
        return [
            Error(
                f"AUTOMATION['ALERT_WEBHOOK_SECRET'] is no secret ({type(error).__name__}).",
                hint="It is base64, perhaps after 'whsec_'.",
                id="automation.E407",
            )
        ]
    return []


def _check_cache(alias: str) -> list[CheckMessage]:
    if alias not in settings.CACHES:
        near = get_close_matches(alias, settings.CACHES, n=1)
        return [
            Error(
                f"AUTOMATION['ALERT_CACHE'] is {alias!r}, which CACHES does not have.",
                hint=f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(settings.CACHES)}.",
                id="automation.E408",
            )
        ]
    if settings.CACHES[alias].get("BACKEND") in UNSHARED_CACHES:
        return [
            Warning(
                f"The cache {alias!r} is not shared by processes, so each worker sends its own alerts.",
                hint="Let AUTOMATION['ALERT_CACHE'] name a cache in Redis, Memcached or the database.",
                id="automation.W409",
            )
        ]
    return []
