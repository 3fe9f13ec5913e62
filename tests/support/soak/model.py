"""The model of the soak: what the promises allow, given what the outside did. Pure Python, and nothing of the engine.

The outside's *deeds* are known with the moments between which each was committed. What user code left behind, the
*effects*, is read at the end, when nothing is due any more. ``compare`` goes through each run's program and each
thing's events, and says what is missing, what is there twice, and what could not have happened. Where the outcome is a
race (a signal against a timeout, a cancellation against a step) every outcome that the deeds allow is right, but one
of them must have happened as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

TRIES = 4
REACH = timedelta(seconds=20)
"""So far back behind its creation a run may hear what came: behind transactions that were in flight, such as that of a
worker that is stopped for 5 s, and what the clock of the database's machine may be set back meanwhile."""
BEFORE = timedelta(milliseconds=-800)
MILESTONES = {
    "soak_due-": timedelta(milliseconds=-400),
    "soak_due": timedelta(0),
    "soak_due+": timedelta(milliseconds=600),
}
ONCE_EACH = ("soak_made", "soak_ready", "soak_gone", *MILESTONES)
"""What may happen to a thing at most once."""


@dataclass(frozen=True)
class Deed:
    """Something that the outside did: committed between ``begun`` and ``ended``."""

    number: int
    kind: str
    target: str
    begun: datetime
    ended: datetime
    detail: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None


@dataclass(frozen=True)
class Effect:
    owner: str
    key: str
    serial: int | None
    at: datetime
    not_before: datetime | None = None
    idempotency: str = ""


@dataclass(frozen=True)
class Run:
    """A run as it is at the end."""

    tag: str
    status: str
    tally: Sequence[str]
    started: datetime | None = None
    """When it was created, for a run of a workflow."""
    error: str = ""
    lost: bool = False
    """Whether a worker has lost its lease on it."""


@dataclass(frozen=True)
class Occurrence:
    """An event row of a thing: when it occurred, if it did."""

    thing: str
    name: str
    pk: int
    at: datetime | None


@dataclass(frozen=True)
class Milestone:
    """A row that says that a callback or handler was called for a milestone, and when that milestone fired."""

    owner: str
    key: str
    event: int
    fired: datetime
    status: str


@dataclass
class World:
    """All that is known at the end. ``slack``: how long after a moment was read the rows for it may have been.
    ``skew``: by how much the clocks of workers were wrong at most. ``skipped``: how often a claim kept an agent from
    handling the touches of a thing."""

    deeds: Sequence[Deed]
    effects: Sequence[Effect]
    runs: Sequence[Run]
    occurrences: Sequence[Occurrence]
    milestones: Sequence[Milestone]
    now: datetime
    slack: timedelta = timedelta(0)
    skew: timedelta = timedelta(0)
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_owner: dict[str, list[Effect]] = {}
        for effect in self.effects:
            self.by_owner.setdefault(effect.owner, []).append(effect)
        self.by_tag: dict[str, list[Run]] = {}
        for run in self.runs:
            self.by_tag.setdefault(run.tag, []).append(run)
        self.by_target: dict[tuple[str, str], list[Deed]] = {}
        for deed in self.deeds:
            self.by_target.setdefault((deed.kind, deed.target), []).append(deed)

    def of(self, kind: str, target: str) -> list[Deed]:
        return self.by_target.get((kind, target), [])

    def is_gone(self, thing: str) -> bool:
        return bool(self.of("delete", thing))


def compare(world: World) -> list[str]:
    """Return what is not as it was promised: one sentence each, none if all is well."""
    return [*_of_effects(world), *_of_things(world), *_of_runs(world), *_of_cancelled(world)]


def _of_effects(world: World) -> Iterator[str]:
    for effect in world.effects:
        if effect.not_before is not None and effect.at < effect.not_before - world.skew:
            yield f"{effect.owner} {effect.key}: early, at {effect.at}, and not due before {effect.not_before}"
    started = {deed.target for deed in world.deeds if deed.kind == "start"}
    made = {deed.target for deed in world.deeds if deed.kind == "make"}
    for owner in world.by_owner:
        root, _, part = owner.partition(":")
        if root.split(".")[0] not in started and not (root in made and part):
            yield f"{owner} left effects, and nobody asked for it"


