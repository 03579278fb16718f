"""From a declared environment to one that workers can use, or the reason why not.

Owns what is built, being built and refused; knows the calls that wait only by name.
"""

from __future__ import annotations

from lfm.protocol.ids import Digest, EnvironmentKey, PeerId
from lfm.protocol.messages import DeclareEnvironment, EnvironmentProgress
from lfm.protocol.outcomes import Blob
from lfm_manager.core import events as e
from lfm_manager.core.blobs import Blobs
from lfm_manager.core.commands import BuildEnvironment, Command, SaveDeclared
from lfm_manager.core.functions import Building, Built, Declared, Environment, Fetching, Unbuildable, too_old
from lfm_manager.core.workers import Worker


class Environments:
    def __init__(self, blobs: Blobs, out: list[Command]) -> None:
        self.known: dict[EnvironmentKey, Environment] = {}
        self.built: dict[Digest, Environment] = {}
        self._plans: dict[Digest, Environment] = {}  # whose plan is on its way
        self._blobs, self._out = blobs, out

    def declare(self, declared: DeclareEnvironment, source: PeerId | None, save: bool = True) -> Environment:
        known = self.known.get(declared.key)
        if known is None:
            known = self.known[declared.key] = Environment(declared)
            if isinstance(declared.plan, Blob):
                self._blobs.use(declared.plan, None)
            if save:
                self._out.append(SaveDeclared(declared))
        elif isinstance(known.state, Unbuildable):
            known.state = Declared()  # what was in the way may be gone
        if isinstance(known.declared.plan, Blob):
            self._blobs.offer(known.declared.plan.digest, source)
        return known

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
        tarball = Blob(event.digest, event.size)
        environment.state = Built(tarball, event.python, event.machine, event.libc)
        self.built[event.digest] = environment
        for worker in workers.values():
            self._judge(worker, environment.state)
        return environment

    def failed(self, event: e.EnvironmentFailed) -> Environment | None:
        environment = self.known.get(event.key)
        if environment is None or isinstance(environment.state, Built):
            return None
        environment.state = Unbuildable(event.reason, event.module, event.hint)
        return environment

    def meet(self, worker: Worker) -> None:
        """A worker came: note what it cannot use."""
        for environment in self.built.values():
            if isinstance(environment.state, Built):
                self._judge(worker, environment.state)

    @staticmethod
    def _judge(worker: Worker, built: Built) -> None:
        if (reason := too_old(built, worker.hello.labels)) is not None:
            worker.unusable[built.tarball.digest] = reason


def progress(environment: Environment, stage: str, done: int = 0, total: int = 0, text: str = "") -> EnvironmentProgress:
    return EnvironmentProgress(environment.key, environment.declared.name, stage, done, total, text)
