"""The parts of the comparison with peers that need no peer: rates, medians, tables, and what a failure leaves."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench.peers import environments, main
from bench.peers.contestants import ALL, CONTESTANTS, Contestant, named
from bench.peers.environments import NoEnvironmentError
from bench.peers.logbook import VARIABLE, Logbook, Note, drain_rate, note
from bench.peers.main import Ready, Table, in_a_group_of_its_own, plan, prepare, take
from bench.peers.measure import MEASUREMENTS
from bench.peers.results import Results, growth, report, table
from tools.environment import ROOT

SECOND = 1_000_000_000


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "folder" / "peers.json")


def options(**changed: Any) -> argparse.Namespace:
    given = {"calls": 20, "flows": 4, "probes": 3, "finished": [0, 10], "measure": ["drain", "five", "growth"]}
    return argparse.Namespace(**{**given, **changed})


def ready(tmp_path: Path, name: str = "celery") -> Ready:
    return Ready(named(name), Path(sys.executable), Table(tmp_path))


def answers(monkeypatch: pytest.MonkeyPatch, code: int, figures: dict[str, Any] | None, printed: str = "") -> None:
    """Let the next measurements end with this exit code, these figures and this text."""

    def run(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
        if figures is not None:
            (out,) = [Path(each.partition("=")[2]) for each in command if each.startswith("--out=")]
            out.write_text(json.dumps(figures))
        return code, printed

    monkeypatch.setattr(main, "in_a_group_of_its_own", run)


# Rates


def test_the_rate_begins_when_the_last_process_has_begun():
    alone = [Note(number, number, 1) for number in range(5)]
    second = Note(5, SECOND, 2)
    together = [Note(6 + number, 2 * SECOND, 1 + number % 2) for number in range(10)]
    assert drain_rate([*alone, second, *together], 5 * SECOND, 2) == 10 / 4


def test_a_process_that_took_no_part_fails_the_measurement():
    with pytest.raises(ValueError, match="1 of 2 worker processes took part"):
        drain_rate([Note(1, 1, 1), Note(2, 2, 1)], 3, 2)


def test_a_process_that_came_too_late_fails_the_measurement():
    notes = [Note(number, number, 1) for number in range(20)] + [Note(20, 20, 2)]
    with pytest.raises(ValueError, match="only 0 of 21 calls were left"):
        drain_rate(notes, 30, 2)


def test_the_logbook_reads_what_was_noted_since_it_was_cleared(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "log"))
    logbook = Logbook(tmp_path / "log")
    assert logbook.notes() == []
    note(1)
    logbook.clear()
    before = time.monotonic_ns()
    note(7)
    (found,) = logbook.notes()
    assert (found.number, found.process, logbook.count()) == (7, os.getpid(), 1)
    assert before <= found.moment <= time.monotonic_ns()


# Medians, ratios, tables


def test_a_median_is_that_of_the_rounds(results):
    for number, value in ((1, 10.0), (2, 90.0), (3, 20.0)):
        results.add("celery", "drain", number, {"per second": value})
    assert results.median("celery", "drain", "per second") == 20
    assert results.median("celery", "starts", "per second") is None


def test_a_ratio_compares_figures_of_the_same_round(results):
    for number, ours, peer in ((1, 10.0, 5.0), (2, 400.0, 100.0), (3, 30.0, 10.0)):
        results.add("ours-worker", "drain", number, {"per second": ours})
        results.add("celery", "drain", number, {"per second": peer})
    results.add("ours-worker", "drain", 4, {"per second": 1000.0})  # the peer failed in this round
    assert results.ratio("ours-worker", "celery", "drain", "per second") == 3
    assert results.ratio("ours-worker", "q2", "drain", "per second") is None


def test_rounds_that_are_added_have_numbers_of_their_own(results):
    assert results.last_round() == 0
    results.add("celery", "drain", 2, {"per second": 10.0})
    results.failed("dbos", "drain", 3, "broken")
    assert Results.load(results.path).last_round() == 3


def test_the_report_has_medians_ratios_growth_and_what_is_missing(results):
    results.add("ours-worker", "drain", 1, {"per second": 300.0})
    results.add("celery", "drain", 1, {"per second": 1200.0})
    results.add("ours-worker", growth(1000), 1, {"per second": 250.0})
    found = {"versions": {"celery": "5.5"}, "command": "worker", "settings": "acks_late", "notes": "no history"}
    results.describe("celery", found)
    results.missing("dbos", "cannot install dbos")
    results.failed("q2", "latency", 1, "exit code 1: broken")
    text = report(results)
    assert "| one-step calls a second, from a backlog | 300               | 1,200          |" in text
    assert "| one-step calls a second, from a backlog | 0.25           |" in text
    assert "| automation_worker                  | 250   |" in text
    assert "| Celery (Redis) | celery 5.5 | worker  | acks_late | no history |" in text
    assert "- missing: DBOS: cannot install dbos" in text
    assert "- failed: Django-Q2 (ORM), latency, round 1: exit code 1: broken" in text


def test_a_report_of_nothing_is_an_empty_table(results):
    assert report(results) == "| median |\n| ------ |"


def test_the_columns_of_a_table_are_even():
    assert table(["a", "long heading"], [["wide cell", "1"]]).splitlines() == [
        "| a         | long heading |",
        "| --------- | ------------ |",
        "| wide cell | 1            |",
    ]


# What a failure leaves


def test_a_peer_that_fails_loses_no_results(results, tmp_path, monkeypatch):
    answers(monkeypatch, 0, {"per second": 10.0})
    take(ready(tmp_path), results, "drain", 1, 20, 0)
    answers(monkeypatch, 1, None, "Traceback\n\nBrokenError: it broke\n")
    take(ready(tmp_path, "dbos"), results, "drain", 1, 20, 0)
    assert len(Results.load(results.path).content["failures"]) == 1
    answers(monkeypatch, 0, {"per second": 11.0})
    take(ready(tmp_path), results, "growth", 2, 20, 10)
    written = Results.load(results.path)
    assert written.median("celery", "drain", "per second") == 10
    assert written.median("celery", growth(10), "per second") == 11
    assert written.content["failures"] == [
        {"contestant": "dbos", "measurement": "drain", "round": 1, "reason": "exit code 1: BrokenError: it broke"}
    ]
    assert not results.path.with_name("peers.json.new").exists()


def test_the_figures_of_an_earlier_measurement_are_not_those_of_one_that_fails(results, tmp_path, monkeypatch):
    (tmp_path / "figures.json").write_text('{"per second": 99.0}')
    answers(monkeypatch, 0, None, "broken")
    take(ready(tmp_path), results, "drain", 1, 20, 0)
    assert results.measured() == []


def test_a_program_that_is_missing_leaves_its_contestant_out(results, tmp_path, monkeypatch):
    answers(monkeypatch, 3, {"missing": "the program pgbench is not on PATH"})
    assert prepare(named("pgbench"), Table(tmp_path), results) is None
    assert Results.load(results.path).content["missing"] == {"pgbench": "the program pgbench is not on PATH"}


def test_the_database_of_a_contestant_that_cannot_start_is_dropped(results, tmp_path, monkeypatch):
    done: list[str] = []

    class Server:
        def create(self, name: str) -> None:
            done.append(f"create {name}")

        def drop(self, name: str) -> None:
            done.append(f"drop {name}")

        def environment(self, database: str) -> dict[str, str]:
            return {}

    answers(monkeypatch, 1, None, "broken")
    assert prepare(named("pgbench"), Table(tmp_path, postgresql=Server()), results) is None  # type: ignore[arg-type]
    assert done == ["create peers_pgbench", "drop peers_pgbench"]


def test_a_server_that_is_missing_leaves_out_only_who_needs_it(results, tmp_path, monkeypatch):
    answers(monkeypatch, 0, {"versions": {}})
    monkeypatch.setattr(main, "interpreter", lambda name, requirements: Path(sys.executable))
    table = Table(tmp_path, absent={"redis": "No Redis"})
    found = [each.name for each in CONTESTANTS if prepare(each, table, results)]
    assert found == [each.name for each in CONTESTANTS if each.name != "celery"]
    assert results.content["missing"] == {"celery": "No Redis"}


def test_a_package_that_cannot_be_installed_leaves_its_peer_out(results, tmp_path, monkeypatch):
    def refuse(python: Path, *packages: str) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(environments, "CACHE", tmp_path)
    monkeypatch.setattr(environments, "create_empty", lambda folder: folder / "bin" / "python")
    monkeypatch.setattr(environments, "install", refuse)
    with pytest.raises(NoEnvironmentError, match="cannot install absent>=1"):
        environments.interpreter("absent", ("absent>=1",))
    assert (
        prepare(Contestant("absent", "Absent", "absent", requirements=("absent>=1",)), Table(tmp_path), results) is None
    )
    assert "cannot install absent>=1" in results.content["missing"]["absent"]


def test_an_environment_is_installed_again_only_when_its_requirements_change(tmp_path, monkeypatch):
    installed = []

    def create(folder: Path) -> Path:
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "bin" / "python").touch()
        return folder / "bin" / "python"

    monkeypatch.setattr(environments, "CACHE", tmp_path)
    monkeypatch.setattr(environments, "create_empty", create)
    monkeypatch.setattr(environments, "install", lambda python, *packages: installed.append(packages))
    for requirements in (("a>=1",), ("a>=1",), ("a>=2",)):
        environments.interpreter("peer", requirements)
    assert installed == [("a>=1",), ("a>=2",)]


def test_no_process_outlives_its_measurement():
    child = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)"
    code, printed = in_a_group_of_its_own([sys.executable, "-c", parent], dict(os.environ), 60)
    assert code == 0
    command = Path(f"/proc/{int(printed)}/cmdline")
    deadline = time.monotonic() + 10
    while command.exists() and command.read_bytes():  # empty: killed, and not yet reaped
        assert time.monotonic() < deadline, "the child still runs"
        time.sleep(0.01)


def test_a_measurement_that_takes_too_long_says_so():
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert in_a_group_of_its_own(sleeper, dict(os.environ), 0.01) == (-1, "no answer within 0.01 s")


# The catalogue


def test_each_contestant_has_a_driver_and_known_measurements():
    for each in CONTESTANTS:
        assert (ROOT / "bench" / "peers" / "drivers" / f"{each.driver}.py").exists()
        assert set(each.measurements) <= set(ALL)
    assert set(MEASUREMENTS) == set(ALL)


def test_a_round_measures_growth_once_for_each_number_of_finished_calls():
    assert plan(options()) == [("drain", 20, 0), ("five", 4, 0), ("growth", 20, 0), ("growth", 20, 10)]