# -- things ------------------------------------------------------------------------------------------------------------


def _of_things(world: World) -> Iterator[str]:
    made = [deed for deed in world.deeds if deed.kind == "make"]
    touches = Counter[str]()
    for run in world.runs:
        thing = _thing_of(world, run.tag)
        touches[thing] += sum(1 for effect in world.by_owner.get(run.tag, ()) if effect.key.endswith(":touched"))
    occurrences: dict[tuple[str, str], list[Occurrence]] = {}
    for each in world.occurrences:
        occurrences.setdefault((each.thing, each.name), []).append(each)
    for deed in made:
        for said in _of_thing(world, deed, touches[deed.target], occurrences):
            yield f"thing {deed.target}: {said}"


def _of_thing(
    world: World, made: Deed, touched: int, occurrences: Mapping[tuple[str, str], Sequence[Occurrence]]
) -> Iterator[str]:
    name, gone = made.target, world.is_gone(made.target)
    calls = _counted(world, f"{name}:call")
    kept = _counted(world, f"{name}:keeper")
    for owner in (f"{name}:call", f"{name}:keeper"):
        twice = Counter((effect.key, effect.serial) for effect in world.by_owner.get(owner, ()))
        for (key, serial), number in twice.items():
            if number > 1:
                yield f"{owner} did {key} of event {serial} {number} times"
    for key in ONCE_EACH:
        for who, found in (("callbacks", calls), ("the keeper", kept)):
            if found[key] > 1:
                yield f"{who} did {key} {found[key]} times"
        if calls[key] not in (allowed := _allowed(world, made, key)):
            yield f"{key} was called {calls[key]} times, and {sorted(allowed)} is right"
    for key in ("soak_made", "soak_ready", "soak_due"):
        cancelled = calls[f"{key} cancelled"]
        by_hand = key == "soak_due" and _is_cancelled(world, name)
        if by_hand and (cancelled, calls[key]) != (1, 0):
            yield f"soak_due was cancelled by hand, called {calls[key]} times and heard as cancelled {cancelled} times"
        if cancelled + calls[key] > 1 or (cancelled and not gone and not by_hand):
            yield f"{key} was called {calls[key]} times and cancelled {cancelled} times"
        if gone and cancelled + calls[key] != 1:
            yield f"{key} of a deleted thing was called {calls[key]} times and cancelled {cancelled} times"
    touched += sum(1 for deed in world.of("touch", name) if deed.result)
    done = calls["soak_touched"] + calls["soak_touched cancelled"]
    if done != touched if not gone else done < touched or done > touched + 1:
        # A deletion cancels the row that waited for the next touch, too.
        yield f"it was touched {touched} times, and soak_touched was called or cancelled {done} times"
    occurred = len([each for each in occurrences.get((name, "soak_touched"), ()) if each.at is not None])
    if calls["soak_touched"] != occurred:
        yield f"soak_touched occurred {occurred} times, and was called {calls['soak_touched']} times"
    yield from _of_keeper(world, made, gone, calls, kept)
    yield from _of_dates(world, made)


def _counted(world: World, owner: str) -> Counter[str]:
    return Counter(effect.key for effect in world.by_owner.get(owner, ()))


def _allowed(world: World, made: Deed, key: str) -> set[int]:
    """Return how often a milestone of a thing may have been called."""
    name, gone = made.target, world.is_gone(made.target)
    if key == "soak_made":
        return {0, 1} if gone else {1}
    if key == "soak_gone":
        return {1} if gone else {0}
    if key == "soak_ready":
        values = [bool(made.detail["ready"]), *(deed.detail["value"] for deed in world.of("ready", name))]
        if not any(values):
            return {0}
        return {1} if values[-1] and not gone else {0, 1}
    dates = _dates(world, made)
    if not any(date is not None and date + MILESTONES[key] <= world.now for date, _, _ in dates):
        return {0}
    if _is_cancelled(world, name):
        return {0} if key == "soak_due" else {0, 1}
    frozen = [deed.detail["value"] for deed in world.of("freeze", name)]
    last = dates[-1][0]
    passed = last is not None and last + MILESTONES[key] <= world.now
    return {1} if passed and not gone and not (frozen and frozen[-1]) else {0, 1}


