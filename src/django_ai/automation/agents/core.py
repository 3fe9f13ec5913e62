"""The public names of agents."""

from .definitions import agent, handler
from .manager import AgentManager

__all__ = ["AgentManager", "agent", "handler"]
