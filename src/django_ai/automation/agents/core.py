"""The public names of agents."""

from .decorators import Agent, agent, handler
from .manager import AgentManager

__all__ = ["Agent", "AgentManager", "agent", "handler"]
