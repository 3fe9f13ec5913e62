"""Limits: rows that need a slot of a limit before their code runs. ``acquire`` has the overview."""
