"""A browser, a server that sends a strict content security policy, and visitors: operator, viewer and anonymous."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import django
import pytest
from django.conf import settings as configured
from django.contrib.auth.models import Permission, User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.test import Client
from django.test.testcases import LiveServerThread

from tests.support.browser import NO_INLINE, Chromium, Visitor, chromium
from tests.support.console_rows import VIEWER, Day, declare_hotel, spend_day
from tests.support.services import needs

POLICY = (
    "django.middleware.csp.ContentSecurityPolicyMiddleware"
    if django.VERSION >= (6, 0)
    else "tests.support.browser.StrictPolicy"
)

Visit = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    """Start Chromium once. Playwright has an event loop in this thread, where Django would refuse to query."""
    needs("chromium")
    with pytest.MonkeyPatch.context() as patch, chromium() as started:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield started


@pytest.fixture
def server(transactional_db: None, settings: Any) -> Iterator[str]:
    """Serve the project of the tests with the policy, CSRF protection and static files, and yield the address."""
    settings.SECURE_CSP = NO_INLINE
    settings.MIDDLEWARE = [POLICY, *configured.MIDDLEWARE, "django.middleware.csrf.CsrfViewMiddleware"]
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # quick
    thread = LiveServerThread("127.0.0.1", StaticFilesHandler, port=0)
    thread.daemon = True
    thread.start()
    thread.is_ready.wait()
    assert thread.error is None, thread.error
    yield f"http://127.0.0.1:{thread.port}"
    thread.terminate()


@pytest.fixture
def day(server: str) -> Day:
    """A day of the hotel, with the operator Olga and the viewer Vera."""
    declare_hotel()
    found = spend_day()
    viewer = User.objects.create_user(VIEWER, password="x", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    return found


@pytest.fixture
def visit(browser: Chromium, server: str) -> Iterator[Visit]:
    """``visit("olga")``: a visitor who is logged in; ``visit()``: one who is not."""
    with ExitStack() as stack:

        @contextmanager
        def visitor(name: str, **options: Any) -> Iterator[Visitor]:
            session = ""
            if name:
                client = Client()
                client.force_login(User.objects.get(username=name))
                session = client.cookies[configured.SESSION_COOKIE_NAME].value
            with browser.visitor(server, session, **options) as found:
                yield found

        yield lambda name="", **options: stack.enter_context(visitor(name, **options))
