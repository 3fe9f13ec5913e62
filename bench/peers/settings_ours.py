"""Settings of our own workers among the peers: those of the other benchmarks, and the calls to be compared."""

from bench.settings import *  # noqa: F403
from bench.settings import INSTALLED_APPS as APPS

INSTALLED_APPS = [*APPS, "bench.peers.calls"]
