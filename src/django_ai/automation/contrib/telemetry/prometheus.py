"""The views that Prometheus scrapes: what the tables hold, and what the processes of this machine have counted."""

from __future__ import annotations

import os
from secrets import compare_digest

from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ...conf import conf
from . import metrics
from .collector import DatabaseCollector


def exposition() -> bytes:
    """Return all metrics in Prometheus's text format.

    Returns:
        Bytes: what the tables hold now, and what the processes of this machine have counted: those that share
        ``PROMETHEUS_MULTIPROC_DIR``, or without it this process alone.

    Raises:
        DatabaseError: If the database cannot be queried.

    Example:
        Write them to a file for the node exporter::

            Path("/var/lib/node_exporter/automation.prom").write_bytes(exposition())
    """
    tables = CollectorRegistry()
    tables.register(DatabaseCollector())
    processes = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        processes = CollectorRegistry()
        MultiProcessCollector(processes)
    return bytes(generate_latest(processes) + generate_latest(tables))


@never_cache
@require_safe
def unguarded_metrics_view(request: HttpRequest) -> HttpResponse:
    """Expose the metrics to anyone who may call the view: wrap it in what decides that.

    Args:
        request: The ``HttpRequest``.

    Returns:
        The metrics in Prometheus's text format.

    Example:
        Only for one address::

            def metrics_for_prometheus(request):
                if request.META["REMOTE_ADDR"] != "10.0.0.5":
                    return HttpResponseForbidden()
                return unguarded_metrics_view(request)
    """
    return HttpResponse(exposition(), content_type=CONTENT_TYPE_LATEST)


@never_cache
@require_safe
def metrics_view(request: HttpRequest) -> HttpResponse:
    """Expose the metrics to Prometheus, which sends ``AUTOMATION["METRICS_TOKEN"]`` as a bearer token, and to staff.

    Args:
        request: The ``HttpRequest``.

    Returns:
        The metrics in Prometheus's text format, or 403.

    Example:
        In urls.py::

            path("metrics", metrics_view)
    """
    if not (_has_token(request) or _is_staff(request)):
        return HttpResponseForbidden("A bearer token (AUTOMATION['METRICS_TOKEN']) or a staff user is needed.\n")
    return unguarded_metrics_view(request)


def _has_token(request: HttpRequest) -> bool:
    token = conf().METRICS_TOKEN
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    return bool(token) and kind.lower() == "bearer" and compare_digest(given.strip().encode(), token.encode())


def _is_staff(request: HttpRequest) -> bool:
    user = getattr(request, "user", None)
    return bool(user is not None and user.is_active and user.is_staff)


connect, disconnect = metrics.connect, metrics.disconnect
