"""An environment for each peer, in ``.venv-peers``, which git ignores and ``make clean`` deletes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.environment import ROOT, create_empty, install

CACHE = ROOT / ".venv-peers"


class NoEnvironmentError(RuntimeError):
    """The environment of a peer could not be made."""


def interpreter(name: str, requirements: tuple[str, ...]) -> Path:
    """Return the interpreter of the environment of ``name``, which is made or changed if it does not fit.

    Without requirements it is the running interpreter.

    Raises:
        NoEnvironmentError: If it cannot be made, with the reason.
    """
    if not requirements:
        return Path(sys.executable)
    folder = CACHE / name
    wanted, installed = "\n".join(requirements), folder / ".installed"
    python = folder / "bin" / "python"
    if python.exists() and installed.exists() and installed.read_text() == wanted:
        return python
    print(f"installing {', '.join(requirements)} ...", file=sys.stderr, flush=True)
    try:
        python = create_empty(folder)
        install(python, *requirements)
    except (SystemExit, OSError, subprocess.CalledProcessError) as error:
        raise NoEnvironmentError(f"cannot install {', '.join(requirements)}: {error}") from error
    installed.write_text(wanted)
    return python
