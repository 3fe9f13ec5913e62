"""Progress of long commands: a bar on a terminal; elsewhere a line every ``SECONDS_BETWEEN_LINES``."""

from __future__ import annotations

import time

from django.core.management.base import OutputWrapper

BAR_WIDTH = 30
SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """How much of ``total`` rows is done. It writes to ``out``, which is the stderr of the command."""

    def __init__(self, out: OutputWrapper, label: str, total: int) -> None:
        self.out, self.label, self.total = out, label, total
        self.has_bar = bool(self.out.isatty())
        self.started = self.shown_at = time.monotonic()

    def show(self, done: int) -> None:
        """Show that ``done`` rows are done."""
        now = time.monotonic()
        if not self.has_bar and now - self.shown_at < SECONDS_BETWEEN_LINES:
            return
        self.shown_at = now
        share = min(done / max(self.total, 1), 1.0)  # rows may be added meanwhile
        seconds = max(now - self.started, 1e-6)
        left = seconds / share - seconds if share else 0
        text = f"{share:4.0%}  {done:,} of {self.total:,} rows, {done / seconds:,.0f} per second, {left:,.0f} s left"
        if self.has_bar:
            bar = ("#" * round(share * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
            self.out.write(f"\r{self.label} [{bar}] {text}", ending="\x1b[K")
        else:
            self.out.write(f"{self.label} {text}")

    def end(self) -> None:
        """Leave the line of the bar."""
        if self.has_bar:
            self.out.write("")
