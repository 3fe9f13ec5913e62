"""Every page of the admin, found by its address: who may open it, what a viewer may do there, how many queries."""

from __future__ import annotations

import io
import re

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.support.console_rows import PACKAGE, declare_hotel, models_without_rows, pages, spend_day

pytestmark = pytest.mark.django_db(transaction=True)

MAX_QUERIES = 30
POSTING = re.compile(r'<form[^>]*method="post"[^>]*>', re.IGNORECASE)
ASKING = re.compile(r'<form[^>]*method="get".*?</form>', re.IGNORECASE | re.DOTALL)
REFUSED = (400, 403, 404, 405)  # 405: a page that takes no POST from anyone; 404: one that a query has to complete


@pytest.fixture
def day():
    declare_hotel()
    return spend_day()


def sign_in(client, *codenames: str) -> None:
    user = User.objects.create_user("vera", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)


def viewing() -> list[str]:
    return list(Permission.objects.filter(codename__startswith="view_").values_list("codename", flat=True))


def stored() -> str:
    """Return every row of the package, as text."""
    output = io.StringIO()
    labels = {model._meta.app_label for model in admin.site._registry if model.__module__.startswith(PACKAGE)}
    call_command("dumpdata", *sorted(labels), stdout=output)
    return output.getvalue()


def has_form(answer) -> bool:
    """Return whether a page that answers a POST as if it were a GET has a form that would post."""
    if answer.status_code != 200:
        return False
    content = answer.content.decode()
    return POSTING.search(content[content.index('id="content"') :]) is not None


def action_names(rf, admin_of_page) -> list[str]:
    """Return the names of the actions that a superuser may execute in the list of a model."""
    request = rf.get("/")
    request.user = User.objects.get(is_superuser=True)
    return list(admin_of_page.get_actions(request))


def test_the_day_has_a_row_for_each_page(day):
    assert models_without_rows() == set()


def test_a_viewer_opens_pages_without_a_form_that_changes_anything(client, day):
    sign_in(client, *viewing())
    opened = 0
    for page in pages():
        answer = client.get(page.path)
        assert answer.status_code in (200, *REFUSED), page
        if answer.status_code != 200:
            continue
        opened += 1
        content = answer.content.decode()
        shown = ASKING.sub("", content[content.index('id="content"') : content.index('id="footer"')])
        # The page of a row is Django's form for it, without a button.
        assert 'name="action"' not in shown, page
        assert 'type="submit"' not in shown, page
    assert opened > 20


def test_a_viewer_changes_nothing_by_posting(client, rf, day):
    sign_in(client, *viewing())
    before = stored()
    for page in pages():
        owner, row = admin.site._registry[page.model], page.model._default_manager.first()
        answer = client.post(page.path)
        assert answer.status_code in REFUSED or not has_form(answer), page
        for action in action_names(rf, owner):
            selected = {"_selected_action": str(row.pk if row else 0), "index": "0", "select_across": "0"}
            answer = client.post(page.path, {**selected, "action": action})
            assert answer.status_code in REFUSED or not has_form(answer), (page, action)
    assert stored() == before


def test_staff_without_permissions_open_and_change_nothing(client, day):
    sign_in(client)
    for page in pages():
        assert client.get(page.path).status_code in REFUSED, page
        assert client.post(page.path).status_code in REFUSED, page


def test_a_visitor_who_has_not_logged_in_is_sent_to_the_login(client, day):
    for page in pages():
        for answer in (client.get(page.path), client.post(page.path)):
            assert answer.status_code == 302, page
            assert answer.url.startswith("/admin/login/?next="), page


def test_each_page_takes_few_queries(client, day):
    client.force_login(User.objects.get(is_superuser=True))
    counts = {}
    for page in pages():
        client.get(page.path)
        with CaptureQueriesContext(connection) as queries:
            client.get(page.path)
        counts[str(page)] = len(queries)
    assert {name: count for name, count in counts.items() if count > MAX_QUERIES} == {}
