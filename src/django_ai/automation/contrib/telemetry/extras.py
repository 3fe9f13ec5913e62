"""The extras by their names in ``AUTOMATION["TELEMETRY"]``: which module connects each, and which library it needs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ...conf import conf
from ...exceptions import SettingsError

logger = logging.getLogger("django_ai.automation")


@dataclass(frozen=True, slots=True)
class Extra:
    """One extra. ``library``: the module that must be installed; empty: none."""

    module: str
    library: str = ""
    package: str = ""

    @property
    def is_installed(self) -> bool:
        return not self.library or find_spec(self.library) is not None

    def load(self) -> Any:
        return import_module(f"{__package__}.{self.module}")


EXTRAS = {
    "alerts": Extra("alerts"),
    "prometheus": Extra("metrics", "prometheus_client", "prometheus-client"),
    "opentelemetry": Extra("traces", "opentelemetry", "opentelemetry-api"),
    "sentry": Extra("sentry", "sentry_sdk", "sentry-sdk"),
}


def connect_listed() -> None:
    """Connect what ``AUTOMATION["TELEMETRY"]`` lists. What is wrong there is reported by the checks, and keeps no
    process from starting."""
    try:
        names = conf().TELEMETRY
    except SettingsError:
        return
    for name in names:
        extra = EXTRAS.get(name)
        if extra is None:
            continue
        if extra.is_installed:
            extra.load().connect()
        else:
            logger.error(
                "AUTOMATION['TELEMETRY'] lists %r, but %s is not installed: there is none. pip install "
                "'django-ai-automation[%s]'",
                name,
                extra.package,
                name,
            )