def _is_cancelled(world: World, name: str) -> bool:
    """Return whether the scheduled event of a thing was cancelled before it could occur."""
    return any(deed.result for deed in world.of("cancel event", name))


def _dates(world: World, made: Deed) -> list[tuple[datetime | None, datetime, datetime]]:
    """Return the dates of a thing, each with the earliest moment at which it may, and the last at which it may still
    have been the one in force."""
    deeds = [made, *world.of("date", made.target)]
    ends = [*(deed.ended for deed in deeds[1:]), datetime.max.replace(tzinfo=world.now.tzinfo)]
    return [(deed.detail["due"], deed.begun, end) for deed, end in zip(deeds, ends, strict=True)]


def _of_dates(world: World, made: Deed) -> Iterator[str]:
    """No timer is early: when a milestone fired, a date was in force whose time for it had come."""
    dates = _dates(world, made)
    for milestone in world.milestones:
        if milestone.key not in MILESTONES or milestone.owner.partition(":")[0] != made.target:
            continue
        in_force = [
            date + MILESTONES[milestone.key]
            for date, first, last in dates
            if date is not None and first <= milestone.fired + world.slack and last >= milestone.fired - world.skew
        ]
        if not any(due <= milestone.fired for due in in_force):
            due_at = [str(due) for due in in_force]
            yield f"{milestone.owner} {milestone.key} fired at {milestone.fired}, and was due at {due_at}"


def _of_keeper(world: World, made: Deed, gone: bool, calls: Counter[str], kept: Counter[str]) -> Iterator[str]:
    name, last = made.target, _dates(world, made)[-1][0]
    runs = world.by_tag.get(f"{name}:keeper", [])
    if len(runs) != calls["soak_made"]:
        yield f"{len(runs)} keepers, and soak_made was called {calls['soak_made']} times"
    for run in runs:
        left = Counter(f"{effect.key}:{effect.serial}" for effect in world.by_owner.get(run.tag, ()))
        if Counter(run.tally) != left:
            yield f"the keeper's Context says {sorted(run.tally)}, and its effects are {sorted(left)}"
        if run.status != ("completed" if gone else "active"):
            yield f"its keeper is {run.status}: {run.error}"
    if not runs:
        return
    for key in (*ONCE_EACH, "soak_touched"):
        missing = calls[key] - kept[key]
        if key == "soak_touched" and _claims_touches(world, name):
            missing -= world.skipped.get(name, 0)
        # A keeper that was not there when a milestone fired gets it at the new date, where that lies ahead again.
        to_come = (
            key in MILESTONES and not calls["soak_due"] and last is not None and last + MILESTONES[key] > world.now
        )
        if missing and not (missing > 0 and (to_come or (gone and key != "soak_gone"))):
            yield f"{key} was called {calls[key]} times, and the keeper did it {kept[key]} times"


def _claims_touches(world: World, name: str) -> bool:
    """Return whether some run has claimed the touches of a thing."""
    held = (run for run in world.runs if _thing_of(world, run.tag) == name)
    return any(effect.key.endswith(":holds") for run in held for effect in world.by_owner.get(run.tag, ()))


# -- runs --------------------------------------------------------------------------------------------------------------


def _of_runs(world: World) -> Iterator[str]:
    for deed in world.deeds:
        if deed.kind == "start":
            yield from _of_run(world, deed.target, deed.detail["program"], deed.detail["thing"])
        elif deed.kind == "make":
            name = deed.target
            ready = _counted(world, f"{name}:call")["soak_ready"]
            found = len(world.by_tag.get(f"{name}:ready", ()))
            if found != ready:
                yield f"{name}:ready: {found} runs, and soak_ready was called {ready} times"
            elif found:
                yield from _of_run(world, f"{name}:ready", deed.detail["program"], name)
            yield from _of_planned(world, deed)


