"""One contender in a process of its own: ``python contender.py NAME``; one JSON request a line, one answer a line.

Requests: ``{"do": "calls", "function", "n"}``, ``{"do": "latency", "function", "n"}``, ``{"do": "ask", "function"}``
(what the function returned), ``{"do": "modules", "names"}`` (load them first, the floor only).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Protocol

import work
from floor import Fork, load
from processes import keep_orphans

SLOTS = 2


class Contender(Protocol):
    def many(self, function: Callable[[int], Any], n: int) -> list[Any]: ...
    def close(self) -> None: ...


class Floor:
    """os.fork for every call."""

    def __init__(self) -> None:
        self.fork = Fork(SLOTS)

    def many(self, function: Callable[[int], Any], n: int) -> list[Any]:
        return self.fork.map(function, range(n))

    def close(self) -> None:
        pass


class Futures:
    """Anything with ``submit`` and ``shutdown`` as in concurrent.futures."""

    def __init__(self, executor: Any, shutdown: Callable[[], None] | None = None) -> None:
        self.executor, self.shutdown = executor, shutdown or executor.shutdown

    def many(self, function: Callable[[int], Any], n: int) -> list[Any]:
        return [future.result() for future in [self.executor.submit(function, i) for i in range(n)]]

    def close(self) -> None:
        self.shutdown()


def make_lfm() -> Contender:
    import lfm

    return Futures(lfm.Executor(cores=SLOTS))


def make_pool() -> Contender:
    from concurrent.futures import ProcessPoolExecutor

    return Futures(ProcessPoolExecutor(SLOTS))


def make_parsl() -> Contender:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    class Apps:
        """parsl's way to say submit: an app for every function."""

        def __init__(self) -> None:
            self.apps: dict[Any, Any] = {}

        def submit(self, function: Any, *args: Any) -> Any:
            if function not in self.apps:
                self.apps[function] = parsl.python_app(function)
            return self.apps[function](*args)

    provider = LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1)
    executor = HighThroughputExecutor(label="htex", max_workers_per_node=SLOTS, cores_per_worker=1,
                                      address="127.0.0.1", provider=provider)  # fmt: skip
    logs = tempfile.TemporaryDirectory()
    parsl.load(Config(executors=[executor], run_dir=logs.name, strategy="none", usage_tracking=0))

    def close() -> None:
        parsl.dfk().cleanup()
        logs.cleanup()

    return Futures(Apps(), close)


def make_dask() -> Contender:
    import dask
    from distributed import Client, LocalCluster

    scratch = tempfile.TemporaryDirectory()
    dask.config.set({"temporary-directory": scratch.name})
    cluster = LocalCluster(n_workers=SLOTS, threads_per_worker=1, processes=True, dashboard_address=None)
    client = Client(cluster)

    class Impure:
        def submit(self, function: Any, *args: Any) -> Any:
            return client.submit(function, *args, pure=False)

    def close() -> None:
        client.close()
        cluster.close()
        scratch.cleanup()

    return Futures(Impure(), close)


def make_ray() -> Contender:
    import ray

    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level="error")
    tasks: dict[Any, Any] = {}

    class Tasks:
        def many(self, function: Callable[[int], Any], n: int) -> list[Any]:
            if function not in tasks:
                tasks[function] = ray.remote(function)
            return list(ray.get([tasks[function].remote(x) for x in range(n)]))

        def close(self) -> None:
            ray.shutdown()

    return Tasks()


MAKE: dict[str, Callable[[], Contender]] = {
    "floor": Floor,
    "lfm": make_lfm,
    "pool": make_pool,
    "parsl": make_parsl,
    "dask": make_dask,
    "ray": make_ray,
}


def answer(contender: Contender, request: dict[str, Any]) -> Any:
    if request["do"] == "modules":
        return load(request["names"])
    function = getattr(work, request["function"])
    if request["do"] == "ask":
        return contender.many(function, 1)[0]
    if request["do"] == "calls":
        begun = time.perf_counter()
        values = contender.many(function, request["n"])
        wall = time.perf_counter() - begun
        assert values == list(range(request["n"]))
        return wall
    latencies = []
    for _ in range(request["n"]):
        begun = time.perf_counter()
        contender.many(function, 1)
        latencies.append(time.perf_counter() - begun)
        time.sleep(request.get("pause", 0.0))
    return latencies


def main() -> None:
    keep_orphans()
    contender = MAKE[sys.argv[1]]()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(contender, json.loads(line))), flush=True)
    contender.close()


if __name__ == "__main__":
    main()
