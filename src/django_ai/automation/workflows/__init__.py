"""Workflows: several durable steps with a Context, started by events or by calls."""