def _of_planned(world: World, made: Deed) -> Iterator[str]:
    name = made.target
    left = _counted(world, f"{name}:before")
    dates = _dates(world, made)
    last, frozen = dates[-1][0], [deed.detail["value"] for deed in world.of("freeze", name)]
    allowed = {0, 1}
    if not any(date is not None and date + BEFORE <= world.now for date, _, _ in dates):
        allowed = {0}
    elif _is_cancelled(world, name):
        pass  # it had begun before, or it was withdrawn
    elif last is not None and last <= world.now and not world.is_gone(name) and not (frozen and frozen[-1]):
        allowed = {1}
    for key in ("0:mark", "1:end"):
        if left[key] not in allowed:
            yield f"{name}:before left {key} {left[key]} times, and {sorted(allowed)} is right"
    runs = [run for run in world.by_tag.get(f"{name}:before", ()) if run.status != "waiting"]
    if left["1:end"] != left["0:mark"] or left["1:end"] != len([run for run in runs if run.status == "completed"]):
        yield f"{name}:before did half of it: {dict(left)}, {[run.status for run in runs]}"


def _thing_of(world: World, tag: str) -> str:
    root, _, part = tag.partition(":")
    if part:
        return root
    start = world.of("start", root.split(".")[0])
    return str(start[0].detail["thing"]) if start else ""


def _of_run(world: World, tag: str, program: Sequence[Mapping[str, Any]], thing: str) -> Iterator[str]:
    runs = world.by_tag.get(tag, [])
    if len(runs) != 1:
        yield f"{tag}: there are {len(runs)} runs of it"
        return
    for said in ProgramCheck(world, runs[0], program, thing).compare():
        yield f"{tag}: {said}"


