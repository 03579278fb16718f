"""A manager that comes back: from what the store holds to the books as they were."""

from __future__ import annotations

from lfm_manager.core import events as e
from lfm_manager.core.blobs import Blobs
from lfm_manager.core.calls import Calls
from lfm_manager.core.clients import Clients
from lfm_manager.core.crew import Crew
from lfm_manager.core.environments import Environments
from lfm_manager.core.policy import Policy
from lfm_manager.core.tasks import Adrift


def recover(
    event: e.Recovered, clients: Clients, calls: Calls, crew: Crew, environments: Environments, blobs: Blobs,
    policy: Policy, now: float,
) -> None:
    """Sessions wait for their clients, finished calls for being fetched, placed ones for their workers; the rest runs."""
    blobs.present = set(event.blobs)
    for environment in event.environments:
        environments.declare(environment, None, now, save=False)
    for function in event.functions:
        clients.declare(function, None, save=False)
    crew.recovery_ends = now + policy.recovery
    for saved in event.sessions:
        session = clients.open(saved.key, saved.hello, None, now)
        clients.expect(session, now + (policy.retention if saved.hello.name else policy.client_grace))
        for record in saved.tasks:
            task = calls.restore(session, record, crew.recovery_ends, now)
            if task is not None and isinstance(task.state, Adrift):
                crew.adrift.setdefault(record.worker, {})[task.id] = task
    calls.tidy()
    environments.tidy()
    blobs.present.intersection_update(blobs.known)  # nobody needs the rest: the shell removes it
