"""The catalogue: everything that the code declares, as sentences, with docstring, source, graph and bounded counts."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    EventDefinition,
    FreeEvent,
    On,
    Retry,
    agent,
    complete,
    emit,
    engine,
    event_workflow,
    handler,
    on_event,
    on_event_cancelled,
    on_event_created,
    schedule,
    step,
    wait,
    workflow,
)
from django_ai.automation.console.catalogue import counts as counts_module
from django_ai.automation.console.catalogue import entries as entries_module
from django_ai.automation.console.catalogue.counts import count_rows
from django_ai.automation.console.catalogue.entries import KINDS, CatalogueEntry, entries, find_entry
from django_ai.automation.events.declarations import Declared
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.front_desk.models import Booking, Message, Person

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "admin:automation_console_catalogue_changelist"
ENTRY = "admin:automation_console_catalogue_entry"
LOST = "catalogue.lost"


class Empty(BaseModel):
    why: str = ""


class Shop:
    """Sells things,
    to guests.

    The second paragraph is not shown.
    """

    Context = Empty

    @step(start=True, retry=Retry(max_attempts=1))
    def ask(self):
        if self.context.why == "raise":
            raise ValueError("no")
        return wait("answer") if self.context.why == "wait" else complete()

    @step
    def end(self):
        return complete()


def declare(name: str = "shop", **options) -> type:
    return workflow(name, **options)(type("Shop", (Shop,), {"__doc__": Shop.__doc__}))


def entry(kind: str, name: str) -> CatalogueEntry:
    found = find_entry(kind, name)
    assert found is not None
    return found


def counts(kind: str, name: str) -> tuple[str, str, str]:
    found = count_rows([entry(kind, name)], timezone.now())[kind, name]
    return found.live_text, found.done_text, found.broken_text


def sign_in(client, *permissions: str) -> None:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)


def text(answer) -> str:
    assert answer.status_code == 200
    page = answer.content.decode()
    shown = page[page.index('<div class="automation-story') :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", shown)).split())


def test_a_workflow_as_a_sentence_with_its_docstring_and_source():
    @event_workflow(
        "booking_created",
        offset=timedelta(hours=-3),
        name="shop",
        deadline=timedelta(days=2),
        cancel_on=[On("booking_cancelled", match={})],
        queue="sales",
    )
    class Sale(Shop):
        """Sells."""

    found = entry("workflow", "shop")
    assert found.sentence == "Started 3 hours before “booking_created”. Steps: 2."
    assert found.about == "Sells."
    assert re.fullmatch(r"tests/console/test_catalogue\.py:\d+", found.origin)
    assert ("Queue", "sales") in found.facts
    assert ("Deadline", "2 d") in found.facts
    assert ("Cancelled by", "booking_cancelled") in found.facts
    declare("by_code")
    by_code = entry("workflow", "by_code")
    assert by_code.sentence == "Started by code. Steps: 2."
    assert by_code.about == "Sells things, to guests.", "the first paragraph, in one line"


def test_callbacks_as_sentences():
    @on_event("booking_created", name="note", offset=timedelta(days=1))
    @on_event_created("booking_created", name="note")
    @on_event_cancelled("booking_*", name="note")
    def note(event):
        """Writes it down."""

    found = entry("callback", "note")
    assert found.sentence == (
        "Called when “booking_*” is cancelled; when “booking_created” is recorded; 1 day after “booking_created”."
    )
    assert found.about == "Writes it down."


def test_an_agent_as_a_sentence():
    @agent("helper", spawn_on=["booking_created"], match={"pk": "{{ ctx.pk }}"}, singleton=True)
    class Helper:
        class Context(BaseModel):
            pk: int = 0

        @handler("message_received")
        @handler("booking_created")
        def help(self):
            pass

    found = entry("agent", "helper")
    assert found.sentence in (
        "Spawned by “booking_created”; handles “booking_created”, “message_received”. Handlers: 2.",
        "Spawned by “booking_created”; handles “message_received”, “booking_created”. Handlers: 2.",
    )
    assert ("Match", "pk = {{ ctx.pk }}") in found.facts
    assert found.about == ""


def test_schedules_as_sentences():
    @schedule(timedelta(minutes=5), name="mail", overlap="skip")
    def fetch():
        """Fetches mail."""

    schedule(timedelta(days=1), name="nightly")(declare("nightly shop"))
    mail = entry("schedule", "mail")
    assert mail.sentence.startswith("Every 5 min: calls ")
    assert mail.about == "Fetches mail."
    assert ("Overlap", "skip") in mail.facts
    nightly = entry("schedule", "nightly")
    assert nightly.sentence == "Every 1 d: starts the workflow nightly shop."
    assert entry("workflow", "nightly shop").sentence == "Started by code, and by a schedule. Steps: 2."
    assert not [each for each in entries("callback") if "fetch" in each.name], "that is the schedule's own"


@pytest.mark.parametrize(
    ("definition", "sentence"),
    [
        (EventDefinition("a"), "Occurs once for each booking."),
        (EventDefinition("a", lambda one: True), "Occurs once for each booking, if its condition is true."),
        (EventDefinition("a", date_field="at"), "Occurs at “at” of each booking."),
        (EventDefinition("a", trigger=["create", "delete"]), "Occurs when a booking is created, deleted."),
        (EventDefinition("a", watch_fields=["guest"]), "Occurs when guest of a booking changes."),
        (
            EventDefinition("a", was={"state": ["new", "old"]}, becomes={"state": "paid"}),
            "Occurs when a write changes “state” (new | old → paid) of a booking.",
        ),
        (
            EventDefinition("a", becomes={"state": lambda value: True}),
            "Occurs when a write changes “state” (anything → computed) of a booking.",
        ),
    ],
)
def test_events_of_models_as_sentences(definition, sentence):
    assert entries_module._of_model(Declared(definition, Booking, "front_desk.booking")) == sentence


def test_a_condition_with_a_name_is_named():
    def is_paid(one):
        """Whether it is paid."""
        return True

    definition = EventDefinition("a", is_paid)
    assert entries_module._of_model(Declared(definition, Booking, "")).endswith(", if is_paid is true.")
    assert entries_module._about_event(definition) == "Whether it is paid."


def test_events_have_the_line_that_names_them():
    FreeEvent(LOST)
    found = entry("event", LOST)
    assert found.sentence == "Emitted by code, without a model."
    assert re.fullmatch(r"tests/console/test_catalogue\.py:\d+", found.origin)
    booking = entry("event", "booking_created")
    path, _, line = booking.origin.rpartition(":")
    assert path == "tests/apps/front_desk/models.py"
    with open(path) as source:
        assert "booking_created" in source.read().splitlines()[int(line) - 1]
    assert find_entry("event", "schedule:*") is None


def test_what_a_shell_declares_has_no_source():
    names: dict = {"Shop": Shop, "workflow": workflow}
    exec("@workflow('shell')\nclass Sale(Shop):\n    pass\n", names)
    assert entry("workflow", "shell").origin == ""


def test_the_counts_of_a_workflow():
    declare()
    for why in ("", "", "wait", "raise"):
        engine.start("shop", why=why)
    engine.start("shop")
    drain()
    old = WorkflowRun.objects.filter(status="completed").first()
    WorkflowRun.objects.filter(pk=old.pk).update(finished_at=timezone.now() - timedelta(days=2))
    assert counts("workflow", "shop") == ("1", "2", "1")
    declare("never")
    assert counts("workflow", "never") == ("0", "0", "0")


def test_the_counts_of_events_callbacks_and_agents():
    lost = FreeEvent(LOST)

    @on_event(lost, name="note")
    def note(event):
        if event.payload.get("bad"):
            raise ValueError("bad")

    @agent("helper", spawn_on=lost)
    class Helper:
        Context = Empty

        @handler(lost)
        def help(self):
            pass

    emit(lost, {})
    emit(lost, {"bad": 1})
    emit(lost, {}, at=timezone.now() + timedelta(days=1))
    drain()
    CallbackExecution.objects.filter(status="pending").update(status="failed", finished_at=timezone.now())
    assert counts("event", LOST) == ("1", "2", "0")
    assert counts("callback", "note") == ("0", "1", "1")
    assert counts("agent", "helper") == ("2", "0", "0")


def test_a_schedule_has_the_counts_of_its_target():
    schedule(timedelta(days=1), name="nightly")(declare("nightly shop"))
    engine.start("nightly shop")
    drain()
    assert counts("schedule", "nightly") == ("0", "1", "0")


def test_counts_that_a_limit_cuts_are_lower_bounds(monkeypatch):
    monkeypatch.setattr(counts_module, "MAX_OF_NAME", 2)
    monkeypatch.setattr(counts_module, "MAX_OF_TABLE", 1)
    monkeypatch.setattr(counts_module, "MAX_BROKEN", 1)
    FreeEvent(LOST)
    declare("busy")
    declare("quiet")
    for _ in range(3):
        engine.start("busy", why="raise")
        emit(LOST, {})
    engine.start("quiet")
    drain()
    found = count_rows([entry("workflow", "busy"), entry("workflow", "quiet"), entry("event", LOST)], timezone.now())
    assert (found["workflow", "busy"].live_text, found["workflow", "busy"].broken_text) == ("0+", "1+")
    assert found["workflow", "quiet"].done_text == "1", "another name does not hide it"
    assert found["event", LOST].done_text == "1+"


def test_the_page_lists_everything_with_filters(client, monkeypatch):
    monkeypatch.setattr("django_ai.automation.console.catalogue.page.PAGE_SIZE", 1000)
    declare()
    FreeEvent(LOST)
    sign_in(client, "view_catalogue", "view_workflowrun", "view_event")
    engine.start("shop", why="raise")
    drain()
    everything = text(client.get(reverse(PAGE)))
    assert "Workflow shop Started by code. Steps: 2. Sells things, to guests." in everything
    assert f"Event {LOST} Emitted by code" in everything
    workflows = text(client.get(reverse(PAGE), {"kind": "workflow"}))
    assert LOST not in workflows
    assert "Workflow shop" in workflows
    searched = text(client.get(reverse(PAGE), {"q": "SELLS things"}))
    assert "Workflow shop" in searched
    assert LOST not in searched
    assert "Nothing matches." in text(client.get(reverse(PAGE), {"q": "no such thing"}))
    assert "Workflow shop" in text(client.get(reverse(PAGE), {"kind": "<bad>", "p": "<bad>", "q": "shop"}))


def test_the_page_is_paged(client, monkeypatch):
    monkeypatch.setattr("django_ai.automation.console.catalogue.page.PAGE_SIZE", 2)
    for name in ("one", "three", "two"):
        declare(name)
    sign_in(client, "view_catalogue")
    first = client.get(reverse(PAGE), {"kind": "workflow", "q": "sells"})
    assert ">one<" in first.content.decode()
    assert ">two<" not in first.content.decode()
    (address,) = set(re.findall(r'href="(\?kind=workflow&amp;q=sells&amp;p=2)"', first.content.decode()))
    assert ">two<" in client.get(reverse(PAGE) + html.unescape(address)).content.decode()


def test_each_entry_has_a_page_with_its_graph(client):
    declare()
    declare(version=2)
    FreeEvent(LOST)

    @on_event(LOST, name="note")
    def note(event):
        pass

    schedule(timedelta(days=1), name="nightly")(declare("night"))
    agent("helper", spawn_on=LOST)(type("Helper", (), {"Context": Empty, "help": handler(LOST)(lambda self: None)}))
    client.force_login(User.objects.create_superuser("root", password="x"))
    names = {"event": LOST, "callback": "note", "workflow": "shop", "agent": "helper", "schedule": "nightly"}
    assert tuple(names) == KINDS
    for kind, name in names.items():
        page = client.get(reverse(ENTRY), {"kind": kind, "name": name}).content.decode()
        assert '<svg class="automation-graph" role="img"' in page
        assert 'style="' not in page[page.index('<div class="automation-story') :]
        for address in re.findall(r'<dd><a href="([^"]*)"', page):
            assert client.get(html.unescape(address)).status_code == 200
    page = client.get(reverse(ENTRY), {"kind": "workflow", "name": "shop"}).content.decode()
    assert "Workflow shop, version 2" in page
    (older,) = re.findall(r'<a href="([^"]*)">1</a>', page)
    assert "Workflow shop, version 1" in client.get(html.unescape(older)).content.decode()


def test_the_links_of_an_entry_list_its_rows_only(client):
    declare()
    declare("other")
    engine.start("shop")
    engine.start("other")
    drain()
    client.force_login(User.objects.create_superuser("root", password="x"))
    page = client.get(reverse(ENTRY), {"kind": "workflow", "name": "shop"}).content.decode()
    (rows, *_) = re.findall(r'href="([^"]*workflowrun/\?[^"]*)"', page)
    listed = client.get(html.unescape(rows)).content.decode()
    assert listed.count('class="field-status"') == 1


def test_an_entry_that_does_not_exist_is_not_found(client):
    declare()
    sign_in(client, "view_catalogue")
    for query in ({"kind": "workflow", "name": "gone"}, {"kind": "bad", "name": "shop"}, {"name": "shop"}):
        assert client.get(reverse(ENTRY), query).status_code == 404
    assert "All (" in text(client.get(reverse(ENTRY))), "without a name, the list"
    page = client.get(reverse(ENTRY), {"kind": "workflow", "name": "shop", "version": "<9>"})
    assert "has no version '<9>'" in text(page)


def test_rows_that_the_user_may_not_view_are_not_counted(client):
    declare()
    engine.start("shop")
    sign_in(client, "view_catalogue")
    with CaptureQueriesContext(connection) as queries:
        shown = text(client.get(reverse(PAGE), {"q": "shop"}))
    assert "You may not view its rows." in shown
    assert not [each for each in queries if "workflowrun" in each["sql"]]
    page = client.get(reverse(ENTRY), {"kind": "workflow", "name": "shop"}).content.decode()
    assert "workflowrun/?" not in page


def test_who_may_not_view_the_catalogue_sees_nothing(client):
    sign_in(client, "view_workflowrun", "view_overview")
    assert client.get(reverse(PAGE)).status_code == 403
    assert client.get(reverse(ENTRY), {"kind": "workflow", "name": "shop"}).status_code == 403
    overview = reverse("admin:automation_console_overview_changelist")
    assert reverse(PAGE) not in client.get(overview).content.decode()
    client.logout()
    assert client.get(reverse(PAGE)).status_code == 302
    assert client.get(reverse(ENTRY)).status_code == 302


def test_the_overview_links_to_it(client):
    sign_in(client, "view_catalogue", "view_overview")
    overview = client.get(reverse("admin:automation_console_overview_changelist")).content.decode()
    assert f'href="{reverse(PAGE)}"' in overview


def test_it_takes_as_many_queries_with_many_names_and_rows(client):
    client.force_login(User.objects.create_superuser("root", password="x"))
    found = []
    for count in (1, 30):
        for number in range(count):
            declare(f"shop {number}")
            engine.start(f"shop {number}")
        Message.objects.create(sender=Person.objects.create(name="Ada"), text="one")
        drain()
        client.get(reverse(PAGE))
        with CaptureQueriesContext(connection) as queries:
            client.get(reverse(PAGE), {"kind": "workflow"})
        found.append(len(queries))
    assert found[0] == found[1] <= 30
    with CaptureQueriesContext(connection) as queries:
        client.get(reverse(PAGE))
    assert len(queries) <= 30
