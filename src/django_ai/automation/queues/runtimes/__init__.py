"""Runtimes: what makes workers call ``drain``, and how they are notified that work is due."""
