"""Which agents receive an event: match lookups are compared with values and with expressions on the Context."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from django_ai.automation import AgentManager, Retry, agent, handler
from django_ai.automation.agents.models import AgentRoute, AgentRun
from django_ai.automation.exceptions import DefinitionError
from tests.apps.front_desk.models import Message, Person
from tests.support.front_desk import agents, answers, book, the_agent, the_answer, write
from tests.support.rows import change, effects, leave

HOUR = timedelta(hours=1)


class Facts(BaseModel):
    """A Context with fields of many types."""

    guest_id: int = 0
    name: str = ""
    statuses: list[str] = []
    level: int = 0
    text: str = ""
    box: dict[str, Any] = {}


def listening(match, **context):
    """Spawn an agent that records the text of each message that it receives."""

    @agent("listening")
    class Listening:
        Context = Facts

        @handler("message_received", match=match)
        def heard(self, event):
            leave(event.entity.text)

    return AgentManager.spawn("listening", **context)


def heard_of(*messages, work):
    work()
    return [each for each in messages if each.text in effects()]


@pytest.mark.django_db(transaction=True)
class TestLookups:
    def test_the_agents_match_is_the_default_and_a_handlers_own_overrides_it(self, work):
        """The guide's example: the handler for another model, Message, has its own match."""

        @agent("guest_support", spawn_on="booking_created", match={"guest_id": "{{ ctx.guest_id }}"})
        class GuestSupport:
            class Context(BaseModel):
                guest_id: int
                booking_id: int

            @classmethod
            def create_context(cls, event):
                booking = event.entity
                return cls.Context(guest_id=booking.guest_id, booking_id=booking.id)

            @handler("booking_confirmed")
            def confirmed(self, ctx, event):
                leave(f"{ctx.booking_id} confirmed {event.entity_id}")

            @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
            def handle_message(self, ctx, event):
                leave(f"{ctx.booking_id} {event.entity.text}")

        mine, other = book(), book()
        work()
        change(mine, status="confirmed")
        write(mine.guest, "from my guest")
        write(other.guest, "from the other")
        write(Person.objects.create(), "from nobody")
        work()
        assert sorted(effects()) == sorted(
            [f"{mine.pk} confirmed {mine.pk}", f"{mine.pk} from my guest", f"{other.pk} from the other"]
        )

    @pytest.mark.slow
    def test_a_relation_by_its_key(self, work):
        lookups = ["sender", "sender_id", "sender__id", "sender__pk", "sender__exact", "sender__id__exact"]
        guest = Person.objects.create()
        for number, lookup in enumerate(lookups):
            listening({lookup: "{{ ctx.guest_id }}"}, guest_id=guest.pk)
            work()
            write(guest, f"mine {number}")
            write(Person.objects.create(), "other")
            work()
            assert effects() == [f"mine {each}" for each in range(number + 1)], lookup
            AgentManager.complete(the_agent(status="active"))

    def test_a_relation_is_traversed(self, work):
        listening({"booking__guest__name": "{{ ctx.name }}"}, name="Grace")
        work()
        booking = book(Person.objects.create(name="Grace"))
        write(booking.guest, "of her booking", booking=booking)
        write(booking.guest, "of no booking")
        write(booking.guest, "of another's", booking=book())
        work()
        assert effects() == ["of her booking"]

    def test_a_list_of_values_stays_a_list(self, work):
        listening({"status__in": "{{ ctx.statuses }}"}, statuses=["open", "it's"])
        work()
        guest = Person.objects.create()
        for status in ("open", "closed", "it's", "['open', 'it's']"):
            write(guest, status, status=status)
        work()
        assert effects() == ["open", "it's"]

    def test_a_list_next_to_an_equality(self, work):
        guest = Person.objects.create()
        listening(
            {"sender_id": "{{ ctx.guest_id }}", "status__in": "{{ ctx.statuses }}"}, guest_id=guest.pk, statuses=["a"]
        )
        work()
        write(guest, "yes", status="a")
        write(guest, "wrong status", status="b")
        write(Person.objects.create(), "wrong guest", status="a")
        work()
        assert effects() == ["yes"]

    def test_a_list_of_more_values_than_get_keys(self, work):
        statuses = [f"s{number}" for number in range(150)]
        run = listening({"status__in": "{{ ctx.statuses }}"}, statuses=statuses)
        work()
        assert AgentRoute.objects.filter(run=run).count() == 1
        guest = Person.objects.create()
        write(guest, "yes", status="s149")
        write(guest, "no", status="s150")
        work()
        assert effects() == ["yes"]

    def test_an_empty_list_matches_nothing(self, work):
        listening({"status__in": "{{ ctx.statuses }}"}, statuses=[])
        work()
        write(Person.objects.create(), "no")
        work()
        assert effects() == []

    def test_a_list_that_is_none_fails_the_agent_and_says_so(self):
        with pytest.raises(DefinitionError, match="'status__in' needs a list of values"):
            listening({"status__in": "{{ ctx.text }}"}, text="open")
        assert agents() == []

    def test_a_list_that_is_literal(self, work):
        listening({"status__in": ["open", "new"]})
        work()
        guest = Person.objects.create()
        write(guest, "yes")
        write(guest, "no", status="closed")
        work()
        assert effects() == ["yes"]

    def test_literal_values(self, work):
        listening({"status": "vip", "urgency": 3})
        work()
        guest = Person.objects.create()
        write(guest, "yes", status="vip", urgency=3)
        write(guest, "no", status="vip", urgency=2)
        work()
        assert effects() == ["yes"]

    def test_comparisons_are_the_databases(self, work):
        listening({"urgency__gte": "{{ ctx.level }}", "text__startswith": "a"}, level=3)
        work()
        guest = Person.objects.create()
        write(guest, "ab", urgency=3)
        write(guest, "ac", urgency=2)
        write(guest, "bd", urgency=4)
        work()
        assert effects() == ["ab"]

    def test_context_is_another_word_for_ctx(self, work):
        listening({"text": "{{context.text}}"}, text="this")
        work()
        write(Person.objects.create(), "this")
        work()
        assert effects() == ["this"]

    def test_text_around_expressions(self, work):
        listening({"text": "room {{ ctx.level }}-{{ context.name }}!"}, level=7, name="b")
        work()
        guest = Person.objects.create()
        write(guest, "room 7-b!")
        write(guest, "room 7")
        work()
        assert effects() == ["room 7-b!"]

    def test_a_field_of_a_field(self, work):
        listening({"urgency": "{{ ctx.box.level }}"}, box={"level": 4})
        work()
        write(Person.objects.create(), "yes", urgency=4)
        work()
        assert effects() == ["yes"]

    def test_nothing_is_escaped(self, work):
        texts = ["O'Brien", 'say "hi"', "<b>&amp;</b>", "{{ ctx.name }}", "zażółć 🛎", "a\\'; --", " spaces "]
        for text in texts:
            listening({"text": "{{ ctx.text }}"}, text=text)
        work()
        for text in texts:
            write(Person.objects.create(), text)
        work()
        assert effects() == texts

    def test_values_are_compared_as_the_field_has_them(self, work):
        """A string that contains a number matches an integer column."""
        listening({"urgency": "{{ ctx.text }}"}, text="5")
        work()
        write(Person.objects.create(), "yes", urgency=5)
        work()
        assert effects() == ["yes"]

    def test_a_value_that_the_field_cannot_have_matches_nothing_and_harms_nobody(self, work):
        listening({"urgency": "{{ ctx.text }}", "sender__id__gte": "{{ ctx.name }}"}, text="many", name="x")
        work()
        write(Person.objects.create(), "no")
        work()
        assert effects() == []
        assert the_agent().status == "active"

    def test_what_is_none_matches_null(self, work):
        @agent("of_none")
        class OfNone:
            class Context(BaseModel):
                booking_id: int | None = None

            @handler("message_received", match={"booking_id": "{{ ctx.booking_id }}"})
            def heard(self, event):
                leave(event.entity.text)

        AgentManager.spawn("of_none")
        work()
        booking = book()
        write(booking.guest, "of a booking", booking=booking)
        write(booking.guest, "of none")
        work()
        assert effects() == ["of none"]

    def test_a_match_whose_path_the_context_lacks_parks_nothing_else(self, work):
        """If the Context lacks a value of the match, the agent fails on activation and its error names the field."""

        @agent("lacking", spawn_on="booking_created", match={"note": "{{ ctx.box.missing }}"})
        class Lacking:
            Context = Facts

            @handler("booking_created")
            def created(self):
                pass

        book()
        work()
        run = the_agent()
        assert run.status == "failed"
        assert "no field 'missing'" in run.error

    def test_events_of_two_models_of_one_name(self, work, declare):
        from django_ai.automation import EventDefinition
        from tests.apps.front_desk.models import Case

        declare(Message, EventDefinition("something"))
        declare(Case, EventDefinition("something"))

        @agent("of_something")
        class OfSomething:
            Context = Facts

            @handler("something", match={"guest_id": "{{ ctx.guest_id }}"})
            def heard(self, event):
                leave(type(event.entity).__name__)

            @handler("something", offset=None, match={"sender_id": "{{ ctx.guest_id }}"})
            def heard_too(self, event):
                leave(f"{type(event.entity).__name__} too")

        guest = Person.objects.create()
        AgentManager.spawn("of_something", guest_id=guest.pk)
        work()
        write(guest)
        Case.objects.create(guest=guest)
        work()
        assert sorted(effects()) == ["Case", "Message too"]

    @pytest.mark.slow
    def test_many_agents_and_one_event(self, work, django_assert_max_num_queries):
        @agent("each", match={"guest_id": "{{ ctx.guest_id }}"})
        class Each:
            Context = Facts

            @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
            def heard(self, ctx):
                leave(ctx.guest_id)

        guests = Person.objects.bulk_create([Person() for _ in range(60)])
        for guest in guests:
            AgentManager.spawn("each", guest_id=guest.pk)
        work()
        with django_assert_max_num_queries(25):
            write(guests[30], "hello")
        work()
        assert effects() == [str(guests[30].pk)]
        assert [run.wake_at for run in agents()] == [None] * 60

    def test_an_agent_that_is_parked_misses_nothing_whatever_its_match(self, work):
        guest = Person.objects.create()
        listening({"sender_id": "{{ ctx.guest_id }}"}, guest_id=guest.pk)
        work()
        AgentRun.objects.update(status="parked", wake_at=None)
        write(guest, "by key")
        work()
        the_agent().resume()
        work()
        assert effects() == ["by key"]

    @pytest.mark.parametrize("match", [{"status__in": "{{ ctx.statuses }}"}, {"urgency__gte": "{{ ctx.level }}"}])
    def test_an_agent_that_is_parked_misses_nothing_that_is_compared(self, work, match):
        listening(match, statuses=["open"], level=3)
        work()
        AgentRun.objects.update(status="parked", wake_at=None)
        write(Person.objects.create(), "compared", status="open", urgency=3)
        work()
        the_agent().resume()
        work()
        assert effects() == ["compared"]


