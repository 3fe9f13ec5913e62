"""Agents: long-lived, stateful, routed by the values in their Context."""
