"""Audit what a project gets with ours: the dependencies, those of the extras, and theirs in turn, as installed here.

Known vulnerabilities (``pip-audit``), licences, and whether the versions fit each other (``pip check``). Where the
advisories cannot be read, for want of a network, that is said loudly, and all the rest is still checked.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

OURS = "django-ai-automation"
ALLOWED = re.compile(r"\b(MIT|MIT-0|0?BSD|ISC|Apache|PSF|Python Software Foundation|LGPL|Lesser General|Unlicense)\b")
"""Licences under which a project may use a dependency without a duty for its own code."""
CHOSEN = {"mysqlclient": "GPL-2.0-or-later"}
"""Drivers whose licence their user accepts by choosing the database; ours works without them."""


def main() -> None:
    if subprocess.run([sys.executable, "-m", "pip", "check", "--disable-pip-version-check"], check=False).returncode:
        raise SystemExit("The installed versions do not fit each other.")
    found = tree(OURS)
    if refused := [
        f"{name}: {licence}" for name, each in found.items() if not is_allowed(name, licence := licence_of(each))
    ]:
        raise SystemExit("Licences that are not on the list of tools/audit.py:\n  " + "\n  ".join(refused))
    print(f"licences of {len(found)} packages are on the list: {', '.join(sorted(found))}")
    advisories({name: each.version for name, each in found.items()})


def tree(root: str) -> dict[str, Distribution]:
    """Return what ``root`` needs with all its extras, by name, without ``root``; what is not installed is named."""
    found: dict[str, Distribution] = {}
    waiting = [(root, extra) for extra in ("", *(distribution(root).metadata.get_all("Provides-Extra") or ()))]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            print(f"not installed, so not audited: {name}")
            continue
        new = set(_needs(found[name], extra)) - seen
        seen |= new
        waiting += new
    del found[root]
    return found


def _needs(package: Distribution, extra: str) -> Iterator[tuple[str, str]]:
    for text in package.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            name = re.sub(r"[-_.]+", "-", needed.name).lower()
            yield from ((name, each) for each in ("", *needed.extras))


def licence_of(package: Distribution) -> str:
    told = package.metadata
    classifiers = [each for each in told.get_all("Classifier") or () if each.startswith("License ::")]
    return told.get("License-Expression") or "; ".join(classifiers) or told.get("License") or "none that it names"


def is_allowed(name: str, licence: str) -> bool:
    return bool(ALLOWED.search(licence)) or CHOSEN.get(name) == licence


def advisories(versions: dict[str, str]) -> None:
    """Ask for known vulnerabilities, of PyPI and then of OSV. Raises ``SystemExit`` with those found."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.writelines(f"{name}=={version}\n" for name, version in versions.items())
        listed.flush()
        reason = ""
        for service in ("pypi", "osv"):
            answer = _ask(service, listed.name)
            known, reason = _judged(answer)
            if known:
                raise SystemExit("Known vulnerabilities:\n  " + "\n  ".join(known))
            if not reason:
                print(f"no known vulnerabilities in {len(versions)} packages ({service})")
                return
    print(f"{'!' * 100}\n!! NOT AUDITED: the advisories could not be read ({reason}).\n{'!' * 100}")


def _ask(service: str, listed: str) -> str:
    command = [sys.executable, "-m", "pip_audit", "--requirement", listed, "--no-deps", "--disable-pip"]
    options = ["--format", "json", "--progress-spinner", "off", "--timeout", "15", "--vulnerability-service", service]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def _judged(answer: str) -> tuple[list[str], str]:
    """Return the vulnerabilities in pip-audit's answer, and why it could not look at everything."""
    try:
        packages = json.loads(answer)["dependencies"]
    except ValueError:
        return [], (answer.strip().splitlines() or ["no answer"])[-1][:160]
    known = [
        f"{each['name']} {each['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for each in packages
        for found in each.get("vulns", ())
    ]
    return known, next((each["skip_reason"] for each in packages if "skip_reason" in each), "")


if __name__ == "__main__":
    main()
