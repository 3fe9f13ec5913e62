"""Who acts: what a block or a request creates has its actor as its cause, and no other."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    FreeEvent,
    acting_as,
    agent,
    complete,
    emit,
    engine,
    event_workflow,
    handler,
    step,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.contrib.actor import ActorMiddleware
from django_ai.automation.events.models import CapturedWrite, Event
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.queues.acting import current_actor
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.notifier import InlineNotifier
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.captured.models import Parcel
from tests.apps.story.models import Probe

pytestmark = pytest.mark.django_db(transaction=True)


class Nothing(BaseModel):
    pass


def knock() -> FreeEvent:
    return FreeEvent("acting:knock")


def answering() -> None:
    """Declare a workflow that an emitted event starts, and which saves an entity with events of its own."""

    @event_workflow("acting:knock", name="acting:answer")
    class Answer:
        Context = Nothing

        @step(start=True)
        def begin(self):
            Probe.objects.create(name="caused", ready=True)
            return complete()


def keeper() -> None:
    @agent("acting:keeper")
    class Keeper:
        Context = Nothing

        @handler("acting:knock")
        def answer(self):
            raise NotImplementedError


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def label(user: User) -> str:
    return f"user:{user.pk}"


# -- what has an actor as its cause ------------------------------------------------------------------------------------


def test_everything_that_a_block_creates_has_the_actor_as_its_cause(ada):
    event = knock()
    keeper()
    with acting_as(ada):
        emit(event)
        saved = Probe.objects.create(name="saved", ready=True)
        run = engine.start("story:listen")
        agent_run = AgentManager.spawn("acting:keeper")
        signal = engine.signal("acting:word")
    outside = engine.start("story:listen")
    causes = {*Event.objects.of(saved).values_list("caused_by", flat=True), run.caused_by, agent_run.caused_by}
    assert causes == {label(ada)}
    assert Event.objects.get(event_name="acting:knock").caused_by == label(ada)
    assert Signal.objects.get(pk=signal.pk).caused_by == label(ada)
    assert AgentRun.objects.get().caused_by == label(ada)
    assert outside.caused_by == ""


def test_the_chain_of_causes_leads_back_to_the_user(ada):
    answering()
    with acting_as(ada):
        emit(knock())
    drain()
    run = WorkflowRun.objects.get(name="acting:answer")
    effect = Event.objects.of(Probe.objects.get(name="caused")).first()
    assert effect.caused_by.startswith(f"workflow:{run.pk}")
    assert run.caused_by == f"event:{run.event_id}"
    assert run.event.caused_by == label(ada)
    assert (run.event.depth, run.depth, effect.depth) == (0, 1, 2)


def test_a_condition_that_becomes_true_is_caused_by_who_made_it_true(ada):
    probe = Probe.objects.create(name="later")
    with acting_as(ada):
        probe.ready = True
        probe.save()
    assert Event.objects.of(probe).get(event_name="probe_ready").caused_by == label(ada)


@pytest.mark.parametrize("in_a_block", [False, True])
def test_captured_writes_have_the_actor_as_their_cause(ada, in_a_block):
    with acting_as(ada):
        if in_a_block:
            with transaction.atomic():
                Parcel.objects.bulk_create([Parcel(state="sent"), Parcel(state="sent")])
        else:
            Parcel.objects.bulk_create([Parcel(state="sent"), Parcel(state="sent")])
    Parcel.objects.bulk_create([Parcel(state="sent")])
    assert sorted(CapturedWrite.objects.values_list("caused_by", flat=True)) == ["", label(ada), label(ada)]
    drain()
    sent = Event.objects.filter(event_name="parcel_sent").order_by("pk")
    assert sorted(sent.values_list("caused_by", "depth")) == [("", 0), (label(ada), 0), (label(ada), 0)]


def test_a_worker_has_no_actor_even_inside_a_request(ada):
    """The inline notifier performs rows in the thread that has committed them."""
    seen: list[Any] = []

    @workflow("acting:look")
    class Look:
        Context = Nothing

        @step(start=True)
        def begin(self):
            seen.append(current_actor())
            engine.start("story:listen")
            return complete()

    engine.set_notifier(InlineNotifier())
    try:
        with acting_as(ada):
            run = engine.start("acting:look")
            assert current_actor() is not None
    finally:
        engine.set_notifier(None)
    assert seen == [None]
    assert WorkflowRun.objects.get(name="story:listen").caused_by.startswith(f"workflow:{run.pk}")


# -- who an actor may be -----------------------------------------------------------------------------------------------


def test_an_actor_is_a_user_a_string_a_function_or_none(ada):
    for given in (ada, f"user:{ada.pk}", lambda: ada, lambda: f"user:{ada.pk}"):
        with acting_as(given, "why"):
            actor = current_actor()
            assert actor is not None
            assert (actor.label, actor.reason) == (label(ada), "why")
    for absent in (None, AnonymousUser(), lambda: None, AnonymousUser):
        with acting_as(absent):
            assert current_actor() is None


def test_the_inner_block_counts_and_the_outer_one_continues(ada):
    with acting_as("system:nightly", "It is late."):
        with acting_as(ada):
            assert engine.start("story:listen").caused_by == label(ada)
        with pytest.raises(ZeroDivisionError), acting_as(ada):
            raise ZeroDivisionError
        assert engine.start("story:listen").caused_by == "system:nightly"
    assert current_actor() is None


@pytest.mark.parametrize(
    ("actor", "words"),
    [
        ("", "1 to 200 letters"),
        ("x" * 201, "1 to 200 letters"),
        ("two words", "1 to 200 letters"),
        ("nächtlich", "1 to 200 letters"),
        (5, "give a Django user, a string"),
        (User(username="new"), "save the user first"),
    ],
)
def test_other_actors_are_refused(actor, words):
    with pytest.raises(DefinitionError, match=words), acting_as(actor):
        raise AssertionError


def test_a_function_that_returns_something_else_is_refused_where_the_actor_is_needed():
    with acting_as(lambda: 5), pytest.raises(DefinitionError, match="give a Django user"):
        engine.start("story:listen")
    assert not WorkflowRun.objects.exists()


# -- contexts ----------------------------------------------------------------------------------------------------------


def test_another_thread_does_not_see_the_actor(ada):
    seen: list[Any] = []
    with acting_as(ada):
        thread = threading.Thread(target=lambda: seen.append(current_actor()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_tasks_of_one_loop_have_their_own_actors():
    met = {}

    async def act(name: str, meeting: asyncio.Barrier) -> None:
        with acting_as(name):
            await meeting.wait()
            met[name] = (current_actor(), await sync_to_async(current_actor)(), await asyncio.to_thread(current_actor))

    async def main() -> None:
        meeting = asyncio.Barrier(2)
        await asyncio.gather(act("system:a", meeting), act("system:b", meeting))
        assert current_actor() is None

    asyncio.run(main())
    assert {name: {actor.label for actor in actors} for name, actors in met.items()} == {
        "system:a": {"system:a"},
        "system:b": {"system:b"},
    }


# -- the middleware ----------------------------------------------------------------------------------------------------


def start(request: HttpRequest) -> HttpResponse:
    return HttpResponse(engine.start("story:listen").caused_by)


async def start_async(request: HttpRequest) -> HttpResponse:
    run = await sync_to_async(engine.start)("story:listen")
    return HttpResponse(run.caused_by)


def idle(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{request.session.accessed}")


def fails(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


def logs_in(request: HttpRequest) -> HttpResponse:
    request.user = User.objects.get()  # as an authentication class of an API does
    return start(request)


urlpatterns = [
    path("start/", start),
    path("start-async/", start_async),
    path("idle/", idle),
    path("fails/", fails),
    path("logs-in/", logs_in),
]
MIDDLEWARE = f"{ActorMiddleware.__module__}.ActorMiddleware"


@pytest.fixture(params=["before", "after"])
def middleware(request, settings):
    """Install the middleware before and after the one that sets ``request.user``."""
    settings.ROOT_URLCONF = __name__
    rest = settings.MIDDLEWARE
    settings.MIDDLEWARE = [MIDDLEWARE, *rest] if request.param == "before" else [*rest, MIDDLEWARE]


@pytest.mark.parametrize("url", ["/start/", "/start-async/"])
def test_a_request_acts_as_its_user(middleware, ada, url):
    client, anonymous = Client(), Client()
    client.force_login(ada)
    assert client.get(url).content.decode() == label(ada)
    assert anonymous.get(url).content.decode() == ""
    assert current_actor() is None


@pytest.mark.parametrize("url", ["/start/", "/start-async/"])
def test_a_request_of_an_async_server_acts_as_its_user(middleware, ada, url):
    async def main() -> list[str]:
        client, anonymous = AsyncClient(), AsyncClient()
        await client.aforce_login(ada)
        answers = await asyncio.gather(client.get(url), anonymous.get(url), client.get(url))
        await sync_to_async(connections.close_all)()  # those of the thread of the views
        return [answer.content.decode() for answer in answers]

    assert asyncio.run(main()) == [label(ada), "", label(ada)]


def test_a_request_that_needs_no_actor_reads_no_session_and_queries_nothing(middleware, ada):
    client = Client()
    client.force_login(ada)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert client.get("/idle/").content.decode() == "False"
    assert len(queries) == 0


def test_a_user_whom_the_view_authenticates_counts(middleware, ada):
    assert Client().get("/logs-in/").content.decode() == label(ada)


def test_a_view_that_raises_leaves_no_actor(middleware, ada):
    client = Client(raise_request_exception=False)
    client.force_login(ada)
    assert client.get("/fails/").status_code == 500
    assert current_actor() is None


def test_a_project_without_users_has_no_actor(settings):
    settings.ROOT_URLCONF, settings.MIDDLEWARE = __name__, [MIDDLEWARE]
    assert Client().get("/start/").content.decode() == ""
