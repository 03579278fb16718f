"""The screen of ``lfm status`` and ``lfm top``, from the manager's answer alone."""

from __future__ import annotations

from rich.console import Console

from lfm.cli.screen import WORKERS_SHOWN, screen


def shown(status, height=None):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(screen(status, height))
    console.file.close()
    return console.export_text()


def worker(name):
    return {
        "name": name, "host": "n1", "pid": 1, "state": "busy", "calls": 2, "ended": 7, "connected_s": 61.0,
        "offer": {"cores": 4.0, "memory": 8 * 10**9, "disk": 10**9, "gpus": 0, "wall_time": 3600.0},
        "free": {"cores": 1.0, "memory": 2 * 10**9, "disk": 10**9, "gpus": 0},
    }  # fmt: skip


def category(name, **more):
    spread = {"p50": 10**8, "p95": 2 * 10**8, "max": 3 * 10**8}
    return {
        "category": name, "submitted": 12, "in_flight": 2, "succeeded": 9, "failed": 1, "grown": 0,
        "retries": {"too_small": 2, "lost": 1, "raised": 0}, "mean_wall_s": 4.2,
        "allocated": {"cores": None, "memory": spread, "disk": None},
        "measured": {"cores": {"p50": 0.9, "p95": 1, "max": 1}, "memory": spread, "disk": None, "wall_s": None, "cpu_s": None},
        "waste_gb_h": 0.1, "efficiency": 0.5, "next": {"memory": 4 * 10**8}, **more,
    }  # fmt: skip


STATUS = {
    "schema": "lfm.status/1",
    "manager": {"run": "night", "pid": 7, "host": "login", "up_s": 5.0, "addresses": ["tcp://10.0.0.1:9100"]},
    "workers": [worker("w-1"), worker("w-2")],
    "calls": {"running": 4, "ready": 1200, "failed": 0, "finished": 99},
    "categories": [category("fit")],
    "alerts": ["calls wait"],
}


def test_all_is_shown():
    said = shown(STATUS)
    for text in ("run night", "workers 2: 6 of 8 cores and 12.0 GB of 16.0 GB", "4 running, 1,200 ready; 99 finished", "w-2",
                 "3/4", "fit", "300 MB", "50%", "400 MB", "! calls wait"):  # fmt: skip
        assert text in said, said
    assert " failed;" not in said


def test_nothing_yet():
    said = shown({**STATUS, "workers": [], "calls": {}, "categories": [], "alerts": []})
    assert "workers none" in said and "calls   none" in said


def test_nothing_measured_yet():
    none = {"cores": None, "memory": None, "disk": None, "wall_s": None, "cpu_s": None}
    fresh = category("new", allocated=none, measured=none, efficiency=None, next=None, succeeded=0)
    assert "new" in shown({**STATUS, "categories": [fresh]})


def test_many_workers_are_cut_short():
    many = {**STATUS, "workers": [worker(f"w-{n}") for n in range(100)]}
    assert f"and {100 - WORKERS_SHOWN} more" in shown(many)
    assert shown(many, height=24).count("\n") <= 24
