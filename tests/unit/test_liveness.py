"""The heartbeat file of a process is touched, without a query, while every working thread makes progress in time."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import timedelta

import pytest
from django.core.management import CommandError

from django_ai.automation.queues import liveness
from django_ai.automation.queues.heartbeat import set_leases
from django_ai.automation.queues.held_leases import HeldLeases
from django_ai.automation.queues.liveness import STALL_SECONDS, LivenessFile
from django_ai.automation.queues.runtimes.dispatcher import Dispatcher
from django_ai.automation.queues.runtimes.supervisor import Supervisor
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.health import probe


@pytest.fixture(autouse=True)
def seconds(monkeypatch):
    """Stop the monotonic clock, and expect progress of no thread at the start of a test."""
    found = [time.monotonic()]
    monkeypatch.setattr(liveness.time, "monotonic", lambda: found[0])
    monkeypatch.setattr(liveness, "_until", {})
    return found


def age(path, by: float) -> None:
    os.utime(path, (time.time() - by, time.time() - by))


class TestFile:
    def test_a_process_of_which_nothing_is_expected_is_alive(self, tmp_path):
        path = tmp_path / "heartbeat"
        mine = LivenessFile(path)
        assert path.read_text() == f"{os.getpid()}\n"
        age(path, 100)
        mine.touch()
        assert liveness.check_liveness(str(path)).is_alive

    def test_a_thread_that_does_not_come_back_ends_it_until_it_does(self, tmp_path, seconds, caplog):
        path = tmp_path / "heartbeat"
        mine = LivenessFile(path)
        liveness.expect_progress(60)
        age(path, 100)
        seconds[0] += 60 + STALL_SECONDS
        mine.touch()
        mine.touch()
        assert not liveness.check_liveness(str(path)).is_alive
        assert caplog.text.count("is stuck") == 1
        liveness.expect_progress()
        mine.touch()
        assert liveness.check_liveness(str(path)).is_alive

    def test_one_thread_is_no_excuse_for_another(self, seconds):
        other = threading.Thread(target=liveness.expect_progress)
        other.start()
        other.join()
        seconds[0] += STALL_SECONDS
        liveness.expect_progress()
        assert not liveness.is_responsive()
        liveness._until.pop(other.ident)
        assert liveness.is_responsive()

    def test_a_file_that_cannot_be_touched_stops_nothing(self, tmp_path, caplog):
        folder = tmp_path / "gone"
        folder.mkdir()
        mine = LivenessFile(folder / "heartbeat")
        (folder / "heartbeat").unlink()
        mine.touch()
        assert (folder / "heartbeat").exists(), "a removed file is created again"
        (folder / "heartbeat").unlink()
        folder.rmdir()
        mine.touch()
        assert "could not be touched" in caplog.text

    def test_a_file_that_cannot_be_written_is_said_at_the_start(self, tmp_path):
        with pytest.raises(CommandError, match=r"--heartbeat-file=.*nowhere/heartbeat cannot be written"):
            liveness.start_liveness_file(str(tmp_path / "nowhere" / "heartbeat"))


class TestExpectations:
    def test_a_leased_row_may_take_as_long_as_its_timeout(self, seconds):
        leases = HeldLeases(has_heartbeat=True)
        row = WorkflowRun(pk=1)
        leases._waiting = {1: row}
        set_leases(leases)
        assert leases.start(row)
        seconds[0] += STALL_SECONDS - 1
        assert liveness.is_responsive()
        leases.keep_for(timedelta(hours=1))
        seconds[0] += 3600
        assert liveness.is_responsive(), "its step may run as long as its timeout"
        seconds[0] += STALL_SECONDS + 60
        assert not liveness.is_responsive(), "its step still runs after its timeout"
        leases.finish()
        assert liveness.is_responsive()
        seconds[0] += STALL_SECONDS
        assert not liveness.is_responsive()
        set_leases(None)
        assert liveness.is_responsive(), "a queue worker may wait for its next message"

    def test_a_clock_that_hangs_in_a_look_is_not_alive(self, seconds, monkeypatch):
        found = []
        dispatcher = Dispatcher(lambda: None, poll=7)

        def hang():
            found.append(liveness.is_responsive())
            seconds[0] += STALL_SECONDS + 6
            found.append(liveness.is_responsive())
            seconds[0] += 1
            found.append(liveness.is_responsive())
            dispatcher.stop()
            return 0.0

        monkeypatch.setattr(dispatcher, "_poll_and_ring", hang)
        dispatcher.run()
        assert found == [True, True, False]
        assert liveness.is_responsive()


class TestProbe:
    def test_no_file_is_not_alive(self, tmp_path):
        code, text = probe("--liveness", str(tmp_path / "heartbeat"))
        assert code == 1
        assert "there is no file" in text
        assert f"--heartbeat-file={tmp_path / 'heartbeat'}" in text

    def test_each_process_of_a_worker_must_be_alive(self, tmp_path):
        path = tmp_path / "heartbeat"
        for number in (1, 2, 3):
            LivenessFile(tmp_path / liveness.path_of("heartbeat", number))
        (tmp_path / "heartbeat.txt").write_text("of somebody else")
        age(tmp_path / "heartbeat.txt", 1000)
        assert probe("--liveness", str(path)) == (0, "Alive.\n")
        age(tmp_path / "heartbeat.2", 45)
        code, text = probe("--liveness", str(path))
        assert code == 1
        assert "heartbeat.2 was touched 45 s ago" in text
        assert probe("--liveness", str(path), "--max-age", "60")[0] == 0
        found = json.loads(probe("--liveness", str(path), "--json")[1].splitlines()[0])
        assert found["alive"] is False
        assert sorted(found["seconds_since_touched"]) == [str(path), f"{path}.2", f"{path}.3"]

    def test_it_needs_a_sensible_age(self, tmp_path):
        code, text = probe("--liveness", str(tmp_path / "heartbeat"), "--max-age", "0")
        assert (code, text) == (1, "--max-age=0 must be positive.")


class TestSupervisor:
    def test_it_gives_each_child_a_file_and_removes_what_others_left(self, tmp_path, monkeypatch):
        path = tmp_path / "heartbeat"
        for number in (1, 2, 3):
            LivenessFile(tmp_path / liveness.path_of("heartbeat", number))
        (tmp_path / "heartbeat.txt").write_text("of somebody else")
        begun = []
        supervisor = Supervisor(2, [], timedelta(0), str(path))

        class Started:
            def __init__(self, command, **options):
                begun.append(command[command.index("--heartbeat-file") + 1])
                supervisor._signals = len(begun) // 2

            def poll(self):
                return 0 if supervisor._signals else None

            def terminate(self):
                pass

        monkeypatch.setattr("django_ai.automation.queues.runtimes.supervisor.subprocess.Popen", Started)
        monkeypatch.setattr("django_ai.automation.queues.runtimes.supervisor.signal.signal", lambda *arguments: None)
        assert supervisor.run() == 0
        assert begun == [str(path), f"{path}.2"]
        assert [each.name for each in tmp_path.iterdir()] == ["heartbeat.txt"]
