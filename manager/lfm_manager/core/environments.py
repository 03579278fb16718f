"""From a declared environment to one that workers can use, or the reason why not.

Owns what is built, being built and refused; knows the calls that wait only by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from lfm.protocol.ids import Digest, EnvironmentKey, PeerId
from lfm.protocol.messages import (
    DeclareEnvironment,
    EnvironmentComing,
    EnvironmentMade,
    EnvironmentNotMade,
    EnvironmentProgress,
    MakeEnvironment,
)
from lfm.protocol.outcomes import Blob
from lfm_manager.core import events as e
from lfm_manager.core.blobs import Blobs
from lfm_manager.core.commands import (
    BuildEnvironment,
    Command,
    ForgetDeclared,
    KeepEnvironment,
    SaveDeclared,
    TellClient,
)
from lfm_manager.core.functions import (
    Away,
    Building,
    Built,
    Coming,
    Declared,
    Environment,
    Fetching,
    Unbuildable,
    too_old,
)
from lfm_manager.core.workers import Worker

TELL_EVERY = 1.0  # seconds between two words to clients about one environment's way to workers


class Environments:
    def __init__(self, blobs: Blobs, out: list[Command], idle: int) -> None:
        self.known: dict[EnvironmentKey, Environment] = {}
        self.built: dict[Digest, Environment] = {}
        self._plans: dict[Digest, Environment] = {}  # whose plan is on its way
        self._uploads: dict[Digest, list[Environment]] = {}  # whose tarball is on its way
        self._idle: dict[EnvironmentKey, Environment] = {}  # that nobody uses, the longest unused first
        self.hopeless: list[Environment] = []  # that nobody can make, as it has turned out: to be told
        self._blobs, self._out, self._most_idle = blobs, out, idle

    def declare(
        self, declared: DeclareEnvironment, source: PeerId | None, now: float, save: bool = True
    ) -> Environment:
        known = self.known.get(declared.key)
        if known is None:
            known = self.known[declared.key] = self._idle[declared.key] = Environment(declared)
            if isinstance(declared.plan, Blob):
                self._blobs.use(declared.plan, None)
            if save:
                self._out.append(SaveDeclared(declared))
        elif isinstance(known.state, Unbuildable):
            known.state, known.refused = Declared(), False  # what was in the way may be gone
        if isinstance(known.declared.plan, Blob):
            self._blobs.offer(known.declared.plan.digest, source)
        if source is not None:
            known.clients[source] = None
            if isinstance(known.state, Away) and known.state.peer is None:
                self._ask(known, known.state.why, now)
        return known

    def use(self, environment: Environment) -> None:
        """One more function or session needs it."""
        environment.users += 1
        self._idle.pop(environment.key, None)

    def leave(self, environment: Environment) -> None:
        """One fewer; those that nobody has needed for long are forgotten.

        Not what is packed: its tarball is kept for whoever comes.
        """
        environment.users -= 1
        if not environment.users:
            self._idle[environment.key] = environment
            self.tidy()

    def tidy(self) -> None:
        still = (one for one in self._idle.values() if _rests(one))
        for environment in [one for one, _ in zip(still, range(len(self._idle) - self._most_idle), strict=False)]:
            del self.known[environment.key], self._idle[environment.key]
            if isinstance(plan := environment.declared.plan, Blob):
                self._plans.pop(plan.digest, None)
                self._blobs.leave(plan.digest)
            self._out.append(ForgetDeclared(environment.key))

    def need(self, environment: Environment, now: float) -> None:
        """A call waits for it: see that it is made."""
        if not isinstance(environment.state, Declared):
            return
        plan = environment.declared.plan
        if isinstance(plan, Blob) and not self._blobs.known[plan.digest].here:
            environment.state = Fetching()
            self._plans[plan.digest] = environment
        else:
            environment.state = Building(now)
            self._out.append(BuildEnvironment(environment.key, plan))

    def plan_came(self, digest: Digest, now: float) -> None:
        environment = self._plans.pop(digest, None)
        if environment is not None and isinstance(environment.state, Fetching):
            environment.state = Building(now)
            self._out.append(BuildEnvironment(environment.key, environment.declared.plan))

    def plan_lost(self, digest: Digest, reason: str) -> Environment | None:
        environment = self._plans.pop(digest, None)
        if environment is not None:
            environment.state = Unbuildable(f"its description cannot be had: {reason}", "", "")
        return environment

    def made(self, event: e.EnvironmentBuilt, workers: dict[PeerId, Worker]) -> Environment | None:
        environment = self.known.get(event.key)
        if environment is None or isinstance(environment.state, Built):
            return None
        self._settled(environment)
        tarball = Blob(event.digest, event.size)
        environment.state = Built(tarball, event.python, event.machine, event.libc)
        self._idle.pop(environment.key, None)
        self.built[event.digest] = environment
        for worker in workers.values():
            self._judge(worker, environment.state)
        return environment

    def failed(self, event: e.EnvironmentFailed) -> Environment | None:
        environment = self.known.get(event.key)
        if environment is None or isinstance(environment.state, Built):
            return None
        self._settled(environment)
        environment.state = Unbuildable(event.reason, event.module, event.hint)
        return environment

    # ------------------------------------------------------------ what only clients can make

    def out_of_sight(self, event: e.EnvironmentOutOfSight, now: float) -> None:
        """The manager's machine does not see what it is made of: one that declared it makes it."""
        environment = self.known.get(event.key)
        if environment is not None and isinstance(environment.state, Building):
            self._ask(environment, Unbuildable(event.reason, "", event.hint), now)

    def _ask(self, environment: Environment, why: Unbuildable, now: float) -> None:
        peer = next(iter(environment.clients), None)
        environment.state = Away(now, peer, why)
        if peer is not None:
            self._out.append(TellClient(peer, MakeEnvironment(environment.key)))

    def made_by(self, peer: PeerId, made: EnvironmentMade, now: float) -> Environment | None:
        """The client that was asked has made it: have it sent."""
        environment = self.made_where(made.key, peer)
        if environment is None or not isinstance(environment.state, Away):
            return None
        environment.state = Coming(now, peer, made, environment.state.why)
        self._uploads.setdefault(made.tarball.digest, []).append(environment)
        if self._blobs.use(made.tarball, peer).here:
            self.tarball_came(made.tarball.digest)
        return environment

    def not_made_by(self, peer: PeerId, news: EnvironmentNotMade, now: float) -> None:
        """The client that was asked cannot make it: perhaps another."""
        environment = self.made_where(news.key, peer)
        if environment is not None:
            self._next(environment, peer, Unbuildable(news.reason, news.module, news.hint), now)

    def made_where(self, key: EnvironmentKey, peer: PeerId) -> Environment | None:
        """The environment, if it is this client that makes it."""
        environment = self.known.get(key)
        return environment if environment is not None and _maker(environment) == peer else None

    def _next(self, environment: Environment, peer: PeerId, why: Unbuildable, now: float) -> None:
        """``peer`` could not: the next one, or nobody can."""
        environment.refused = True
        environment.clients.pop(peer, None)
        self._left(environment, why, now)

    def _left(self, environment: Environment, why: Unbuildable, now: float) -> None:
        """Whoever made it does not any more.  Who comes back may; but nobody waits for that who could not himself."""
        self._settled(environment)
        if environment.clients or not environment.refused:
            self._ask(environment, why, now)
        else:
            environment.state = why
            self.hopeless.append(environment)

    def tarball_came(self, digest: Digest) -> None:
        for environment in self._uploads.pop(digest, ()):
            if isinstance(environment.state, Coming):
                made = environment.state.made
                self._out.append(KeepEnvironment(made.key, made.tarball, made.description))

    def tarball_lost(self, digest: Digest, reason: str, now: float) -> None:
        for environment in self._uploads.pop(digest, ()):
            if isinstance(environment.state, Coming):
                why = Unbuildable(f"what its client made cannot be had: {reason}", "", "")
                self._next(environment, environment.state.peer, why, now)

    def client_gone(self, peer: PeerId, now: float) -> None:
        """It makes nothing any more: another one does, or the calls wait for it to come back, or end with it."""
        for environment in self.known.values():
            mine = _maker(environment) == peer
            environment.clients.pop(peer, None)
            if mine and isinstance(environment.state, Away | Coming):
                self._left(environment, environment.state.why, now)

    def _settled(self, environment: Environment) -> None:
        """The upload, if there is one, is not needed any more."""
        if isinstance(environment.state, Coming):
            digest = environment.state.made.tarball.digest
            waiting = [other for other in self._uploads.pop(digest, ()) if other is not environment]
            if waiting:
                self._uploads[digest] = waiting
            self._blobs.leave(digest)

    # ------------------------------------------------------------ on its way to workers

    def coming(
        self, news: EnvironmentComing, worker: Worker, workers: Mapping[PeerId, Worker], now: float
    ) -> None:
        """A worker says how far it is; the clients hear of all of them together, and not too often."""
        environment = self.built.get(news.digest)
        if environment is None:
            return
        worker.coming[news.digest] = news
        if environment.told is None or now >= environment.told + TELL_EVERY:
            environment.told = now
            ways = [w.coming[news.digest] for w in workers.values() if news.digest in w.coming]
            stage = "send" if any(way.stage == "send" for way in ways) else "unpack"
            ways = [way for way in ways if way.stage == stage]
            said = f"{'sent to' if stage == 'send' else 'unpacked on'} {len(ways)} worker{'s' * (len(ways) > 1)}"
            self._tell(environment, stage, sum(way.done for way in ways), sum(way.total for way in ways), said)

    def came(self, digest: Digest, worker: Worker, workers: Mapping[PeerId, Worker]) -> None:
        """A worker has it, or is not to have it any more."""
        environment = self.built.get(digest)
        if worker.coming.pop(digest, None) is None or environment is None or environment.told is None:
            return
        if not any(digest in other.coming for other in workers.values()):
            environment.told = None
            self._tell(environment, "unpacked")

    def _tell(self, environment: Environment, stage: str, done: int = 0, total: int = 0, text: str = "") -> None:
        said = progress(environment, stage, done, total, text)
        self._out.extend(TellClient(peer, said) for peer in environment.clients)

    # ------------------------------------------------------------ who can use it

    def meet(self, worker: Worker) -> None:
        """A worker came: note what it cannot use."""
        for environment in self.built.values():
            if isinstance(environment.state, Built):
                self._judge(worker, environment.state)

    @staticmethod
    def _judge(worker: Worker, built: Built) -> None:
        if (reason := too_old(built, worker.hello.labels)) is not None:
            worker.unusable[built.tarball.digest] = reason


def _rests(environment: Environment) -> bool:
    """Whether it is neither packed nor being made."""
    match environment.state:
        case Declared() | Unbuildable() | Fetching() | Away(peer=None):
            return True
        case _:
            return False


def _maker(environment: Environment) -> PeerId | None:
    """The client that makes it."""
    return environment.state.peer if isinstance(environment.state, Away | Coming) else None


def progress(environment: Environment, stage: str, done: int = 0, total: int = 0, text: str = "") -> EnvironmentProgress:
    return EnvironmentProgress(environment.key, environment.declared.name, stage, done, total, text)
