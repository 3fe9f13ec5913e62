"""Agents: long-lived, stateful, routed by what their Context says."""
