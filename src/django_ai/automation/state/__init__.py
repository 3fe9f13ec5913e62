"""Contexts: how they are stored, migrated and encrypted."""
