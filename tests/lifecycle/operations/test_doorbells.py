"""What a doorbell saves: the rows that it names are claimed at once, and nothing that was just read is read again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.signing import SignedPackage

from django_ai.automation import engine
from django_ai.automation.events.models import Event
from django_ai.automation.queues import drain as drain_module
from django_ai.automation.queues import due, lanes
from django_ai.automation.queues.claim import claim, claim_rows
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.due import KnownDue, doorbells_of
from django_ai.automation.queues.lanes import Lane
from django_ai.automation.queues.models import Maintenance
from django_ai.automation.queues.runtimes.poller import Poller
from django_ai.automation.queues.runtimes.q2 import doorbell
from django_ai.automation.queues.runtimes.q2_brokers import OrmBroker
from django_ai.automation.queues.runtimes.tasks import drain_due
from django_ai.automation.queues.signals import rows_claimed
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.lanes import is_look, leaving
from tests.support.marks import only_on
from tests.support.rows import effects

pytestmark = pytest.mark.django_db(transaction=True)

RUNS = Lane(WorkflowRun)


class Caller:
    """Calls ``drain`` and knows ``known``; notes what ``drain`` tells it."""

    def __init__(self, known: KnownDue | None):
        self.known = known
        self.told: list[str] = []
        self.next_due: dict[Lane, object] = {}
        self.more = False

    def take_known(self):
        self.told.append("take")
        return self.known

    def hears_more(self):
        return self.more

    def before_look(self):
        self.told.append("look")

    def note_idle(self, times):
        self.told.append("idle")
        self.next_due = dict(times)


def foretold(*lanes_due: Lane) -> Caller:
    return Caller(KnownDue(dict.fromkeys(lanes_due, timezone.now()), is_complete=False))


@pytest.fixture(autouse=True)
def plain_lanes():
    """Only the default lane, whatever other tests have declared."""
    declared = dict(lanes._declared)
    lanes.reset()
    yield
    lanes._declared.update(declared)


@pytest.fixture
def one_run():
    leaving("doorbells:one")
    return engine.start("doorbells:one", word="one")


def drained(caller: Caller) -> list[str]:
    """Drain as a worker does, and return the statements."""
    Maintenance.objects.all().delete()
    with CaptureQueriesContext(
        connection,
    ) as queries:
        drain(heartbeat=True, poller=caller, models=[WorkflowRun])
    return [each["sql"] for each in queries]


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_claim_takes_nothing_while_anything_is_paused(one_run):
    engine.pause(one_run)
    assert claim(WorkflowRun, timezone.now(), 5, unless_paused=True) == []
    assert [row.pk for row in claim(WorkflowRun, timezone.now(), 5)] == [one_run.pk]


def test_a_claim_takes_what_is_due_while_nothing_is_paused(one_run):
    assert [row.pk for row in claim(WorkflowRun, timezone.now(), 5, unless_paused=True)] == [one_run.pk]


@only_on("postgresql", reason="only PostgreSQL has synchronous_commit")
@pytest.mark.usefixtures("waits_for_the_disk")
class TestWaitingForTheDisk:
    @pytest.mark.parametrize("by_key", [False, True])
    def test_only_the_commit_of_a_claim_does_not_wait(self, one_run, by_key):
        with CaptureQueriesContext(connection) as queries:
            rows = (
                claim_rows(WorkflowRun, [one_run.pk], timezone.now())
                if by_key
                else claim(WorkflowRun, timezone.now(), 5)
            )
        assert [row.pk for row in rows] == [one_run.pk]
        assert "set_config('synchronous_commit', 'off', true)" in queries[0]["sql"]
        with connection.cursor() as cursor:
            cursor.execute("SHOW synchronous_commit")
            assert cursor.fetchone() == ("on",)

    def test_a_transaction_around_a_claim_waits(self, one_run):
        with transaction.atomic():
            assert claim(WorkflowRun, timezone.now(), 5)
            with connection.cursor() as cursor:
                cursor.execute("SHOW synchronous_commit")
                assert cursor.fetchone() == ("on",)


# -- drain -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "more", "pauses"),
    [(1, True, 1), (4, True, 1), (5, True, 0), (1, False, 0), (0, True, 0)],
)
def test_a_small_claim_while_doorbells_ring_is_followed_by_a_pause(runs, more, pauses, monkeypatch):
    """More rows then share a claim, and a statement that writes their progress."""
    waited: list[float] = []
    leaving("doorbells:one")
    monkeypatch.setattr(drain_module, "_batch_size", lambda model: 20)
    monkeypatch.setattr(drain_module.time, "sleep", lambda seconds: (waited.append(seconds), engine_starts()))

    def engine_starts():
        caller.more = False
        engine.start("doorbells:one", word="later")

    for number in range(runs):
        engine.start("doorbells:one", word=str(number))
    caller = foretold(RUNS)
    caller.more = more
    drained(caller)
    assert waited == [drain_module.GATHER_SECONDS] * pauses
    assert len(effects()) == runs + pauses


def test_each_claim_reports_its_own_rows(monkeypatch):
    """Also where one round claims from several lanes."""
    reports: list[tuple[str, int]] = []

    def note(sender, queue, count, lateness, **kwargs):
        reports.append((queue, count))

    monkeypatch.setattr(drain_module, "_batch_size", lambda model: 20)
    lanes.declare("workflows", "reports", 0)
    leaving("doorbells:one")
    started = [engine.start("doorbells:one", word=str(number)) for number in range(3)]
    WorkflowRun.objects.filter(pk=started[0].pk).update(queue="reports")
    rows_claimed.connect(note)
    try:
        drain(heartbeat=True, models=[WorkflowRun])
    finally:
        rows_claimed.disconnect(note)
    assert sorted(reports) == [("", 2), ("reports", 1)]


def test_what_a_doorbell_names_is_claimed_without_a_look(one_run):
    caller = foretold(RUNS)
    statements = drained(caller)
    assert effects() == ["one"]
    assert caller.told == ["take", "look", "idle"]  # the look at the end
    first = next(sql for sql in statements if is_look(sql) or "lease" in sql)
    assert not is_look(first)


def test_what_was_just_read_is_not_read_again(one_run):
    caller = Caller(KnownDue({RUNS: one_run.wake_at}, is_complete=True))
    drained(caller)
    assert effects() == ["one"]
    assert caller.told == ["take", "look", "idle"]


def test_after_a_doorbell_for_nothing_it_looks(one_run):
    caller = foretold(Lane(Event))
    drain(heartbeat=True, poller=caller)
    assert effects() == ["one"]
    assert caller.told[:2] == ["take", "look"]


def test_a_pause_that_has_begun_is_seen_despite_a_doorbell(one_run):
    leaving("doorbells:two")
    engine.start("doorbells:two", word="two")
    engine.pause(workflow="doorbells:one")
    due.reset()
    caller = foretold(RUNS)
    drained(caller)
    assert effects() == ["two"]
    one_run.refresh_from_db()
    assert one_run.status == "running"
    engine.unpause(workflow="doorbells:one")


def test_drain_tells_when_the_next_row_is_due(one_run):
    later = timezone.now() + timedelta(hours=1)
    WorkflowRun.objects.filter(pk=one_run.pk).update(wake_at=later)
    caller = Caller(None)
    drained(caller)
    assert caller.told == ["take", "look", "idle"]
    assert caller.next_due[RUNS] == WorkflowRun.objects.get().wake_at


# -- the poller --------------------------------------------------------------------------------------------------------


class Bells:
    """A listener that has heard ``names``."""

    hears_every_commit = False

    def __init__(self, *names: str):
        self.names = set(names)
        self.discarded = 0

    def take_heard(self):
        heard, self.names = self.names, set()
        return heard

    @property
    def has_heard(self):
        return bool(self.names)

    def discard(self):
        self.discarded += 1
        self.names.clear()

    def prepare(self):
        pass


def polled(*names: str, **options) -> tuple[Poller, float, int]:
    """Return a poller after one poll, what it returned, and how often it asked for what is due."""
    poller = Poller(1.0, models=[WorkflowRun, Event], **options)
    poller._listener = Bells(*names)
    with CaptureQueriesContext(connection) as queries:
        pause = poller.seconds_until_due()
    return poller, pause, sum(is_look(each["sql"]) for each in queries)


def test_doorbells_that_name_lanes_save_the_poll():
    poller, pause, looks = polled("workflows", "events")
    assert (pause, looks) == (0.0, 0)
    known = poller.take_known()
    assert set(known.times) == {RUNS, Lane(Event)}
    assert not known.is_complete
    assert poller.take_known() is None


@pytest.mark.parametrize("name", ["", "workflows:reports", "workflows:*", "unknown"])
def test_other_doorbells_cause_a_poll(name):
    poller, pause, looks = polled(name, "workflows")
    assert (pause > 0, looks) == (True, 1)
    assert poller.take_known() is None


def test_a_model_with_lanes_causes_a_poll():
    lanes.declare("workflows", "", 5)
    assert polled("workflows")[2] == 1


def test_after_a_look_that_has_found_a_pause_doorbells_cause_polls(one_run):
    engine.pause(one_run)
    poller, _, looks = polled("events")
    assert looks == 0
    poller._work_interval = 0.0
    poller._look()
    poller._listener.names = {"events"}
    with CaptureQueriesContext(connection) as queries:
        poller.seconds_until_due()
    assert sum(is_look(each["sql"]) for each in queries) == 1
    engine.unpause(one_run)


def test_rows_that_are_found_are_handed_to_drain(one_run):
    poller, pause, looks = polled()
    assert (pause, looks) == (0.0, 1)
    known = poller.take_known()
    assert known.is_complete
    assert known.times == {RUNS: WorkflowRun.objects.get().wake_at}


def test_what_drain_has_read_is_the_next_poll():
    Reservation.objects.create()
    poller, *_ = polled()
    later = timezone.now() + timedelta(seconds=5)
    poller.note_idle({RUNS: later})
    with CaptureQueriesContext(connection) as queries:
        assert 0 < poller.seconds_until_due() <= 5
    assert not queries.captured_queries
    with CaptureQueriesContext(connection) as queries:  # once
        poller.seconds_until_due()
    assert queries.captured_queries


def test_where_every_commit_wakes_it_the_poller_looks_itself():
    poller, *_ = polled()
    poller._listener.hears_every_commit = True
    poller.note_idle({})
    with CaptureQueriesContext(connection) as queries:
        poller.seconds_until_due()
    assert queries.captured_queries


def test_doorbells_that_rang_before_a_look_are_discarded():
    poller, *_ = polled()
    poller._listener.names = {"workflows"}
    poller.before_look()
    assert not poller._listener.take_heard()


# -- Django-Q2 ---------------------------------------------------------------------------------------------------------


def test_a_doorbell_task_tells_which_lanes_are_due():
    assert doorbells_of([RUNS, Lane(Maintenance), Lane(WorkflowRun, "reports"), Lane(WorkflowRun, "", 3)]) == [
        "workflows"
    ]
    task = SignedPackage.loads(doorbell("", ["workflows", "events"]))
    assert task["args"] == ("", "workflows,events")


@pytest.mark.parametrize(("due", "looks_first"), [("workflows", False), ("", True), ("unknown", True)])
def test_a_doorbell_task_that_names_lanes_saves_a_look(one_run, due, looks_first):
    with CaptureQueriesContext(connection) as queries:
        assert drain_due("", due) == 1
    statements = [each["sql"] for each in queries]
    look = next(number for number, sql in enumerate(statements) if is_look(sql))
    claimed = next(number for number, sql in enumerate(statements) if "lease" in sql and "workflowrun" in sql)
    assert (look < claimed) is looks_first
    assert effects() == ["one"]


def test_what_rings_comes_before_the_tasks_of_q2_but_not_twice_in_a_row(monkeypatch):
    broker = OrmBroker(list_key="doorbells")
    broker.poller._listener = Bells("workflows")
    fetched = []
    monkeypatch.setattr(broker, "_fetch_stored", lambda: fetched.append(1) or [(1, "stored")])
    ((_, package),) = broker.dequeue()
    assert SignedPackage.loads(package)["args"] == ("", "workflows")
    broker.poller._listener.names = {"workflows"}
    assert broker.dequeue()[0] == (1, "stored")
    assert len(fetched) == 1


def test_rows_that_became_due_after_the_last_doorbell_have_a_doorbell_at_once(one_run):
    """A worker has claimed the rows before: the pause for rows that stay due is for those."""
    poller, pause, _ = polled()
    assert pause == 0.0
    assert poller.seconds_until_due() > 0  # still due
    WorkflowRun.objects.filter(pk=one_run.pk).update(wake_at=timezone.now())
    assert poller.seconds_until_due() == 0.0
