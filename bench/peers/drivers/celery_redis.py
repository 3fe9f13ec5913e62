"""Celery on Redis, with ``acks_late``: a pool of two processes."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import redis
from celery import Celery

from bench.peers.logbook import note
from bench.peers.peer import TEXT, Peer

app = Celery("bench", broker=os.environ["PEERS_REDIS_URL"])
app.conf.update(task_acks_late=True, task_ignore_result=True, broker_connection_retry_on_startup=True)


@app.task(name="one")
def one(number: int, text: str) -> None:
    note(number)


class Driver(Peer):
    def __init__(self, variant: str, processes: int) -> None:
        super().__init__(variant, processes)
        self.redis = redis.Redis.from_url(os.environ["PEERS_REDIS_URL"])

    def describe(self) -> dict[str, Any]:
        persistence = {name: self.redis.config_get(name).get(name) for name in ("appendonly", "appendfsync", "save")}
        return {
            "versions": {
                "celery": version("celery"),
                "redis (server)": self.redis.info("server")["redis_version"],
                "Python": platform.python_version(),
            },
            "command": f"celery worker --concurrency {self.processes} (prefork)",
            "settings": "acks_late, ignore_result; else defaults (prefetch multiplier 4)",
            "notes": f"Redis persistence: {persistence}. No result backend, so no history; not in PostgreSQL.",
        }

    def clear(self) -> None:
        self.redis.flushdb()

    def start(self, number: int) -> None:
        one.delay(number, TEXT)

    def workers(self) -> list[list[str]]:
        app_name = "bench.peers.drivers.celery_redis"
        options = ["--concurrency", str(self.processes), "--loglevel", "WARNING"]
        return [[sys.executable, "-m", "celery", "--app", app_name, "worker", *options]]

    def unfinished(self) -> int:
        return int(self.redis.llen("celery")) + int(self.redis.hlen("unacked"))
