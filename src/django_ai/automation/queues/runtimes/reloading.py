"""``automation_worker --reload``: a worker process stops when a source file changes, and is restarted.

Django's autoreloader watches the modules that the process has imported, in a thread beside the work. A change stops the
process as SIGTERM does, so the running step is not lost. ``CODE_CHANGED`` then tells the supervisor to start the
next process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from django.utils import autoreload

CODE_CHANGED = 3
"""The exit code of a process whose code has changed, as in Django's autoreloader."""
RELOAD_BACKOFF_SECONDS = 2.0
"""Longest delay before a process that ended is restarted: code that cannot be imported is soon corrected."""


class CodeWatcher:
    """Watches the code of this process.

    Args:
        process_started: When the process started, as in ``time.time()``. A file that was saved since may have been
            imported before that, so it counts as changed. The autoreloader alone would not notice.

    Attributes:
        has_changed: Whether a file has changed and the process was stopped.
    """

    def __init__(self, process_started: float) -> None:
        self.process_started = process_started
        self.has_changed = False

    def start(self) -> None:
        threading.Thread(target=self._watch, name="automation-reload", daemon=True).start()

    def _watch(self) -> None:
        reloader = autoreload.get_reloader()
        autoreload.autoreload_started.send(sender=reloader)
        try:
            # Not run(), which imports the URLconf first: a worker has no use for it.
            ticks = reloader.tick()
            next(ticks)  # the first tick only records when each file was saved
            for path in reloader.watched_files():
                if self._was_saved_since_start(path):
                    reloader.notify_file_changed(path)
            for _ in ticks:
                pass
        except SystemExit:
            self.has_changed = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _was_saved_since_start(self, path: Path) -> bool:
        try:
            # A time in the future is no evidence, and would restart the process in a loop.
            return self.process_started < path.stat().st_mtime <= time.time()
        except OSError:
            return False
