"""The model of the soak: which results the promises allow, given the actions of the outside. It uses no engine code.

For each action of the outside, a *deed*, the two times between which it was committed are known. The *effects* that
user code recorded are read at the end, when nothing is due any more. ``compare`` checks each run's program and each
thing's events, and reports what is missing, what exists twice, and what could not have happened. If the outcome is a
race (a signal against a timeout, a cancellation against a step), each outcome that the deeds allow is correct, but one
of them must have happened completely.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from . import crates
from .crates import of_crates
from .ticking import OWNERS, of_schedules
from .visits import of_visits
from .world import Deed, Effect, Occurrence, Run, World

TRIES = 4
REACH = timedelta(seconds=20)
"""How long before the creation of a run an event may have occurred that still wakes it. The limit covers transactions
in flight, such as that of a worker that is stopped for 5 s, and a database clock that is set back meanwhile."""
BEFORE = timedelta(milliseconds=-800)
MILESTONES = {
    "soak_due-": timedelta(milliseconds=-400),
    "soak_due": timedelta(0),
    "soak_due+": timedelta(milliseconds=600),
}
NEWS_LATER = timedelta(milliseconds=600)
NEWS_BATCH = timedelta(milliseconds=500)
"""How long an event waits at most for the others of its batch."""
ONCE_EACH = ("soak_made", "soak_ready", "soak_gone", *MILESTONES)
"""The events and milestones that may happen at most once for each thing."""


def compare(world: World) -> list[str]:
    """Return the broken promises, one sentence each."""
    parts = (_of_effects, _of_things, _of_news, _of_runs, _of_cancelled, of_schedules, of_crates, of_visits)
    return [said for part in parts for said in part(world)]


def _of_effects(world: World) -> Iterator[str]:
    for effect in world.effects:
        if effect.not_before is not None and effect.at < effect.not_before - world.skew:
            yield f"{effect.owner} {effect.key}: early, at {effect.at}, and not due before {effect.not_before}"
    started = {deed.target for deed in world.deeds if deed.kind == "start"}
    made = {deed.target for kind in ("make", "visit") for deed in world.of_kind(kind)} | crates.names_of(world)
    emitted = {(deed.target, "news") for deed in world.deeds if deed.kind == "emit"}
    for owner in sorted(world.by_owner.keys() - set(OWNERS.values())):
        root, _, part = owner.partition(":")
        if root.split(".")[0] not in started and not (root in made and part) and (root, part) not in emitted:
            yield f"{owner} left effects that were not requested"


# -- news --------------------------------------------------------------------------------------------------------------


def _of_news(world: World) -> Iterator[str]:
    """Each key is one event, with the date that was given first, however often it was emitted."""
    for key in dict.fromkeys(deed.target for deed in world.deeds if deed.kind == "emit"):
        first, *again = world.of("emit", key)
        if others := {deed.result for deed in again} - {first.result}:
            yield f"news {key}: the key is that of event {first.result}, and of {sorted(others)}"
        due = first.detail["due"] or first.ended
        left = Counter((effect.key, effect.serial) for effect in world.by_owner.get(f"{key}:news", ()))
        moments = {"heard": due, "later": due + NEWS_LATER, "together": due + NEWS_BATCH}
        expected = Counter({(what, first.result): 1 for what, at in moments.items() if at <= world.now})
        # What is due at the very end may or may not have been performed by then.
        open_ones = {(what, first.result) for what, at in moments.items() if abs(world.now - at) <= world.slack}
        if due - world.slack <= world.now < due + NEWS_BATCH:
            open_ones.add(("together", first.result))  # others may have filled its batch already
        wrong = {each for each in left.keys() | expected.keys() if left[each] != expected[each]} - open_ones
        if wrong:
            yield f"news {key}: it left {dict(left)}, and {dict(expected)} is right"


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
    calls = world.counted(f"{name}:call")
    kept = world.counted(f"{name}:keeper")
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
        # A deletion also cancels the row that waited for the next touch.
        yield f"it was touched {touched} times, and soak_touched was called or cancelled {done} times"
    occurred = len([each for each in occurrences.get((name, "soak_touched"), ()) if each.at is not None])
    if calls["soak_touched"] != occurred:
        yield f"soak_touched occurred {occurred} times, and was called {calls['soak_touched']} times"
    if calls["rested"] != occurred:
        yield f"soak_touched occurred {occurred} times, and windows had {calls['rested']} of them"
    values = [bool(made.detail["ready"]), *(bool(deed.detail["value"]) for deed in world.of("ready", name))]
    falls = sum(1 for was, becomes in pairwise(values) if was and not becomes)
    done = calls["soak_unready"] + calls["soak_unready cancelled"]
    if done != falls or (calls["soak_unready cancelled"] and not gone):
        yield f"it became unready {falls} times, and soak_unready was called or cancelled {done} times"
    yield from _of_keeper(world, made, gone, calls, kept)
    yield from _of_dates(world, made)


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
    """Return the dates of a thing, each with the earliest and the latest time at which it may have been in force."""
    deeds = [made, *world.of("date", made.target)]
    ends = [*(deed.ended for deed in deeds[1:]), datetime.max.replace(tzinfo=world.now.tzinfo)]
    return [(deed.detail["due"], deed.begun, end) for deed, end in zip(deeds, ends, strict=True)]


def _of_dates(world: World, made: Deed) -> Iterator[str]:
    """Check that no timer is early: when a milestone fired, it was due for a date that was in force."""
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
        # A keeper that did not exist when a milestone fired handles it at a new date that is still to come.
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
            ready = world.counted(f"{name}:call")["soak_ready"]
            found = len(world.by_tag.get(f"{name}:ready", ()))
            if found != ready:
                yield f"{name}:ready: {found} runs, and soak_ready was called {ready} times"
            elif found:
                yield from _of_run(world, f"{name}:ready", deed.detail["program"], name)
            yield from _of_planned(world, deed)


def _of_planned(world: World, made: Deed) -> Iterator[str]:
    name = made.target
    left = world.counted(f"{name}:before")
    dates = _dates(world, made)
    last, frozen = dates[-1][0], [deed.detail["value"] for deed in world.of("freeze", name)]
    allowed = {0, 1}
    if not any(date is not None and date + BEFORE <= world.now for date, _, _ in dates):
        allowed = {0}
    elif _is_cancelled(world, name):
        pass  # the run had started before, or it was withdrawn
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
    """Compares the effects of one run with its program."""

    world: World
    run: Run
    program: Sequence[Mapping[str, Any]]
    thing: str

    def compare(self) -> Iterator[str]:
        undone = [effect for effect in self._folded() if effect.key.endswith(":undone")]
        left = [effect for effect in self._folded() if effect not in undone]
        yield from self._of_undone(left, undone)
        yield from self._of_keys(left)
        yield from self._of_tally(left)
        if self._is_recalled() and self.run.status not in ("completed", "failed", "cancelled"):
            yield f"its thing was deleted, which cancels it, and it is {self.run.status}"
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

    def _of_undone(self, left: Sequence[Effect], undone: Sequence[Effect]) -> Iterator[str]:
        """A run that has done something and is cancelled has undone it once; no other has."""
        is_cancelled = self.run.status == "cancelled"
        if len(undone) > 1 or (undone and not is_cancelled) or (is_cancelled and self.run.tally and not undone):
            yield f"it is {self.run.status} after {[effect.key for effect in left]}, and was undone {len(undone)} times"

    def _folded(self) -> list[Effect]:
        """Return the effects, with repeated ones of one visit outside a transaction counted once. A worker that has
        lost its lease may record such an effect after another worker has continued the run, as it is in no transaction.
        """
        found: list[Effect] = []
        for effect in self.world.by_owner.get(self.run.tag, ()):
            before = found if self.run.lost else found[-1:]
            if not (effect.key.endswith(":loose") and effect.key in [each.key for each in before]):
                found.append(effect)
        return found

    def _of_keys(self, left: Sequence[Effect]) -> Iterator[str]:
        # Two branches of one instruction have received two signals.
        seen = Counter((effect.key, effect.serial if effect.key.endswith(":signal") else None) for effect in left)
        twice = [key for key, number in seen.items() if number > 1]
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
        """Return the possible effects of an instruction that is finished and lets the run continue."""
        # A run that lost three workers was parked, and resumed with all its attempts.
        if instruction.get("fails", 0) >= TRIES and not self.run.lost:
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
            case "stock":
                return {("stocked",), ("missed",)}
            case "sleep":
                return {("sleeps", "timer")}
            case "wait":
                woke = "event" if "event" in instruction["on"] else "signal"
                return {("waits", woke), *([("waits", "timeout")] if instruction.get("timeout") is not None else [])}
            case "choose":
                return {("chooses", "signal"), ("chooses", "timer")}
            case "gather":
                return {("gathers", *["signal"] * number, "gathered") for number in range(3)}
            case "call":
                return {("calls", f"child {status}") for status in ("completed", "failed", "cancelled")}
        return set()

    def _of_instruction(
        self, pc: int, instruction: Mapping[str, Any], took: Sequence[Effect], whats: Sequence[str]
    ) -> Iterator[str]:
        begins = {"sleep": ("sleeps",), "wait": ("waits",), "call": ("calls",), "loose": ("loose",)}
        begins |= {"choose": ("chooses",), "gather": ("gathers",)}
        # An attempt outside a transaction leaves its effect, whatever its outcome.
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
        if (
            instruction["do"] == "stock"
            and whats == ["missed"]
            and not crates.is_gone(self.world, instruction["crate"])
        ):
            yield f"{pc} (stock) missed {instruction['crate']}, which is there"
        if instruction["do"] == "wait" and whats and whats[-1] != "failed":
            yield from self._of_wait(pc, instruction, took, whats)
        if instruction["do"] in ("choose", "gather"):
            yield from self._of_branches(pc, instruction, took)
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

    def _of_branches(self, pc: int, instruction: Mapping[str, Any], took: Sequence[Effect]) -> Iterator[str]:
        """Each signal that a branch has received had come, under one of its names, and was not received before."""
        before = [effect.serial for effect in self._woken_by_same({"on": "broadcast"}, pc)]
        sent: dict[int | None, Deed] = {}
        for name in set(instruction["names"]):
            sent |= {deed.detail["serial"]: deed for deed in self.world.of("broadcast", name)}
        for effect in took:
            if not effect.key.endswith(":signal"):
                continue
            came = sent.get(effect.serial)
            if came is None or came.begun > effect.at + self.world.skew:
                yield f"{pc} ({instruction['do']}) received {effect.serial}, which had not come: {came}"
            if effect.serial in before:
                yield f"{pc} ({instruction['do']}) received {effect.serial} once more"
            before.append(effect.serial)

    def _was_due(self, instruction: Mapping[str, Any], took: Sequence[Effect], came: tuple[datetime, datetime]) -> bool:
        """Return whether a message of that time had to wake the wait, which did not receive it."""
        timed_out, waits, created = len(took) > 1, took[0].at, self.run.started
        if instruction["on"] != "signal" and (created is None or came[0] <= created + 2 * self.world.skew):
            return False  # a message from just before the run was created may or may not wake it
        if instruction["on"] == "broadcast":
            # If it races with a timeout, both outcomes are correct.
            return not timed_out
        # It was sent to this run, or it occurred after the run started, so the wait had to find it.
        return not timed_out or came[1] + self.world.slack < waits

    def _sent(self, pc: int, instruction: Mapping[str, Any]) -> dict[int, tuple[datetime, datetime]]:
        """Return the messages that may wake the wait, by serial, with the two times between which each came."""
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
        """Yield the effects of this run's earlier waits that the same kind of message woke."""
        reason = "event" if "event" in instruction["on"] else "signal"
        for effect in self.world.by_owner.get(self.run.tag, ()):
            number, _, what = effect.key.partition(":")
            if int(number) < pc and what == reason:
                yield effect

    def _of_stop(
        self, pc: int, instruction: Mapping[str, Any], took: Sequence[Effect], whats: Sequence[str]
    ) -> Iterator[str]:
        """Check that there is a reason why the run did not continue from here."""
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
        if self._is_recalled():
            return
        if not any(deed.result for deed in asked) and not any(each.status == "cancelled" for each in parent):
            yield "it was cancelled without a request"

    def _is_recalled(self) -> bool:
        """Return whether the run is that of a thing which had become ready, and was deleted since."""
        name, _, part = self.run.tag.partition(":")
        return part == "ready" and self.world.is_gone(name)


def _is_under(tag: str, other: str) -> bool:
    return tag == other or tag.startswith(f"{other}.")


def _of_cancelled(world: World) -> Iterator[str]:
    """Check that a cancelled run has no effects from after its cancellation."""
    for deed in world.deeds:
        if deed.kind == "cancel" and deed.result:
            for effect in world.by_owner.get(deed.target, ()):
                if effect.at > deed.ended and not effect.key.endswith((":loose", ":undone")):
                    yield f"{deed.target} {effect.key} was left at {effect.at}, and cancelled until {deed.ended}"
            for run in world.by_tag.get(deed.target, ()):
                if run.status != "cancelled":
                    yield f"{deed.target} was cancelled, and is {run.status}"
