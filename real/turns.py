"""Whose request is next: of those who wait, the one that has had the least of the server lately."""

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator

_HALF_LIFE = 1.0
"""Seconds after which what a client has had counts half."""


class Share:
    """What one client has had of the server lately, s."""

    def __init__(self) -> None:
        self._used, self._at = 0.0, time.monotonic()

    def now(self) -> float:
        """Return it."""
        return self._used * 0.5 ** ((time.monotonic() - self._at) / _HALF_LIFE)

    def add(self, seconds: float) -> None:
        """Add what a request took."""
        self._used, self._at = self.now() + seconds, time.monotonic()


class Turns:
    """Let so many requests be worked on at a time.

    A client that asks without pause, or sixty of them, then hold up one that asks now and then for
    as long as `count` requests take, not for a round of all.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = itertools.count()

    @contextlib.asynccontextmanager
    async def of(self, share: Share) -> AsyncIterator[None]:
        """Wait for a turn of the client with this share, and add to it what the turn takes."""
        await self._acquire(share)
        began = time.monotonic()
        try:
            yield
        finally:
            share.add(time.monotonic() - began)
            self._release()

    async def _acquire(self, share: Share) -> None:
        if self._free > 0:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (share.now(), next(self._number), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
