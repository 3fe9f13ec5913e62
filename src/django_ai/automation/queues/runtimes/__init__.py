"""Runtimes: what makes workers call ``drain``, and how they are told that work is due."""
