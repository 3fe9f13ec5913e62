"""How handlers run: the parameters they receive, their order, their conditions, and the persistent Context."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import Agent, Retry, agent, handler
from django_ai.automation.agents.models import HandlerExecution
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import DefinitionError, NotStorableError
from tests.apps.front_desk.models import Booking, Person
from tests.support.agents import Notes, answering
from tests.support.front_desk import agents, answers, book, the_agent, the_answer
from tests.support.rows import change, effects, event_of, leave

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.mark.django_db(transaction=True)
class TestArguments:
    def test_a_handler_takes_what_it_names(self, work):
        got = {}

        @agent("taking", spawn_on="booking_created")
        class Taking:
            Context = Notes

            @handler("booking_created")
            def nothing(self):
                got["nothing"] = ()

            @handler("booking_created")
            def all_of_them(self, run, events, event, context, ctx):
                got["all"] = (run, events, event, context, ctx)

            @handler("booking_created")
            def by_keywords(self, ctx, **more):
                got["keywords"] = (ctx, more)

            @handler("booking_created")
            def with_defaults(self, event, limit=5, *, other=None):
                got["defaults"] = (event, limit, other)

        booking = book()
        work()
        run, event = the_agent(), event_of(booking, "booking_created")
        assert got["nothing"] == ()
        assert got["all"][:3] == (run, [event], event)
        assert got["all"][3] is got["all"][4]
        assert isinstance(got["all"][4], Notes)
        assert sorted(got["keywords"][1]) == ["context", "event", "events", "run"]
        assert got["defaults"] == (event, 5, None)
        assert [each for _, each in answers()] == ["completed"] * 4

    def test_the_context_is_also_on_the_instance(self, work):
        def answer(self, ctx):
            assert self.context is ctx

        answering(answer)
        book()
        work()
        assert answers() == [("answer", "completed")]

    def test_typed_base_gives_the_same_context(self, work):
        @agent("typed", spawn_on="booking_created")
        class Typed(Agent[Notes]):
            Context = Notes

            @handler("booking_created")
            def answer(self, ctx):
                assert self.context is ctx
                assert isinstance(self.context, Notes)

        book()
        work()
        assert answers() == [("answer", "completed")]

    def test_the_entity_of_the_event_is_fresh(self, work):
        def answer(self, event):
            leave(event.entity.note)

        answering(answer)
        booking = book(note="old")
        Booking.objects.filter(pk=booking.pk).update(note="new")
        work()
        assert effects() == ["new"]

    def test_what_a_handler_returns_is_nobodys_business(self, work):
        answering(lambda self: {"any": "thing"})
        book()
        work()
        assert [each for _, each in answers()] == ["completed"]


@pytest.mark.django_db(transaction=True)
class TestSeveral:
    def test_all_handlers_of_an_event_run(self, work):
        @agent("several", spawn_on="booking_created")
        class Several:
            Context = Notes

            @handler("booking_confirmed")
            def first(self, ctx):
                ctx.notes.append("first")

            @handler("booking_confirmed")
            def second(self, ctx):
                ctx.notes.append("second")

        booking = book()
        work()
        change(booking, status="confirmed")
        work()
        assert the_agent().data["notes"] == ["first", "second"]

    def test_two_handlers_one_of_which_fails(self, work):
        @agent("several", spawn_on="booking_created")
        class Several:
            Context = Notes

            @handler("booking_created", retry=Retry(max_attempts=1))
            def first(self):
                raise ValueError

            @handler("booking_created")
            def second(self):
                leave("second")

        book()
        work()
        assert answers() == [("first", "failed"), ("second", "completed")]

    def test_one_method_for_two_events(self, work):
        @agent("several", spawn_on="booking_created")
        class Several:
            Context = Notes

            @handler("booking_created")
            @handler("booking_confirmed")
            def either(self, event):
                leave(event.event_name)

        booking = book()
        work()
        change(booking, status="confirmed")
        work()
        assert effects() == ["booking_created", "booking_confirmed"]

    def test_one_method_at_two_offsets_of_one_event(self, clock, work):
        @agent("several", spawn_on="booking_created")
        class Several:
            Context = Notes

            @handler("stay_due")
            @handler("stay_due", offset=-HOUR)
            def either(self):
                leave("ran")

        book(starts_at=clock.now + 3 * HOUR)
        for expected in (0, 0, 1, 2, 2):
            work()
            assert effects() == ["ran"] * expected
            clock.tick(HOUR)

    def test_a_pattern_and_a_name_that_mean_the_same_event(self, work):
        @agent("several", spawn_on="booking_created")
        class Several:
            Context = Notes

            @handler("booking_*")
            def everything(self, event):
                leave(event.event_name)

            @handler("booking_confirmed")
            def confirmed(self):
                leave("confirmed")

        booking = book()
        work()
        change(booking, status="confirmed", note="x")
        work()
        assert sorted(effects()) == ["booking_confirmed", "booking_created", "booking_noted", "confirmed"]

    def test_handlers_are_inherited(self, work):
        class Base:
            Context = Notes

            @handler("booking_created")
            def created(self):
                leave(f"{type(self).__name__} created")

            @handler("booking_confirmed")
            def replaced(self):
                leave("never")

        @agent("heir", spawn_on="booking_created")
        class Heir(Base):
            @handler("booking_confirmed")
            def replaced(self):
                leave("mine")

        book(status="confirmed")
        work()
        assert effects() == ["Heir created", "mine"]

    @pytest.mark.slow
    def test_one_after_the_other_in_the_order_of_their_events(self, clock, work):
        @agent("ordered", spawn_on="booking_created")
        class Ordered:
            Context = Notes

            @handler("booking_noted")
            def noted(self, ctx, event):
                ctx.count += 1
                ctx.notes.append(str(event.pk))

        booking = book()
        work()
        for number in range(45):  # more than one batch
            change(booking, note=str(number))
            clock.tick(SECOND)
        work()
        run = the_agent()
        assert run.data["count"] == 45
        assert run.data["notes"] == sorted(run.data["notes"], key=int)

    def test_an_event_that_a_handler_makes_occur_is_handled_after_it(self, work):
        @agent("chained", spawn_on="booking_created")
        class Chained:
            Context = Notes

            @handler("booking_created")
            def created(self, ctx, event):
                event.entity.status = "confirmed"
                event.entity.save()
                ctx.notes.append("created")

            @handler("booking_confirmed")
            def confirmed(self, ctx):
                ctx.notes.append("confirmed")

        book()
        work()
        assert the_agent().data["notes"] == ["created", "confirmed"]

    def test_a_handler_that_feeds_itself_is_stopped_as_a_storm(self, work, settings):
        settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": 6}

        @agent("storm", spawn_on="booking_created")
        class Storm:
            Context = Notes

            @handler("booking_noted")
            def noted(self, ctx, event):
                ctx.count += 1
                change(event.entity, note=str(ctx.count))

        booking = book()
        work()
        change(booking, note="begin")
        work()
        assert 3 <= the_agent().data["count"] <= 7
        assert "EventStormError" in event_error(booking)


def event_error(booking):

    return Event.objects.of(booking).get(status="parked").error


@pytest.mark.django_db(transaction=True)
class TestContext:
    def test_changes_are_kept_from_handler_to_handler(self, work):
        def answer(self, ctx):
            ctx.count += 1

        answering(answer, "booking_noted")
        booking = book()
        for note in "abc":
            change(booking, note=note)
            work()
        assert the_agent().data["count"] == 3

    def test_changes_made_before_an_exception_are_kept_and_writes_are_not(self, clock, work):
        def answer(self, ctx):
            ctx.count += 1
            ctx.notes.append(f"try {ctx.count}")
            leave(f"try {ctx.count}")
            if ctx.count < 3:
                raise ValueError("not yet")

        answering(answer, retry=Retry(max_attempts=5, base_delay=SECOND))
        book()
        work()
        assert (the_agent().data["count"], effects()) == (1, [])
        clock.tick(SECOND)
        work()
        assert (the_agent().data["count"], effects()) == (2, [])
        clock.tick(2 * SECOND)
        work()
        assert the_agent().data["notes"] == ["try 1", "try 2", "try 3"]
        assert effects() == ["try 3"]

    def test_what_cannot_be_stored_fails_the_handler_and_is_lost(self, work):
        def answer(self, ctx):
            ctx.notes.append("not kept")
            ctx.count = float("nan")

        answering(answer)
        book()
        work()
        execution = the_answer()
        assert (execution.status, execution.attempt) == ("failed", 1)
        assert NotStorableError.__name__ in execution.error
        assert (the_agent().status, the_agent().data["notes"]) == ("active", [])

    def test_the_next_handler_of_the_shift_does_not_see_what_was_lost(self, work):
        @agent("losing", spawn_on="booking_created")
        class Losing:
            Context = Notes

            @handler("booking_created")
            def first(self, ctx):
                ctx.count = 1
                ctx.notes = object()

            @handler("booking_created")
            def second(self, ctx):
                ctx.notes.append(f"count {ctx.count}")

        book()
        work()
        assert the_agent().data["notes"] == ["count 0"]

    def test_a_skipped_handlers_condition_leaves_no_trace_in_the_context(self, work):
        def touching(event, ctx):
            ctx.notes.append("asked")
            return False

        @agent("asked", spawn_on="booking_created")
        class Asked:
            Context = Notes

            @handler("booking_created", condition=touching)
            def first(self):
                pass

            @handler("booking_created")
            def second(self, ctx):
                ctx.count += 1

        book()
        work()
        assert the_agent().data == {**the_agent().data, "notes": [], "count": 1}


@pytest.mark.django_db(transaction=True)
class TestConditions:
    def test_true_and_false(self, work):
        def is_wanted(event, ctx):
            return event.entity.note == "yes" and ctx.entity_id == event.entity_id

        answering(lambda self, ctx: leave(ctx.entity_id), condition=is_wanted)
        book(note="no")
        wanted = book(note="yes")
        work()
        assert effects() == [str(wanted.pk)]
        skipped, done = HandlerExecution.objects.order_by("pk")
        assert (skipped.status, skipped.error, skipped.attempt) == ("skipped", "Its condition was false.", 0)
        assert skipped.finished_at is not None
        assert done.status == "completed"

    def test_it_takes_event_and_ctx_in_any_way(self, work):
        conditions = [
            lambda event, ctx: True,
            lambda ctx, event: ctx.entity_id == event.entity_id,
            lambda e, c: e.entity_id == c.entity_id,
            lambda event: event.event_name == "booking_created",
            lambda ctx: ctx.count == 0,
            lambda context, run: run.status == "active",
            lambda: True,
        ]
        for number, condition in enumerate(conditions):
            answering(lambda self, number=number: leave(number), condition=condition)
            book()
            work()
        assert effects() == [str(number) for number in range(len(conditions))]

    def test_it_is_asked_when_the_handler_is_about_to_run(self, clock, work):
        """The guide's example: the condition is true for a guest who becomes a VIP after the event was armed."""

        @agent("vip", spawn_on="booking_created")
        class Vip:
            class Context(BaseModel):
                is_vip: bool = False

            @handler("booking_noted")
            def promoted(self, ctx, event):
                ctx.is_vip = event.entity.note == "vip"

            @handler("stay_due", condition=lambda event, ctx: ctx.is_vip)
            def vip_welcome(self):
                leave("champagne")

        vip, other = (book(starts_at=clock.now + HOUR) for _ in range(2))
        work()
        change(vip, note="vip")
        change(other, note="nobody")
        clock.tick(HOUR)
        work()
        assert effects() == ["champagne"]
        assert answers(run__entity_id=str(other.pk))[-1] == ("vip_welcome", "skipped")

    @pytest.mark.exact_times
    def test_one_that_raises_is_tried_again_like_the_handler(self, clock, work):
        asked = []

        def fragile(event, ctx):
            asked.append(clock.now)
            if len(asked) < 2:
                raise LookupError("not there yet")
            return True

        answering(lambda self: leave("ran"), condition=fragile, retry=Retry(2, base_delay=10 * SECOND))
        book()
        work()
        execution = the_answer()
        assert (execution.status, execution.attempt, execution.due_at) == ("pending", 1, clock.now + 10 * SECOND)
        assert "not there yet" in execution.error
        clock.tick(10 * SECOND)
        work()
        assert effects() == ["ran"]
        assert the_answer().error == ""

    def test_one_that_raises_for_good_fails(self, clock, work):
        def broken(event, ctx):
            raise LookupError("broken")

        answering(lambda self: leave("ran"), condition=broken, retry=Retry(max_attempts=1))
        book()
        work()
        assert answers() == [("answer", "failed")]


