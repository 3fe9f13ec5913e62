"""Instructions and calls of the worker's own code for each operation: figures that a busy machine does not change.

    python bench/instructions.py [--database sqlite] [--times 20] [--json FILE] [--against FILE] [--tolerance 2]

Counts what one process executes for a save, a start, an occurrence and a step, without the process of PostgreSQL. On
SQLite the database is part of the process. ``valgrind --tool=callgrind`` counts the instructions; without valgrind
there are only calls. ``sys.setprofile`` counts the calls of functions, of Python and of C, in another process.

Each operation is executed until all caches are filled, and then ``--times`` times between two calls of ``getloadavg``
of the C library, before each of which callgrind writes what it has counted since the last one. Hashes are not seeded
and the garbage collector is off, so two executions differ by less than a percent.

``--against``: compare with the JSON of an earlier execution, and exit with 1 if a figure has grown by more than
``--tolerance`` percent.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.run import database, sqlite  # noqa: E402

Figures = dict[str, dict[str, float]]
"""For each operation its counts of one execution, by the name of the unit."""
WARM_UP = 12
"""How often an operation is executed before it is counted. A session prepares a statement after a few executions."""
Measure = Callable[[str, Callable[[], Any]], None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--tolerance", type=float, default=2.0)
    parser.add_argument("--child", choices=("instructions", "calls"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    if options.child:
        child(options.child, options.times)
        return 0
    with sqlite() if options.database == "sqlite" else database():
        result = {**environment(options.database), "figures": measure(options.times)}
    before = json.loads(options.against.read_text()) if options.against else None
    grown = show(result, before, options.tolerance)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2))
    if grown:
        print(f"FAILED: grown by more than {options.tolerance:g} %: {', '.join(grown)}", file=sys.stderr)
    return 1 if grown else 0


def environment(kind: str) -> dict[str, str]:
    """Return what figures depend on besides the code of this package."""
    import django

    return {
        "tool": "callgrind and sys.setprofile" if shutil.which("valgrind") else "sys.setprofile",
        "python": platform.python_version(),
        "django": django.get_version(),
        "database": kind,
        "machine": platform.machine(),
    }


def measure(times: int) -> Figures:
    """Count all operations, in a process for each unit."""
    found: Figures = {}
    for name, count in count_calls(times).items():
        found.setdefault(name, {})["calls"] = count / times
    if shutil.which("valgrind"):
        for name, count in count_instructions(times).items():
            found.setdefault(name, {})["instructions"] = count / times
    return found


def count_calls(times: int) -> dict[str, int]:
    lines = run_child("calls", times)
    return {name: int(count) for name, count in (line.rsplit(" ", 1) for line in lines)}


def count_instructions(times: int) -> dict[str, int]:
    """Execute the operations below callgrind, and read the file that it writes after each."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        command = [
            "valgrind", "--tool=callgrind", "--quiet", "--dump-before=getloadavg",
            f"--callgrind-out-file={folder}/out",
        ]  # fmt: skip
        names = run_child("instructions", times, command)
        files = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        counts = [_total(path) for path in files][1::2]  # every other one is what came before an operation
    if len(counts) != len(names):
        raise SystemExit(f"FAILED: callgrind wrote {len(counts)} files for {len(names)} operations.")
    return dict(zip(names, counts, strict=True))


def _total(path: Path) -> int:
    """Return how many instructions a file of callgrind counts."""
    found = re.search(r"^totals: (\d+)", path.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"FAILED: {path} has no total.")
    return int(found[1])


def run_child(unit: str, times: int, command: list[str] | None = None) -> list[str]:
    arguments = [sys.executable, str(Path(__file__)), "--child", unit, "--times", str(times)]
    print(f"counting {unit} ...", file=sys.stderr, flush=True)
    result = subprocess.run(
        [*(command or []), *arguments],
        env={**os.environ, "PYTHONHASHSEED": "0"}, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return result.stdout.splitlines()


def child(unit: str, times: int) -> None:
    """Execute each operation, and print a line for it."""
    import django

    django.setup()
    gc.collect()
    gc.freeze()
    gc.disable()

    def below_callgrind(name: str, operation: Callable[[], Any]) -> None:
        os.getloadavg()
        for _ in range(times):
            operation()
        os.getloadavg()
        print(name, flush=True)

    def counting_calls(name: str, operation: Callable[[], Any]) -> None:
        count = 0

        def profile(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(profile)
        for _ in range(times):
            operation()
        sys.setprofile(None)
        print(name, count, flush=True)

    perform(below_callgrind if unit == "instructions" else counting_calls)


def perform(count: Measure) -> None:
    """Call ``count`` with each operation, after its caches are filled and what it needs is prepared."""
    from bench.load.models import Eventful, Plain
    from django_ai.automation import engine
    from django_ai.automation.queues.drain import drain

    unchanged = Eventful.objects.create(name="x")

    def start(name: str) -> Callable[[], Any]:
        return lambda: engine.start(name, number=1)

    def drained(name: str) -> Callable[[], Any]:
        def operation() -> None:
            engine.start(name, number=1)
            drain()

        return operation

    operations: dict[str, Callable[[], Any]] = {
        "save of a new model without events": lambda: Plain.objects.create(name="x"),
        "save of a new model with 2 events": lambda: Eventful.objects.create(name="x"),
        "save that changes nothing, 2 events": unchanged.save,
        "save whose event starts a run": lambda: Eventful.objects.create(name="x", ready=True),
        "engine.start": start("one"),
        "start and run of one step": drained("one"),
        "start and run of five steps": drained("five"),
        "look for due rows": drain,
    }
    for name, operation in operations.items():
        for _ in range(WARM_UP):
            operation()
        drain()
        count(name, operation)
        drain()


def show(result: dict[str, Any], before: dict[str, Any] | None, tolerance: float) -> list[str]:
    """Print the figures, and return the names of those that have grown by more than ``tolerance`` percent."""
    keys = ("tool", "python", "django", "database", "machine")
    print("\n" + ", ".join(f"{key} {result[key]}" for key in keys) + "\n")
    if before is not None and (other := [key for key in keys if before[key] != result[key]]):
        raise SystemExit("FAILED: cannot be compared, " + ", ".join(f"{key} was {before[key]}" for key in other))
    units = ("instructions", "calls")
    figures: Figures = result["figures"]
    width, grown = max(map(len, figures)), []
    print(f"{'':<{width}}" + "".join(f"{unit:>16}{'':>10}" for unit in units))
    for name, counts in figures.items():
        line = f"{name:<{width}}"
        for unit in units:
            now = counts.get(unit)
            was = before and before["figures"].get(name, {}).get(unit)
            line += f"{'' if now is None else format(now, ',.0f'):>16}"
            change = (now / was - 1) * 100 if now and was else None
            line += f"{'' if change is None else format(change, '+.1f') + ' %':>10}"
            if change is not None and change > tolerance:
                grown.append(f"{name} ({unit})")
        print(line)
    return grown


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
