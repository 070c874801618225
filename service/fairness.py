"""Whose turn it is: least-served client first, then the earliest deadline."""

from __future__ import annotations

import heapq
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

Order = tuple[float, ...]


class Claim(Protocol):
    """Work of one client."""

    @property
    def client(self) -> str:
        """Who shares with whom."""

    @property
    def lane(self) -> int:
        """Smaller lanes go before larger ones, whoever's they are."""

    @property
    def order(self) -> Order:
        """Among one client's claims of a lane the smallest goes first."""


C = TypeVar("C", bound=Claim)


class FairShare:
    """Shares the engine between clients by step-images, the unit in which work costs the same.

    Each client has a counter of the step-images that it was served; the smallest counter is next. A
    client that comes (back) starts level with the least served of those that are there, so that
    nobody saves up a claim by staying away.
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._inside: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()

    def enter(self, claims: Iterable[Claim]) -> None:
        with self._lock:
            for claim in claims:
                if claim.client not in self._served:
                    self._served[claim.client] = min(self._served.values(), default=0.0)
                self._inside[claim.client] += 1

    def charge(self, claim: Claim) -> None:
        """One step of one image was run."""
        with self._lock:
            if claim.client in self._served:
                self._served[claim.client] += 1

    def leave(self, claim: Claim) -> None:
        with self._lock:
            self._inside[claim.client] -= 1
            if self._inside[claim.client] <= 0:
                self._inside.pop(claim.client)
                self._served.pop(claim.client, None)

    def arrange(self, claims: Sequence[C], cost: Callable[[C], float]) -> list[C]:
        """The order in which claims go if nobody else comes.

        Args:
            cost: Step-images by which a claim delays the next one of its client.
        """
        ordered = sorted(claims, key=lambda claim: claim.order)
        if len({(claim.lane, claim.client) for claim in ordered}) <= 1:
            return ordered
        with self._lock:
            served = dict(self._served)
        lanes: dict[int, list[C]] = defaultdict(list)
        for claim in ordered:
            lanes[claim.lane].append(claim)
        return [claim for lane in sorted(lanes) for claim in _interleave(lanes[lane], served, cost)]


def _interleave(ordered: list[C], served: dict[str, float], cost: Callable[[C], float]) -> Iterable[C]:
    """Always the first claim of the client that has been served least, counting what went before."""
    newcomer = min(served.values(), default=0.0)
    queues: dict[str, list[C]] = defaultdict(list)
    for claim in reversed(ordered):
        queues[claim.client].append(claim)
    heap = [(served.get(client, newcomer), queue[-1].order, client) for client, queue in queues.items()]
    heapq.heapify(heap)
    while heap:
        count, _, client = heapq.heappop(heap)
        claim = queues[client].pop()
        served[client] = count + cost(claim)
        if queues[client]:
            heapq.heappush(heap, (served[client], queues[client][-1].order, client))
        yield claim