class TestRefusedAtImport:
    def test_an_argument_that_nobody_gives(self):
        with pytest.raises(DefinitionError, match=r"has an unknown parameter 'guest'"):

            @handler("booking_created")
            def takes(self, guest, ctx):
                pass

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"offset": 3}, "offset=3 must be a timedelta"),
            ({"retry": 3}, "retry=3 must be a Retry"),
            ({"timeout": -HOUR}, "timeout"),
            ({"condition": "ctx.is_vip"}, "must be a function of event and ctx"),
            ({"condition": lambda a, b, c: True}, "must be a function of event and ctx"),
            ({"namespace": 5}, "namespace"),
        ],
    )
    def test_options_that_make_no_sense(self, options, says):
        with pytest.raises(DefinitionError, match=says):
            handler("booking_created", **options)

    @pytest.mark.parametrize("name", ["", None, 5])
    def test_names_that_are_none(self, name):
        with pytest.raises(DefinitionError):
            agent(name)
        with pytest.raises(DefinitionError):
            handler(name)

    def test_what_is_no_plain_function(self):
        with pytest.raises(DefinitionError, match="must be a plain function"):

            @handler("booking_created")
            def generator(self):
                yield

        with pytest.raises(DefinitionError, match="decorates a method"):
            handler("booking_created")(Person)

    def test_a_class_without_a_context_or_without_handlers(self):
        with pytest.raises(DefinitionError, match="Context must be a Pydantic model"):

            @agent("contextless")
            class Contextless:
                @handler("booking_created")
                def created(self):
                    pass

        with pytest.raises(DefinitionError, match="it has no handler"):

            @agent("idle")
            class Idle:
                Context = Notes

        with pytest.raises(DefinitionError, match="decorates a class"):
            agent("function")(lambda: None)

    def test_one_method_twice_for_the_same(self):
        with pytest.raises(DefinitionError, match=r"twice handles 'booking_created' twice at the same offset"):

            @agent("twice")
            class Twice:
                Context = Notes

                @handler("booking_created")
                @handler("booking_created")
                def twice(self):
                    pass

    def test_a_name_that_is_taken(self):
        answering(lambda self: None)

        with pytest.raises(DefinitionError, match="the name 'answering' belongs to"):

            @agent("answering")
            class Other:
                Context = Notes

                @handler("booking_created")
                def created(self):
                    pass

    def test_a_default_retry_that_is_none(self):
        with pytest.raises(DefinitionError, match="default_retry=3 must be a Retry"):
            agent("retrying", default_retry=3)

    def test_the_same_class_imported_again_is_the_same_agent(self):
        assert answering(lambda self: None) is not answering(lambda self: None)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_handler_has_its_own_agent_and_no_other(work):
    """With many agents and events, there is exactly one execution for each (agent, event, handler)."""

    @agent("mass", spawn_on="booking_created")
    class Mass:
        Context = Notes

        @handler("booking_created")
        @handler("booking_noted")
        def any_of(self, ctx, event):
            assert ctx.entity_id == event.entity_id
            ctx.count += 1

        @handler("booking_noted")
        def noted(self, ctx):
            ctx.notes.append("x")

    bookings = [book() for _ in range(12)]
    work()
    for booking in bookings:
        change(booking, note="a")
        change(booking, note="b")
    work()
    assert [(run.data["count"], run.data["notes"]) for run in agents()] == [(3, ["x", "x"])] * 12
    assert HandlerExecution.objects.filter(status="completed").count() == 12 * 5
