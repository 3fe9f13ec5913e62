"""The stories of limits, claims and workers: who holds what, and who waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from django.utils.translation import gettext

from ..db.database_clock import DatabaseNow
from ..db.writer import alias_of
from ..events.claim_owners import find_owners
from ..events.models import EventClaim
from ..queues.admin_stories import Reader
from ..queues.leased import leased_rows
from ..queues.limits.owners import find_owner
from ..queues.models import Limiter, Slot, SlotState, Worker
from ..queues.worker_status import MAX_SILENCE
from .reading import MAX_ENTRIES, deeds_of, deeds_of_people, links_of, page_of
from .story import Fact, Moment, Story, Tone, duration_text, moment_text
from .verb_pages import counted

# -- limits ------------------------------------------------------------------------------------------------------------


def limiter_story(row: Limiter, reader: Reader, now: datetime) -> Story:
    """Return the story of a limit for one value of its key: who holds a slot, and who waits for it, in this order."""
    found = Slot.objects.filter(limiter=row).order_by("pk")
    held = list(found.filter(state__in=[SlotState.HELD, SlotState.RELEASED])[: MAX_ENTRIES + 1])
    queued = list(found.filter(state=SlotState.QUEUED)[: MAX_ENTRIES + 1])
    owners = rows_of_slots([*held, *queued])
    waiting, holding = counted(found.filter(state=SlotState.QUEUED)), counted(found.filter(state=SlotState.HELD))
    story = Story(
        title=str(row),
        state=gettext("In use") if held else gettext("Free"),
        tone=Tone.WAITING if queued else Tone.WORKING if held else Tone.NEUTRAL,
        now=gettext("Rows that hold it: %(held)s. Rows that wait: %(waiting)s.")
        % {"held": holding, "waiting": waiting},
        deeds=deeds_of(row, reader),
        links=links_of(reader),
        data="",
        planned_title=gettext("Who waits for a slot"),
        past_title=gettext("Who holds a slot"),
    )
    story.facts = [
        Fact(gettext("Limit"), row.limit),
        Fact(gettext("Of"), f"{row.row_kind} {row.name}"),
        *([Fact(gettext("Value"), row.value)] if row.value and reader.may_see_data else []),
        Fact(gettext("Created"), moment_text(row.created_at)),
    ]
    if row.next_at is not None:
        story.facts.append(Fact(gettext("Next start"), moment_text(row.next_at)))
    story.planned = [
        _slot(each, owners, reader, Tone.WAITING, gettext("number %s in the queue") % number)
        for number, each in enumerate(queued[:MAX_ENTRIES], start=1)
    ]
    story.past = [_slot(each, owners, reader, Tone.WORKING, _term(each)) for each in held[:MAX_ENTRIES]]
    story.is_cut = len(held) > MAX_ENTRIES
    return story


def _term(slot: Slot) -> str:
    if slot.state == SlotState.RELEASED:
        return gettext("released; counts until the limit looks at its queue")
    if slot.expires_at is not None:
        return gettext("until %s, whatever becomes of the row") % moment_text(slot.expires_at)
    return {
        "execution": gettext("until it waits, sleeps, backs off or ends"),
        "start": gettext("until it has started"),
        "life": gettext("until it ends"),
    }.get(slot.term, "")


def _slot(slot: Slot, owners: dict[tuple[str, int], Any], reader: Reader, tone: Tone, text: str) -> Moment:
    row = owners.get((slot.row_kind, slot.row_pk or 0))
    title = f"{slot.row_kind} #{slot.row_pk}" if row is None else str(row)
    return Moment(title, slot.created_at, tone, text, page_of(row, reader))


def rows_of_slots(given: Iterable[Slot]) -> dict[tuple[str, int], Any]:
    """Return the rows that hold or wait for these parts of limits, with one query for each kind."""
    keys: dict[str, set[int]] = {}
    for slot in given:
        if slot.row_pk is not None:
            keys.setdefault(slot.row_kind, set()).add(slot.row_pk)
    rows_by_key: dict[tuple[str, int], Any] = {}
    for kind, pks in keys.items():
        owner = find_owner(kind)
        if owner is not None:
            rows = owner.model._base_manager.using(alias_of(owner.model)).in_bulk(pks)
            rows_by_key |= {(kind, pk): row for pk, row in rows.items()}
    return rows_by_key


# -- claims ------------------------------------------------------------------------------------------------------------


def claim_story(row: EventClaim, reader: Reader, now: datetime) -> Story:
    """Return the story of a claim: which run keeps which event to itself, and until when."""
    owner = find_owners([(row.owner_kind, row.owner_id)]).get((row.owner_kind, row.owner_id))
    name = str(owner or f"{row.owner_kind} #{row.owner_id}")
    is_over = row.expires_at is not None and row.expires_at <= now
    said = gettext("%(owner)s keeps %(event)s to itself; other runs skip it.")
    if is_over:
        said = gettext("The claim of %(owner)s on %(event)s has expired.")
    story = Story(
        title=gettext("Claim on %s") % row.event_name,
        state=gettext("Expired") if is_over else gettext("Active"),
        tone=Tone.STOPPED if is_over else Tone.WAITING,
        now=said % {"owner": name, "event": row.event_name},
        deeds=deeds_of(row, reader),
        links=links_of(reader),
        data="",
    )
    until = gettext("the end of its run") if row.expires_at is None else moment_text(row.expires_at)
    story.facts = [
        Fact(gettext("Owner"), name, page_of(owner, reader)),
        Fact(gettext("Event"), row.event_name),
        *([Fact(gettext("Namespace"), row.namespace)] if row.namespace else []),
        Fact(gettext("Priority"), str(row.priority)),
        Fact(gettext("Held since"), moment_text(row.held_at)),
        Fact(gettext("Until"), until),
        *([] if row.events_left is None else [Fact(gettext("Events left"), str(row.events_left))]),
    ]
    if reader.may_see_data and row.match:
        story.facts.append(Fact(gettext("Match"), ", ".join(f"{name}={value!r}" for name, value in row.match.items())))
    story.planned = [] if row.expires_at is None or is_over else [Moment(gettext("It expires"), row.expires_at)]
    story.past = [*deeds_of_people(row, reader), Moment(gettext("Held"), row.held_at)]
    return story


# -- workers -----------------------------------------------------------------------------------------------------------


def worker_story(row: Worker, reader: Reader, now: datetime) -> Story:
    """Return the story of a worker process: whether it is alive, and what it has leased now, since when."""
    asked_at = Worker.objects.filter(pk=row.pk).values_list(DatabaseNow(), flat=True).get()
    is_alive = row.stopped_at is None and asked_at - row.seen_at < MAX_SILENCE
    leased = leased_rows(now).get(str(row), []) if is_alive else []
    if row.stopped_at is not None:
        state, said = gettext("Stopped"), gettext("It has stopped at %s.") % moment_text(row.stopped_at)
    elif is_alive:
        state = gettext("Alive")
        said = gettext("It was seen %s ago, and has leased this many rows: %s.") % (
            duration_text(asked_at - row.seen_at),
            len(leased),
        )
    else:
        state, said = gettext("Dead"), gettext("It was last seen at %s.") % moment_text(row.seen_at)
    story = Story(
        title=str(row),
        state=state,
        tone=Tone.WORKING if leased else Tone.GOOD if is_alive else Tone.STOPPED if row.stopped_at else Tone.BAD,
        now=said,
        deeds=deeds_of(row, reader),
        links=links_of(reader),
        data="",
        planned_title=gettext("What it has leased now"),
    )
    story.facts = [
        Fact(gettext("Runtime"), row.runtime),
        Fact(gettext("Kinds"), row.kinds.replace(",", ", ") or gettext("all")),
        Fact(gettext("Queues"), row.queues.replace(",", ", ") or gettext("all")),
        Fact(gettext("Started"), moment_text(row.started_at)),
        Fact(gettext("Performed rows"), str(row.performed)),
    ]
    story.planned = [_leased(each, reader) for each in leased[:MAX_ENTRIES]]
    story.past = list(_life(row))
    return story


def _leased(row: Any, reader: Reader) -> Moment:
    since = row.leased_at
    text = gettext("leased until %s, unless it is renewed") % moment_text(row.wake_at)
    step = getattr(row, "current_step", "")
    title = f"{row}: {step}" if step else str(row)
    return Moment(title, since, Tone.WORKING, text, page_of(row, reader))


def _life(row: Worker) -> Iterator[Moment]:
    if row.stopped_at is not None:
        yield Moment(gettext("Stopped"), row.stopped_at, Tone.STOPPED)
    yield Moment(gettext("Last report"), row.seen_at)
    if row.worked_at is not None:
        yield Moment(gettext("Last performed a row"), row.worked_at, Tone.GOOD)
    yield Moment(gettext("Started"), row.started_at)
