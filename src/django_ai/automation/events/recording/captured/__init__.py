"""Captured writes: what saves, deletions and workers do with the rows of the outbox."""