@pytest.mark.django_db(transaction=True)
class TestRerouting:
    """A handler's changes to the Context affect routing after its commit."""

    def follower(self, **options):
        @agent("follower", match={"guest_id": "{{ ctx.guest_id }}"}, **options)
        class Follower:
            Context = Facts

            @handler("booking_confirmed", match={"status": "confirmed"}, retry=Retry(max_attempts=1))
            def moved(self, ctx, event):
                ctx.guest_id = event.entity.guest_id
                if event.entity.note == "raise":
                    raise ValueError

            @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
            def heard(self, event):
                leave(event.entity.text)

        return Follower

    def test_it_is_found_by_the_new_value_and_no_longer_by_the_old(self, work):
        self.follower()
        old, new = Person.objects.create(), Person.objects.create()
        AgentManager.spawn("follower", guest_id=old.pk)
        work()
        write(old, "old before")
        write(new, "new before")
        work()
        book(new, status="confirmed")
        work()
        write(old, "old after")
        write(new, "new after")
        work()
        assert effects() == ["old before", "new after"]

    def test_what_was_in_the_mailbox_before_is_still_handled(self, work):
        self.follower()
        old, new = Person.objects.create(), Person.objects.create()
        AgentManager.spawn("follower", guest_id=old.pk)
        work()
        book(new, status="confirmed")
        write(old, "old before the commit")
        work()
        assert effects() == ["old before the commit"]

    def test_the_next_handler_of_the_same_shift_changes_it_again(self, work):
        self.follower()
        guests = [Person.objects.create() for _ in range(4)]
        AgentManager.spawn("follower", guest_id=guests[0].pk)
        work()
        for guest in guests[1:]:
            book(guest, status="confirmed")
        work()
        for number, guest in enumerate(guests):
            write(guest, str(number))
        work()
        assert effects() == ["3"]
        assert AgentRoute.objects.count() == 2

    def test_also_what_it_changed_before_it_raised(self, work):
        self.follower()
        old, new = Person.objects.create(), Person.objects.create()
        AgentManager.spawn("follower", guest_id=old.pk)
        work()
        book(new, status="confirmed", note="raise")
        work()
        assert answers() == [("moved", "failed")]
        write(old, "old")
        write(new, "new")
        work()
        assert effects() == ["new"]

    def test_a_singleton_moves_and_its_old_place_is_free(self, work):
        self.follower(singleton=True)
        old, new = Person.objects.create(), Person.objects.create()
        run = AgentManager.spawn("follower", guest_id=old.pk)
        work()
        book(new, status="confirmed")
        work()
        assert AgentManager.spawn("follower", guest_id=new.pk).pk == run.pk
        assert AgentManager.spawn("follower", guest_id=old.pk).pk != run.pk

    @pytest.mark.parametrize("note", ["", "raise"])
    def test_a_singleton_that_would_take_anothers_place_fails_and_keeps_its_context(self, work, note):
        self.follower(singleton=True)
        one, two = Person.objects.create(), Person.objects.create()
        first = AgentManager.spawn("follower", guest_id=one.pk)
        second = AgentManager.spawn("follower", guest_id=two.pk)
        work()
        book(two, status="confirmed", note=note)
        work()
        failed = the_answer(run=first)
        assert failed.status == "failed"
        assert failed.attempt == 1
        assert "singleton" in failed.error
        assert the_answer(run=second).status == ("failed" if note else "completed")
        first.refresh_from_db()
        assert (first.status, first.data["guest_id"]) == ("active", one.pk)
        write(one, "for one")
        write(two, "for two")
        work()
        assert sorted(effects()) == ["for one", "for two"]


