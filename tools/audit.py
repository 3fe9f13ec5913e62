"""Audit the dependencies of this project and its extras, direct and transitive, in the versions installed here.

Checks known vulnerabilities (``pip-audit``), licences, and whether the versions are compatible (``pip check``). If the
advisories cannot be read because there is no network, a conspicuous warning says so; the other checks still run.
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

PROJECT = "django-ai-automation"
ALLOWED_LICENCES = re.compile(
    r"\b(MIT|MIT-0|0?BSD|ISC|Apache|PSF|Python Software Foundation|LGPL|Lesser General|MPL|Mozilla Public License|"
    r"Unlicense)\b"
)
"""Licences that put no obligation on the code of a project that uses the dependency."""
ACCEPTED_DRIVERS = {"mysqlclient": "GPL-2.0-or-later"}
"""Optional database drivers. A user accepts the licence with the choice of the database."""


def main() -> None:
    if subprocess.run([sys.executable, "-m", "pip", "check", "--disable-pip-version-check"], check=False).returncode:
        raise SystemExit("FAILED: the installed versions are not compatible; see the output of pip check above.")
    found = tree(PROJECT)
    if refused := [
        f"{name}: {licence}" for name, each in found.items() if not is_allowed(name, licence := licence_of(each))
    ]:
        raise SystemExit("FAILED: licences that tools/audit.py does not allow:\n  " + "\n  ".join(refused))
    print(f"licences of {len(found)} packages are allowed: {', '.join(sorted(found))}")
    advisories({name: each.version for name, each in found.items()})


def tree(root: str) -> dict[str, Distribution]:
    """Return the dependencies of ``root`` with all its extras, by name. Prints the names of those not installed."""
    found: dict[str, Distribution] = {}
    pending = [(root, extra) for extra in ("", *(distribution(root).metadata.get_all("Provides-Extra") or ()))]
    seen = set(pending)
    while pending:
        name, extra = pending.pop()
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            print(f"not audited, because not installed: {name}")
            continue
        new = set(_needs(found[name], extra)) - seen
        seen |= new
        pending += new
    del found[root]
    return found


def _needs(package: Distribution, extra: str) -> Iterator[tuple[str, str]]:
    for text in package.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            name = re.sub(r"[-_.]+", "-", needed.name).lower()
            yield from ((name, each) for each in ("", *needed.extras))


def licence_of(package: Distribution) -> str:
    metadata = package.metadata
    classifiers = [each for each in metadata.get_all("Classifier") or () if each.startswith("License ::")]
    return metadata.get("License-Expression") or "; ".join(classifiers) or metadata.get("License") or "not named"


def is_allowed(name: str, licence: str) -> bool:
    return bool(ALLOWED_LICENCES.search(licence)) or ACCEPTED_DRIVERS.get(name) == licence


def advisories(versions: dict[str, str]) -> None:
    """Query PyPI for known vulnerabilities, or OSV if PyPI cannot be read. Raises ``SystemExit`` with those found."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.writelines(f"{name}=={version}\n" for name, version in versions.items())
        listed.flush()
        reason = ""
        for service in ("pypi", "osv"):
            answer = _query(service, listed.name)
            known, reason = _parse(answer)
            if known:
                raise SystemExit("FAILED: known vulnerabilities:\n  " + "\n  ".join(known))
            if not reason:
                print(f"no known vulnerabilities in {len(versions)} packages ({service})")
                return
    print(f"{'!' * 100}\n!! NOT AUDITED: the advisories could not be read ({reason}).\n{'!' * 100}")


def _query(service: str, listed: str) -> str:
    command = [sys.executable, "-m", "pip_audit", "--requirement", listed, "--no-deps", "--disable-pip"]
    options = ["--format", "json", "--progress-spinner", "off", "--timeout", "15", "--vulnerability-service", service]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def _parse(answer: str) -> tuple[list[str], str]:
    """Return the vulnerabilities in pip-audit's output, and why it could not check everything, if so."""
    try:
        packages = json.loads(answer)["dependencies"]
    except ValueError:
        return [], (answer.strip().splitlines() or ["no answer"])[-1][:160]
    known = [
        f"{each['name']} {each['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for each in packages
        for found in each.get("vulns", ())
    ]
    return known, next((each["skip_reason"] for each in packages if "skip_reason" in each), "")


if __name__ == "__main__":
    main()
