"""A bad network between a test's processes and a server: a TCP proxy that freezes and cuts connections."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator


class BadNetwork:
    """Forwards to ``host:port``. Each chunk meets a fault with the probability ``faults``: half of the faults cut the
    connection, the others delay the chunk by up to ``freeze`` seconds. ``met`` counts connections, chunks and faults.

    A ``host`` that is a path is the directory of PostgreSQL's socket.

    ``lose_all()`` silently drops all further data of the connections that are open now."""

    def __init__(self, host: str, port: int, *, faults: float, freeze: float, seed: int) -> None:
        self.host, self.port = host, port
        self.faults, self.freeze = faults, freeze
        self.met: Counter[str] = Counter()
        self.own_port = 0
        self._lost = 0
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bad-network", daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", 0))
        self.own_port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.host.startswith("/"):
                socket = f"{self.host}/.s.PGSQL.{self.port}"
                there_reader, there_writer = await asyncio.open_unix_connection(socket)
            else:
                there_reader, there_writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.transport.abort()
            return
        self.met["connections"] += 1
        ways = [self._forward(reader, there_writer), self._forward(there_reader, writer)]
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for each in (writer, there_writer):
                each.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        born = self._lost
        with contextlib.suppress(OSError):
            while chunk := await source.read(65536):
                self.met["chunks"] += 1
                if self._lost > born:
                    continue
                if self._random.random() < self.faults:
                    if self._random.random() < 0.5:
                        self.met["cut"] += 1
                        return
                    self.met["frozen"] += 1
                    await asyncio.sleep(self._random.uniform(0, self.freeze))
                target.write(chunk)
                await target.drain()

    def lose_all(self) -> None:
        self._lost += 1

    def start(self) -> None:
        self._thread.start()
        self._started.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@contextlib.contextmanager
def bad_network(
    host: str, port: int, *, faults: float = 0.02, freeze: float = 5.0, seed: int = 1
) -> Iterator[BadNetwork]:
    network = BadNetwork(host, port, faults=faults, freeze=freeze, seed=seed)
    network.start()
    try:
        yield network
    finally:
        network.stop()