@dataclass
class ProgramCheck:
    """The way of one run through its program."""

    world: World
    run: Run
    program: Sequence[Mapping[str, Any]]
    thing: str

    def compare(self) -> Iterator[str]:
        left = self._folded()
        yield from self._of_keys(left)
        yield from self._of_tally(left)
        at = 0
        for pc, instruction in enumerate(self.program):
            took = []
            while at < len(left) and left[at].key.split(":")[0] == str(pc):
                took.append(left[at])
                at += 1
            whats = [effect.key.partition(":")[2] for effect in took]
            yield from self._of_instruction(pc, instruction, took, whats)
            if whats and whats[-1] == "failed":
                break
            if tuple(whats) not in self._whole(pc, instruction):
                yield from self._of_stop(pc, instruction, took, whats)
                break
        else:
            ends = [effect for effect in left[at:] if effect.key == f"{len(self.program)}:end"]
            at += len(ends)
            if len(ends) != (self.run.status == "completed"):
                yield f"it left {len(ends)} ends, and is {self.run.status}: {self.run.error[-300:]}"
            if not ends:
                yield from self._of_cancelled()
        if at != len(left):
            yield f"it left what cannot come there: {[effect.key for effect in left[at:]]}"

    def _folded(self) -> list[Effect]:
        """Return the effects, those of one visit outside any transaction as one. A worker that has lost its lease may
        leave its own after others have gone on with the run: no transaction holds it back."""
        found: list[Effect] = []
        for effect in self.world.by_owner.get(self.run.tag, ()):
            before = found if self.run.lost else found[-1:]
            if not (effect.key.endswith(":loose") and effect.key in [each.key for each in before]):
                found.append(effect)
        return found

    def _of_keys(self, left: Sequence[Effect]) -> Iterator[str]:
        twice = [key for key, number in Counter(effect.key for effect in left).items() if number > 1]
        if twice:
            yield f"it did twice: {twice}"
        keys: dict[str, set[str]] = {}
        for effect in self.world.by_owner.get(self.run.tag, ()):
            if effect.key.endswith(":loose"):
                keys.setdefault(effect.key, set()).add(effect.idempotency)
        for key, found in keys.items():
            if len(found) != 1:
                yield f"{key} had more than one idempotency key: {found}"

    def _of_tally(self, left: Sequence[Effect]) -> Iterator[str]:
        keys = [effect.key for effect in left if not effect.key.endswith(":failed")]
        if keys != list(self.run.tally):
            ended = self.run.status in ("cancelled", "failed")
            if not (ended and keys and keys[-1].endswith(":loose") and keys[:-1] == list(self.run.tally)):
                yield f"its Context says {list(self.run.tally)}, and its effects are {keys}"

    def _whole(self, pc: int, instruction: Mapping[str, Any]) -> set[tuple[str, ...]]:
        """Return what an instruction leaves that has been done and lets the run go on."""
        if instruction.get("fails", 0) >= TRIES:
            return set()
        match instruction["do"]:
            case "mark" | "loose":
                return {(instruction["do"],)}
            case "hang":
                return {("unhung",)}
            case "hold":
                return {("holds",), ("refused",)}
            case "release":
                return {("released",), ("had none",)}
            case "slow":
                return {("began", "done")}
            case "touch":
                return {("touched",), ("missed",)}
            case "sleep":
                return {("sleeps", "timer")}
            case "wait":
                woke = "event" if "event" in instruction["on"] else "signal"
                return {("waits", woke), *([("waits", "timeout")] if instruction.get("timeout") is not None else [])}
            case "call":
                return {("calls", f"child {status}") for status in ("completed", "failed", "cancelled")}
        return set()

    def _of_instruction(
        self, pc: int, instruction: Mapping[str, Any], took: Sequence[Effect], whats: Sequence[str]
    ) -> Iterator[str]:
        begins = {"sleep": ("sleeps",), "wait": ("waits",), "call": ("calls",), "loose": ("loose",)}
        # A try outside any transaction leaves its effect, whatever becomes of it.
        begun = begins.get(instruction["do"], ())
        fails = instruction.get("fails", 0) >= TRIES or instruction["do"] == "fail"
        whole = {
            *self._whole(pc, instruction),
            (),
            *([begun] if begun else []),
            *([(*begun, "failed")] if fails else []),
        }
        if tuple(whats) not in whole:
            yield f"{pc} ({instruction['do']}) left {list(whats)}"
            return
        if whats and whats[-1] == "failed" and self.run.status != "failed":
            yield f"{pc} ({instruction['do']}) failed, and the run is {self.run.status}"
        if instruction["do"] == "touch" and whats == ["missed"] and self.thing and not self.world.is_gone(self.thing):
            yield f"{pc} (touch) missed a thing that is there"
        if instruction["do"] == "wait" and whats and whats[-1] != "failed":
            yield from self._of_wait(pc, instruction, took, whats)
        if instruction["do"] == "call" and whats:
            yield from _of_run(self.world, f"{self.run.tag}.{pc}", instruction["program"], self.thing)
            child = [run.status for run in self.world.by_tag.get(f"{self.run.tag}.{pc}", ())]
            if whats[-1].startswith("child") and whats[-1] != f"child {child[0] if child else None}":
                yield f"{pc} (call) got {whats[-1]!r}, and the child is {child}"

    def _of_wait(
        self, pc: int, instruction: Mapping[str, Any], took: Sequence[Effect], whats: Sequence[str]
    ) -> Iterator[str]:
        sent = self._sent(pc, instruction)
        before = [effect.serial for effect in self._woken_by_same(instruction, pc)]
        if whats[-1] in ("signal", "event"):
            came = sent.get(took[-1].serial or 0)
            if came is None or came[0] > took[-1].at + self.world.skew:
                known = [each for each in self.world.occurrences if each.pk == took[-1].serial]
                yield f"{pc} (wait) was woken by {took[-1].serial}, which had not come: {came or known}"
            if took[-1].serial in before:
                yield f"{pc} (wait) was woken by {took[-1].serial} once more"
            return
        ready = [
            serial for serial, came in sent.items() if serial not in before and self._was_due(instruction, took, came)
        ]
        if ready and self.run.status not in ("cancelled", "parked"):
            yield f"{pc} (wait) {'timed out' if whats[-1] == 'timeout' else 'still waits'}, and {ready} had come"

    def _was_due(self, instruction: Mapping[str, Any], took: Sequence[Effect], came: tuple[datetime, datetime]) -> bool:
        """Say whether what came at a time had to wake the wait, which went by it."""
        timed_out, waits, created = len(took) > 1, took[0].at, self.run.started
        if instruction["on"] != "signal" and (created is None or came[0] <= created + 2 * self.world.skew):
            return False  # what came just before the run was created may be heard, and need not
        if instruction["on"] == "broadcast":
            # When a timeout and a worker meet it, either is right.
            return not timed_out
        # Sent to this run, or occurred since it began: it was there for the wait to find.
        return not timed_out or came[1] + self.world.slack < waits

    def _sent(self, pc: int, instruction: Mapping[str, Any]) -> dict[int, tuple[datetime, datetime]]:
        """Return what may wake the wait: between which moments it came, by its serial."""
        world = self.world
        if instruction["on"] == "signal":
            return {
                deed.detail["serial"]: (deed.begun, deed.ended)
                for deed in world.of("signal", f"{self.run.tag}:{pc}")
                if deed.result
            }
        if instruction["on"] == "broadcast":
            return {
                deed.detail["serial"]: (deed.begun, deed.ended) for deed in world.of("broadcast", instruction["name"])
            }
        return {
            each.pk: (each.at, each.at)
            for each in world.occurrences
            if each.name == "soak_touched" and each.thing == self.thing and each.at is not None
            and self.run.started is not None and each.at + REACH + 2 * world.skew >= self.run.started
        }  # fmt: skip

    def _woken_by_same(self, instruction: Mapping[str, Any], pc: int) -> Iterator[Effect]:
        """Yield what woke the earlier waits of this run by the same kind of message."""
        reason = "event" if "event" in instruction["on"] else "signal"
        for effect in self.world.by_owner.get(self.run.tag, ()):
            number, _, what = effect.key.partition(":")
            if int(number) < pc and what == reason:
                yield effect

    def _of_stop(
        self, pc: int, instruction: Mapping[str, Any], took: Sequence[Effect], whats: Sequence[str]
    ) -> Iterator[str]:
        """The run did not go on from here: there must be a reason."""
        status = self.run.status
        waits = instruction["do"] == "wait" and list(whats) == ["waits"]
        if status == "suspended":
            child = self.world.by_tag.get(f"{self.run.tag}.{pc}", [])
            if instruction["do"] == "call" and child and child[0].status == "suspended":
                return
            if not waits or instruction.get("timeout") is not None:
                yield f"it still waits at {pc} ({instruction['do']})"
        elif status == "cancelled":
            alone = waits and instruction["on"] == "own event" and self.world.is_gone(self.thing)
            if not alone:
                yield from self._of_cancelled()
        else:
            found = f"it stopped at {pc} ({instruction['do']}) with {list(whats)}, and is {status}"
            yield f"{found}: {self.run.error[-600:]}"

    def _of_cancelled(self) -> Iterator[str]:
        if self.run.status != "cancelled":
            return
        root, tag = self.run.tag.split(".")[0], self.run.tag
        asked = [deed for deed in self.world.deeds if deed.kind == "cancel" and _is_under(tag, deed.target)]
        parent = self.world.by_tag.get(tag.rpartition(".")[0], []) if tag != root else []
        if not any(deed.result for deed in asked) and not any(each.status == "cancelled" for each in parent):
            yield "it was cancelled, and nobody asked for it"


def _is_under(tag: str, other: str) -> bool:
    return tag == other or tag.startswith(f"{other}.")


def _of_cancelled(world: World) -> Iterator[str]:
    """Nothing of a run is kept that was done after it had been cancelled."""
    for deed in world.deeds:
        if deed.kind == "cancel" and deed.result:
            for effect in world.by_owner.get(deed.target, ()):
                if effect.at > deed.ended and not effect.key.endswith(":loose"):
                    yield f"{deed.target} {effect.key} was left at {effect.at}, and cancelled until {deed.ended}"
            for run in world.by_tag.get(deed.target, ()):
                if run.status != "cancelled":
                    yield f"{deed.target} was cancelled, and is {run.status}"
