"""``automation_worker --reload``: a worker process stops when a source file changes, and is restarted.

Django's autoreloader watches the modules that the process has imported, in a thread beside the work. A change stops the
process as SIGTERM does, so the running step is not lost. ``CODE_CHANGED`` then tells the supervisor to start the
next process at once.
"""

from __future__ import annotations

import os
import signal
import threading

from django.utils import autoreload

CODE_CHANGED = 3
"""The exit code of a process whose code has changed, as in Django's autoreloader."""
RELOAD_BACKOFF_SECONDS = 2.0
"""Longest delay before a process that ended is restarted: code that cannot be imported is soon corrected."""


class CodeWatcher:
    """Watches the code of this process. ``has_changed``: whether a file has changed and the process was stopped."""

    def __init__(self) -> None:
        self.has_changed = False

    def start(self) -> None:
        threading.Thread(target=self._watch, name="automation-reload", daemon=True).start()

    def _watch(self) -> None:
        reloader = autoreload.get_reloader()
        autoreload.autoreload_started.send(sender=reloader)
        try:
            # Not run(), which imports the URLconf first: a worker has no use for it.
            reloader.run_loop()
        except SystemExit:
            self.has_changed = True
            os.kill(os.getpid(), signal.SIGTERM)
