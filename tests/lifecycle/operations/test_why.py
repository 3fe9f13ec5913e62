"""``why(subject, subscriber)``: the conditions by which the engine decides, and the same verdict."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation import (
    Debounce,
    EventDefinition,
    FreeEvent,
    claims,
    complete,
    emit,
    engine,
    event_workflow,
    on_event,
    on_event_cancelled,
    schedule,
    step,
    wait,
    why,
)
from django_ai.automation.events.models import Event, Schedule
from django_ai.automation.events.why import Answer, Standing
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.captured.models import Parcel
from tests.apps.reservations.models import Reservation
from tests.support.claims import does
from tests.support.rows import event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class OfEntity(BaseModel):
    entity_id: int


def remind(name="remind", event="checkin_due", **options) -> None:
    """Declare a workflow of one step."""

    @event_workflow(event, name=name, **options)
    class Remind:
        Context = OfEntity

        @step(start=True)
        def send(self):
            leave("sent")
            return complete()


def book(clock, **values) -> Reservation:
    return Reservation.objects.create(**{"status": "confirmed", "checkin_at": clock() + DAY, **values})


def the_answer(subject, subscriber: str) -> Answer:
    (answer,) = why(subject, subscriber).answers
    return answer


def failing(answer: Answer) -> list[str]:
    """Return the names of the conditions that do not hold, in their order."""
    return [each.name for each in answer.conditions if each.holds is False]


def found(answer: Answer, name: str) -> str:
    return next(each.found for each in answer.conditions if each.name == name)


# -- the event ---------------------------------------------------------------------------------------------------------


def test_a_false_condition_is_why_nothing_is_planned_yet(clock, work):
    remind(offset=-2 * HOUR)
    stay = book(clock, status="asked")
    answer = the_answer(stay, "remind")
    assert (answer.kind, answer.event, answer.milestone) == ("workflow", "checkin_due", "-2h")
    assert answer.standing == Standing.NOT_YET
    assert answer.reason == "condition: expected true; found false"
    assert failing(answer) == ["condition", "offset", "armed"]
    assert answer.at == stay.checkin_at - 2 * HOUR

    stay.status = "confirmed"
    stay.save()
    answer = the_answer(stay, "remind")
    run = WorkflowRun.objects.get()
    assert (answer.standing, answer.row) == (Standing.WAITS, run)
    assert "waits for its date" in answer.reason

    work(clock.tick(DAY))
    answer = the_answer(stay, "remind")
    assert (answer.standing, answer.acted, failing(answer)) == (Standing.RAN, True, [])


def test_a_withdrawn_run_says_why_it_was_withdrawn(clock, work):
    remind(offset=-2 * HOUR)
    stay = book(clock)
    stay.status = "called off"
    stay.save()
    answer = the_answer(stay, "remind")
    assert answer.standing == Standing.SKIPPED
    assert "the condition of its event is no longer true" in answer.reason
    assert why(stay).did_not_act == [answer_of(stay, "remind")]


def answer_of(stay, name) -> Answer:
    return next(each for each in why(stay).answers if each.subscriber == name)


def test_an_event_that_expired_says_when_its_grace_ended(clock, work):
    on_event("checkin_due", name="greet")(leave)
    stay = book(clock, status="asked")
    grace = next(each for each in the_answer(stay, "greet").conditions if each.name == "grace")
    assert grace.holds
    work(clock.tick(3 * DAY))
    answer = the_answer(stay, "greet")
    assert answer.standing == Standing.DID_NOT
    assert answer.reason == (
        "state: expected pending or processed; found expired: Its condition was not true at its date or within its "
        "grace period."
    )


def test_a_missing_date_is_named(clock):
    on_event("checkin_due", name="greet")(leave)
    answer = the_answer(book(clock, checkin_at=None), "greet")
    assert answer.standing == Standing.NOT_YET
    assert found(answer, "date") == "NULL"


def test_a_condition_that_raises_is_unknown_and_its_last_line_is_shown(clock, work, declare):
    declare(Reservation, EventDefinition("checkin_due", condition=lambda stay: 1 / 0, date_field="checkin_at"))
    on_event("checkin_due", name="greet")(leave)
    answer = the_answer(book(clock), "greet")
    condition = next(each for each in answer.conditions if each.name == "condition")
    assert (condition.holds, condition.found) == (None, "it raised ZeroDivisionError: division by zero")
    assert answer.standing == Standing.NOT_YET


def test_a_parked_event_waits_for_an_operator(clock):
    on_event("checkin_due", name="greet")(leave)
    stay = book(clock)
    Event.objects.filter(event_name="checkin_due").update(status="parked", error="It broke.", wake_at=None)
    answer = the_answer(stay, "greet")
    assert (answer.standing, found(answer, "state")) == (Standing.NOT_YET, "parked: It broke.")


# -- writes that send no signals ---------------------------------------------------------------------------------------


def test_a_row_that_was_written_without_signals_was_not_recorded(clock):
    on_event("reservation_confirmed", name="greet")(leave)
    (stay,) = Reservation.objects.bulk_create([Reservation(status="confirmed")])
    answer = the_answer(stay, "greet")
    assert (answer.event_pk, answer.standing, failing(answer)) == (None, Standing.NOT_YET, ["recorded"])
    assert found(answer, "capture").startswith("capture=False")
    assert found(answer, "condition") == "true"


def test_an_update_that_sends_no_signals_was_not_heard(clock):
    on_event("reservation_confirmed", name="greet")(leave)
    stay = book(clock, status="asked")
    Reservation.objects.update(status="confirmed")
    stay.refresh_from_db()
    answer = the_answer(stay, "greet")
    assert failing(answer)[:1] == ["heard"]
    assert found(answer, "condition") == "true"


def test_captured_models_say_whether_their_triggers_are_installed(clock):
    on_event("parcel_created", name="greet")(leave)
    (parcel,) = Parcel.objects.bulk_create([Parcel()])
    assert found(the_answer(parcel, "greet"), "capture") == "current"


def test_a_transition_shows_what_its_fields_are_now(clock):
    on_event("parcel_shipped", name="ship")(leave)
    parcel = Parcel.objects.create(state="lost")
    answer = the_answer(parcel, "ship")
    assert failing(answer) == ["recorded", "becomes: state"]
    assert found(answer, "becomes: state") == "'lost'"
    assert "from state='packed' to state='sent'" in answer.conditions[0].expected


# -- the subscription --------------------------------------------------------------------------------------------------


def test_another_namespace_is_final(clock, work):
    on_event("checkin_due", name="greet", namespace="berlin")(leave)
    answer = the_answer(book(clock), "greet")
    assert answer.standing == Standing.DID_NOT
    assert answer.reason == "namespace: expected 'berlin'; found no namespace"
    work(clock.tick(DAY))
    assert the_answer(Reservation.objects.get(), "greet").standing == Standing.DID_NOT


def test_a_namespace_that_may_change_is_not_final(clock, declare):
    declare(Reservation, EventDefinition("noted", lambda stay: stay.docs, namespace=lambda stay: stay.note or None))
    on_event("noted", name="greet", namespace="berlin")(leave)
    assert the_answer(book(clock, note="paris"), "greet").standing == Standing.NOT_YET


def test_a_subscriber_of_another_event_is_told_which_events_there_are(clock):
    on_event("parcel_created", name="greet")(leave)
    answer = the_answer(book(clock), "greet")
    assert (answer.standing, failing(answer)) == (Standing.DID_NOT, ["event name"])
    assert "app.Reservation declares 'checkin_due'" in answer.reason


def test_a_subscriber_that_came_later_did_not_get_the_event(clock, work):
    stay = book(clock)
    work()
    on_event("reservation_confirmed", name="late")(leave)
    answer = the_answer(stay, "late")
    assert (answer.standing, failing(answer)) == (Standing.DID_NOT, ["registered since"])
    assert "the code did not have this subscriber" in answer.reason
    clock.tick(40 * DAY)
    assert next(each for each in the_answer(stay, "late").conditions if each.name == "registered since").holds is None


def test_an_unknown_name_is_an_error_with_the_nearest_one(clock):
    remind()
    with pytest.raises(DefinitionError, match=r"No subscriber to events is called 'remnd'. Did you mean 'remind'\?"):
        why(book(clock), "remnd")
    with pytest.raises(DefinitionError, match="must be a model instance"):
        why("checkin_due")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="limit=0"):
        why(book(clock), limit=0)


# -- before a run starts -----------------------------------------------------------------------------------------------


def test_a_claim_is_why_a_run_will_not_start(clock, work):
    remind(offset=-HOUR)
    stay = book(clock)
    holder = does(lambda self: wait("end"), "holder")
    claims.hold("checkin_due", {"pk": stay.pk}, owner=holder, expires_in=None)
    answer = the_answer(stay, "remind")
    assert "claim" in failing(answer)
    assert found(answer, "claim") == f"claimed by workflow {holder}"
    work(clock.tick(23 * HOUR))
    answer = the_answer(stay, "remind")
    assert answer.standing == Standing.SKIPPED
    assert answer.reason.startswith("Skipped: ")


def test_the_function_when_is_called_and_what_it_raises_is_unknown(clock, work):
    remind(when=lambda event: event.entity.note == "vip", offset=-HOUR)
    stay = book(clock)
    assert "when" in failing(the_answer(stay, "remind"))
    remind("broken", when=lambda event: event.entity.nothing, offset=-HOUR)
    when = next(each for each in the_answer(stay, "broken").conditions if each.name == "when")
    assert when.holds is None
    assert "AttributeError" in when.found
    work(clock.tick(23 * HOUR))
    assert the_answer(stay, "remind").standing == Standing.SKIPPED


def test_a_pause_is_what_a_due_run_waits_for(clock, work):
    remind(event="reservation_confirmed")
    engine.pause(workflow="remind")
    stay = book(clock)
    work()
    answer = the_answer(stay, "remind")
    assert (answer.standing, answer.row) == (Standing.WAITS, WorkflowRun.objects.get())
    assert "the end of the pause of the workflow 'remind'" in answer.reason


def test_an_event_that_a_window_has_collected_waits_in_it(clock, work):
    on_event("reservation_confirmed", name="digest", debounce=Debounce(HOUR))(leave)
    stay = book(clock)
    work()
    answer = the_answer(stay, "digest")
    assert answer.standing == Standing.WAITS
    assert "window" in failing(answer)
    work(clock.tick(2 * HOUR))
    assert the_answer(stay, "digest").standing == Standing.RAN


def test_a_callback_for_the_cancellation_waits_for_it(clock, work):
    on_event_cancelled("checkin_due", name="sorry")(leave)
    stay = book(clock)
    assert failing(the_answer(stay, "sorry")) == ["cancelled"]
    event_of(stay, "checkin_due").cancel()
    work()
    assert the_answer(event_of(stay, "checkin_due"), "sorry").standing == Standing.RAN


def test_an_offset_that_was_skipped_says_why(clock, work):
    on_event("checkin_due", name="early", offset=-DAY)(leave)
    stay = book(clock, checkin_at=clock() - HOUR)
    work()
    on_event("checkin_due", name="later", offset=HOUR)(leave)
    assert the_answer(stay, "early").standing == Standing.RAN
    assert the_answer(stay, "later").standing in (Standing.NOT_YET, Standing.DID_NOT)


def test_a_free_event_is_explained_as_well(clock, work):
    FreeEvent("paid")
    on_event("paid", name="thank")(leave)
    event = emit("paid", {"cents": 5}, key="1", at=clock() + DAY)
    assert the_answer(event, "thank").standing == Standing.NOT_YET
    work(clock.tick(DAY))
    assert the_answer(Event.objects.get(), "thank").standing == Standing.RAN


def test_a_schedule_says_what_it_waits_for(clock, work):
    @schedule(DAY, name="nightly")
    def nightly(event):
        leave("night")

    target = f"{nightly.__module__}.{nightly.__qualname__}"
    row = Schedule.objects.create(name="nightly", target=target, every=DAY, anchor=clock(), reached=clock())
    row.plan(clock())
    (answer,) = why(row).answers
    assert (answer.kind, answer.standing, failing(answer)) == ("schedule", Standing.NOT_YET, ["time"])
    row.pause()
    assert failing(why(row).answers[0]) == ["pause", "time"]


# -- the answer --------------------------------------------------------------------------------------------------------


def test_nothing_is_written_and_no_step_is_called(clock, work):
    remind(offset=-HOUR, when=lambda event: True)
    on_event("checkin_due", name="greet")(leave)
    stay = book(clock)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        why(stay)
        why(stay, "remind")
        why(event_of(stay, "checkin_due"), "greet")
    statements = {each["sql"].split()[0] for each in queries.captured_queries}
    assert statements <= {"SELECT"}


def test_the_number_of_queries_does_not_grow_with_the_events(clock, work):
    remind(offset=-HOUR)
    for number in range(3):
        on_event("*", name=f"all{number}")(leave)

    def queries(stay) -> int:
        with CaptureQueriesContext(connection) as captured:
            why(stay)
        return len(captured)

    stay = book(clock)
    work()
    few = queries(stay)
    for _ in range(20):
        Event.objects.create(
            entity_type="reservations.reservation",
            entity_id=str(stay.pk),
            event_name="checkin_due",
            declared_as="checkin_due",
            status="processed",
            occurred_at=clock(),
            position=1,
        )
    assert queries(stay) == few <= 15


def test_an_answer_is_json_and_text(clock, work):
    remind(offset=-HOUR)
    stay = book(clock)
    answers = why(stay, "remind")
    kept = json.loads(json.dumps(answers.to_dict()))
    assert kept["subscriber"] == "remind"
    assert kept["answers"][0]["row"] == f"automation_workflows.workflowrun:{WorkflowRun.objects.get().pk}"
    assert kept["answers"][0]["conditions"][0] == {
        "name": "state",
        "expected": "pending or processed",
        "found": "pending",
        "holds": True,
        "may_change": False,
    }
    text = str(answers).splitlines()
    assert text[0] == str(stay)
    assert text[1].startswith("workflow remind on checkin_due #")
    assert "  + condition: expected true; found true" in text
