"""What the agents of the demo must do; see ``promises.py`` for how a check works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import Event, EventClaim
from hotel.models import Message
from hotel.pace import hours

from .measures import in_time, seconds
from .promise import Promise
from .story import BOOKINGS, Day

CAME = ("Ada", "Ben", "Gil", "Hana")
LEFT = ("Eve", "Finn", "Hana")
EXPECTED_EXECUTIONS = {  # exactly these executions must exist at the end
    ("introduce", "completed"): len(BOOKINGS),
    ("look_forward", "completed"): len(CAME),
    ("show_the_way", "completed"): len(CAME),
    ("bring_champagne", "completed"): 1,
    ("bring_champagne", "skipped"): len(CAME) - 1,
    ("call_a_taxi", "completed"): len(LEFT),
    ("say_goodbye", "completed"): len(LEFT),
    ("give_up", "completed"): 2,
    ("answer", "completed"): 3,
    ("answer", "skipped"): 4,
    ("count_the_letters", "completed"): 7,
    ("take_over", "completed"): 2,
    ("answer_in_person", "completed"): 1,
    ("answer_in_person", "skipped"): 1,
    ("hand_back", "completed"): 2,
    ("ask_again", "completed"): 2,
}


def promises() -> Iterator[Promise]:
    yield Promise("Each confirmed stay has its own journey agent", started)
    yield Promise(
        "Hana's agent greets her three hours before check-in", lambda day: handled(day, "Hana", "look_forward", 1)
    )
    yield Promise("Hana's agent shows her the way at check-in", lambda day: handled(day, "Hana", "show_the_way", 4))
    yield Promise("Hana's agent completes an hour after check-out", ended)
    yield Promise("Ben's agent follows his new check-in", lambda day: handled(day, "Ben", "look_forward", 5))
    yield Promise("Conditions are evaluated when the event occurs", evaluated_in_time)
    yield Promise("While a handler waits for its retry, others run", retried)
    yield Promise("A message is routed to the agent by its guest", found_by_guest)
    yield Promise("Two complaints, one agent: a singleton", taken_over)
    yield Promise("A claim: support answers, the journey does not", skipped_by_claim)
    yield Promise("Finn's messages are not claimed: he is answered", lambda day: answered(day, "I pay tomorrow, yes?"))
    yield Promise("Claim released: the journey answers again", handed_back)
    yield Promise("A handler that ignores claims counted every message", counted)
    yield Promise("Support asks again an hour later, and completes", asked_again)
    yield Promise("Cleo's and Dan's agents end with their stays", cancelled)
    yield Promise("Every agent handled every event, once", nothing_else, at_last=True)


def started(day: Day) -> str | None:
    first = HandlerExecution.objects.filter(handler="introduce", status="completed")
    if first.count() < len(BOOKINGS):
        return None
    runs = AgentRun.objects.filter(name="hotel.journey").count()
    assert runs == first.values("run").distinct().count() == len(BOOKINGS), f"{runs} agents"
    last = max(each.finished_at for each in first)
    return f"{runs} agents, the last {seconds(day.started, last):.2f} s after the first save"


def handled(day: Day, name: str, handler: str, hour: float) -> str | None:
    execution = finished(day.journey(name), handler)
    if execution is None:
        return None
    assert execution.status == "completed", f"{execution.status}: {execution.error}"
    return in_time(execution.started_at, day.at(hour))


def ended(day: Day) -> str | None:
    late, run = handled(day, "Hana", "say_goodbye", 7.75), day.journey("Hana")
    if late is None or run is None:
        return None
    assert run.status == "completed", f"it is {run.status}: {run.error}"
    stages = ["introduce", "look_forward", "show_the_way", "call_a_taxi", "say_goodbye"]
    order = run.executions.filter(handler__in=stages).order_by("finished_at").values_list("handler", flat=True)
    assert list(order) == stages, f"the order was {list(order)}"
    return f"{late}, {len(stages)} stages in order"


def evaluated_in_time(day: Day) -> str | None:
    offered = [finished(day.journey(name), "bring_champagne") for name in CAME]
    early = answer(day, "May I come early?")
    if early is None or not all(offered):
        return None
    silent = [each for each in (early, *offered) if each and each.status == "skipped"]
    assert all(each.error == "Its condition was false." for each in silent), f"{[each.error for each in silent]}"
    assert early in silent, "a message from before check-in was answered"
    bottles = Message.objects.filter(text__startswith="Champagne")
    assert [each.reservation_id for each in bottles] == [day.guests["Hana"].pk], f"{[*map(str, bottles)]}"
    return f"{len(CAME)} guests, 1 VIP, 1 bottle; no answer before check-in"


def retried(day: Day) -> str | None:
    found = [each for name in LEFT if (each := finished(day.journey(name), "call_a_taxi"))]
    between = answer(day, "Is there some cake left?")
    if between is None or len(found) < len(LEFT):
        return None
    waits = []
    for execution in found:
        assert execution.attempt == 2, f"{execution.attempt} attempts"
        in_time(execution.started_at, execution.due_at)
        waits.append(seconds(execution.created_at, execution.started_at))
    assert min(waits) >= 2.0, f"{waits}"
    taxis = Message.objects.filter(text__endswith="a taxi is on its way").count()
    assert taxis == len(LEFT), f"{taxis} taxis"
    hanas = found[-1]
    assert between.run == hanas.run, f"Hana's message was routed to {between.run}"
    assert hanas.created_at < between.started_at < hanas.started_at, "a message waited for a taxi"
    return ", ".join(f"{wait:.2f} s" for wait in waits) + "; a message answered meanwhile"


def found_by_guest(day: Day) -> str | None:
    late = answered(day, "Is there a sauna?")
    if late is None:
        return None
    execution = answer(day, "Is there a sauna?")
    reached = {each.run for each in execution.event.handler_executions.all()} if execution else set()
    assert reached == {day.journey("Hana")}, f"it was routed to {reached}"
    return late


def taken_over(day: Day) -> str | None:
    found = list(HandlerExecution.objects.filter(handler="take_over", finished_at__isnull=False))
    if len(found) < 2:
        return None
    assert found[0].run == found[1].run, f"{found[0].run} and {found[1].run}"
    return f"{found[0].run}: " + ", ".join(in_time(each.started_at, each.event.occurred_at) for each in found)


def skipped_by_claim(day: Day) -> str | None:
    skipped = answer(day, "Now there is a puddle!")
    support = AgentRun.objects.filter(name="hotel.support").first()
    instead = answered(day, "Now there is a puddle!", "answer_in_person")
    if skipped is None or instead is None:
        return None
    assert skipped.status == "skipped", "the journey agent answered"
    assert f"is claimed by agent {support}" in skipped.error, skipped.error
    assert day.claimed_by == support, f"the holder of the claim was {day.claimed_by}"
    return f"{support} answers in person, {instead}"


def handed_back(day: Day) -> str | None:
    late = answered(day, "Is there some cake left?")
    if late is None:
        return None
    claims = EventClaim.objects.count()
    assert not claims, f"{claims} claims are still held"
    took, gave = (HandlerExecution.objects.filter(handler=each) for each in ("take_over", "hand_back"))
    held = seconds(took.earliest("finished_at").finished_at, gave.latest("finished_at").finished_at)
    return f"held for {held:.1f} s; {late}"


def counted(day: Day) -> str | None:
    run = day.journey("Hana")
    if run is None or not run.is_finished:
        return None
    answered = run.executions.filter(handler="answer", status="completed").count()
    assert (run.data["letters"], answered) == (3, 2), f"{run.data['letters']} counted, {answered} answered"
    return "3 messages, 2 answered by the journey"


def asked_again(day: Day) -> str | None:
    found = list(HandlerExecution.objects.filter(handler="ask_again", status="completed"))
    if len(found) < 2:
        return None
    run = found[0].run
    assert run.status == "completed", f"it is {run.status}: {run.error}"
    return ", ".join(in_time(each.started_at, each.event.at + hours(1)) for each in found)


def cancelled(day: Day) -> str | None:
    lates = []
    for name in ("Cleo", "Dan"):
        run = day.journey(name)
        if run is None or not run.is_finished:
            return None
        assert run.status == "cancelled", f"{name}'s agent is {run.status}"
        names = [each.handler for each in run.executions.all()]
        assert names == ["introduce", "give_up"], f"{name}'s agent handled {names}"
        lates.append(in_time(run.finished_at, run.executions.get(handler="give_up").event.occurred_at))
    return ", ".join(lates)


def nothing_else(day: Day) -> str | None:
    if HandlerExecution.objects.filter(status="pending").exists():
        return None
    stuck = AgentRun.objects.unfinished().exclude(status="active")
    assert not stuck, f"{[f'{each} is {each.status}' for each in stuck]}"
    found = Counter(HandlerExecution.objects.values_list("handler", "status"))
    wrong = {
        key: (found[key], EXPECTED_EXECUTIONS.get(key, 0))
        for key in found.keys() | EXPECTED_EXECUTIONS
        if found[key] != EXPECTED_EXECUTIONS.get(key, 0)
    }
    assert not wrong, f"found and expected: {wrong}"
    runs = AgentRun.objects.count()
    assert runs == len(BOOKINGS) + 1, f"{runs} agents instead of one per stay and one for Hana's complaints"
    return f"{runs} agents, {found.total()} executions"


def finished(run: AgentRun | None, handler: str) -> HandlerExecution | None:
    """Return the finished execution of a handler that an agent calls only once. Asserts that it was called once."""
    found = list(run.executions.filter(handler=handler)) if run else []
    if not found:
        return None
    assert len(found) == 1, f"{run} called {handler} {len(found)} times"
    return found[0] if found[0].finished_at else None


def answer(day: Day, letter: str, handler: str = "answer") -> HandlerExecution | None:
    """Return the finished execution of a handler for a message."""
    if letter not in day.letters:
        return None
    event = Event.objects.of(day.letters[letter]).get(event_name="guest_wrote")
    return event.handler_executions.filter(handler=handler, finished_at__isnull=False).first()


def answered(day: Day, letter: str, handler: str = "answer") -> str | None:
    execution = answer(day, letter, handler)
    if execution is None:
        return None
    assert execution.status == "completed", f"{execution.status}: {execution.error}"
    return in_time(execution.started_at, execution.event.occurred_at)