class TestRefusedAtImport:
    """Expressions can read only the fields of the Context."""

    @pytest.mark.parametrize(
        "value",
        [
            "{{ ctx.__class__ }}",
            "{{ ctx._private }}",
            "{{ ctx.guest_id.__class__ }}",
            "{{ ctx.guest_id() }}",
            "{{ ctx.name|upper }}",
            "{{ ctx }}",
            "{{ event.entity }}",
            "{{ settings.SECRET_KEY }}",
            "{% load static %}",
            "{% now 'Y' %}",
            "{# comment #}",
            "{{ ctx.guest_id",
            "ctx.guest_id }}",
            "{{ }}",
            "{{ ctx['name'] }}",
            "{{ ctx.guest_id + 1 }}",
        ],
    )
    def test_what_is_no_field_of_the_context(self, value):
        with pytest.raises(DefinitionError):

            @agent("refused", match={"id": value})
            class OfTheAgent:
                Context = Facts

                @handler("booking_created")
                def created(self):
                    pass

        with pytest.raises(DefinitionError):

            @agent("refused")
            class OfAHandler:
                Context = Facts

                @handler("booking_created", match={"id": value})
                def created(self):
                    pass

    def test_a_field_that_the_context_does_not_have(self):
        with pytest.raises(DefinitionError, match=r"no field 'gest_id'\. Did you mean 'guest_id'"):

            @agent("refused", match={"id": "{{ ctx.gest_id }}"})
            class OfTheAgent:
                Context = Facts

                @handler("booking_created")
                def created(self):
                    pass

        with pytest.raises(DefinitionError, match=r"@handler on created.*no field 'gest_id'"):

            @agent("refused")
            class OfAHandler:
                Context = Facts

                @handler("booking_created", match={"id": "{{ context.gest_id }} or so"})
                def created(self):
                    pass

    @pytest.mark.parametrize("match", ["guest_id", ["guest_id"], {1: 2}, {"a b": 1}, {"id": {"nested": 1}}])
    def test_what_is_no_match(self, match):
        with pytest.raises(DefinitionError):
            handler("booking_created", match=match)

    def test_a_refused_agent_is_not_registered(self):
        from django_ai.automation.agents.definitions import all_agents

        with pytest.raises(DefinitionError):

            @agent("refused", match={"id": "{{ ctx.nothing }}"})
            class Refused:
                Context = Facts

                @handler("booking_created")
                def created(self):
                    pass

        assert "refused" not in {each.name for each in all_agents()}
