"""What lies here: what calls need is asked for, what the cache cannot hold goes, results stay until they were fetched.

Owns items on their way, ready and dropped; refuses to know what runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import Inline
from lfm_worker.core import commands as c
from lfm_worker.core.calls import Call
from lfm_worker.core.events import Cause
from lfm_worker.core.items import Item
from lfm_worker.core.pool import Pool
from lfm_worker.core.stock import Stock


class Supply:
    def __init__(
        self, held: Mapping[Item, tuple[int, float]], limit: int, calls: Mapping[int, Call], pool: Pool, out: list[c.Command]
    ) -> None:
        """``held``: what is here already; ``limit``: bytes of the node's cache."""
        self.stock = Stock(held)
        self.results: dict[Digest, int] = {}  # announced, not yet forgotten: how many calls returned it
        self._limit, self._calls, self._pool, self._out = limit, calls, pool, out

    # ------------------------------------------------------------ what calls need

    def provide(self, call: Call) -> bool:
        """Ask for what the call lacks; whether it lacks nothing."""
        missing = call.needs - self.stock.ready
        for item in sorted(missing - self.stock.coming):
            if item.kind == "blob":
                self._fetch(item, call.size(item))
                continue
            archive, tarball = call.archive(item), Item("blob", item.digest)
            if isinstance(archive, Inline):
                self._prepare(item, archive.data)
            elif self.stock.holds(item) or tarball in self.stock.ready:
                self._prepare(item)
            elif tarball not in self.stock.coming:
                self._fetch(tarball, archive.size)
        return not missing

    def _fetch(self, item: Item, size: int) -> None:
        self.stock.coming.add(item)
        self._out.append(c.Fetch(item.digest, size))

    def _prepare(self, item: Item, data: bytes | None = None) -> None:
        self.stock.coming.add(item)
        self._out.append(c.Prepare(item, data))

    def arrived(self, item: Item, size: int, now: float) -> None:
        self.stock.arrive(item, size, now)
        self._make_room(self._limit)

    def failed(self, item: Item, cause: Cause) -> bool:
        """It could not be had; False: nor will it be."""
        again = self.stock.fail(item, cause)
        if cause == "full":
            self._make_room(0)
        if cause == "corrupt" and item.kind != "blob":
            self._drop(Item("blob", item.digest))
        return again  # asked for anew with all that calls lack

    def give_up(self, item: Item) -> None:
        """What it would be unpacked from is of no use to anybody."""
        if item.kind != "blob" and (archive := Item("blob", item.digest)) in self.stock.ready:
            self._drop(archive)

    # ------------------------------------------------------------ what goes

    def scanned(self, held: Mapping[Item, tuple[int, float]]) -> None:
        """What all workers of the node hold."""
        self.stock.scan(held)
        self._make_room(self._limit)

    def returned(self, digest: Digest) -> None:
        """A call's result is kept until the manager says that it has it."""
        self.results[digest] = self.results.get(digest, 0) + 1

    def forget(self, digest: Digest) -> None:
        if digest in self.results:
            self.results[digest] -= 1
            if not self.results[digest]:
                del self.results[digest]
                self._out.append(c.DropResult(digest))
        elif (item := Item("blob", digest)) in self.stock.ready and item not in self._in_use():
            self._drop(item)

    def _make_room(self, limit: int) -> None:
        if self.stock.exceeds(limit):
            for item in self.stock.excess(self._in_use(), limit):
                self._drop(item)

    def _drop(self, item: Item) -> None:
        if item.kind == "environment":
            for template in self._pool.of(item.digest):
                self._pool.remove(template)
                self._out.append(c.CloseTemplate(template))
        self.stock.drop(item)
        self._out.append(c.Drop(item))

    def _in_use(self) -> set[Item]:
        used = set(self.stock.coming)
        for call in self._calls.values():
            used |= call.needs
        used |= {Item("blob", i.digest) for i in used if i.kind != "blob" and i not in self.stock.ready}
        return used
