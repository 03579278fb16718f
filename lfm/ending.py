"""How what a call said and what its monitor saw become an outcome and a usage."""

from __future__ import annotations

import os

from lfm.monitor import host, wire
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import (
    Blob,
    Crashed,
    EnvironmentBroken,
    Exhausted,
    Inline,
    Killed,
    Lost,
    Outcome,
    Payload,
    Raised,
    Returned,
)
from lfm.protocol.resources import Usage

UNSEEN = 2 << 20  # bytes by which a child may be larger than it was seen to be
MOST = 1 << 60  # bytes: what a call says of itself may be anything, and is to fit into a message
KERNEL = 8 << 20  # bytes of the kernel's own that a group counts and no process shows


def outcome_of(over: host.Over) -> Outcome:
    """How a call ended, from what it said itself and what its monitor saw: the monitor has the last word."""
    report, result = over.report, over.result
    verdict = wire.VERDICTS[report.verdict] if report else ""
    if verdict == "killed":
        return Killed()
    if report and verdict:
        return Exhausted(verdict, report.limit, report.measured, report.at_s)
    if result is not None:
        return _told(result)
    if over.lost or report is None:
        return Lost(over.lost, started=bool(report.flags & wire.STARTED) if report else not over.unsent)
    code = os.waitstatus_to_exitcode(report.status)
    hint = "killed by the kernel: out of memory" if report.flags & wire.OUT_OF_MEMORY else ""
    if code == 0:
        hint = "it left without a result: os._exit, or it closed its descriptors"
    fault = over.fault.decode("utf-8", "replace")
    return Crashed(-code if code < 0 else None, code if code >= 0 else None, fault, hint)


def _told(result: wire.Result) -> Outcome:
    def data() -> Payload | None:
        if result.size:
            return Blob(Digest(result.texts[4]), result.size)
        return Inline(result.data) if result.data else None

    if result.kind == wire.BROKEN:
        module, file, reason, line, _ = result.texts
        return EnvironmentBroken(module, file, int(line) if line.isdecimal() and len(line) < 10 else 0, reason)
    if result.kind == wire.RAISED:
        name, text, trace, stage, _ = result.texts
        return Raised(data(), name, text, trace, stage)
    value = data()
    return Returned(value) if value else Crashed(None, 0, "", "it sent an empty result")


def usage_of(over: host.Over) -> Usage | None:
    """What a call used: its own figures where it could still tell them, its monitor's otherwise, both as bounds."""
    report, figures = over.report, over.result.figures if over.result else None
    if report is None or not report.flags & wire.STARTED:
        return None
    low, high, by = report.memory_low, report.memory_high, wire.MEMORY_BY[report.memory_by]
    processes = report.processes
    if by == "cgroup":
        if figures is not None and figures.children:
            processes = max(processes, 2)
        if figures is not None and processes == 1 and not report.flags & wire.STRAY and low < 1.05 * figures.memory_high + KERNEL:
            exact = max(figures.memory_low, min(high, figures.memory_high))
            low, high, by = max(figures.memory_low, min(low - KERNEL, exact)), exact, "self"
    elif figures is not None:
        low, high = max(low, figures.memory_low), max(high if processes > 1 else low, figures.memory_high)
        by = "self" if processes == 1 else by
        if figures.children and (processes == 1 or figures.children > figures.before + high + UNSEEN):
            # it waited for processes that lived, or grew, between two looks
            processes, high, by = max(2, processes), max(high, figures.memory_high + figures.children), "poll"
    if figures is None and by != "cgroup":
        high = max(high, report.peak_rss)
    low, high = min(low + report.warm, MOST), min(high + report.warm, MOST)
    wall, cpu = over.wall_s if figures is None else figures.wall_s, report.cpu_s
    if figures is not None and processes == 1 and not report.flags & wire.STRAY:
        cpu = min(cpu, max(0.0, figures.cpu_s))  # what its process took before and after is not the call's
    cores = cpu / wall if wall > 0 else 0.0
    return Usage(
        wall_s=wall,
        cpu_s=cpu,
        cores=cores,
        cores_peak=max(cores, report.cores_peak),
        memory=max(low, high),
        memory_low=low,
        memory_by=by,
        disk=max(report.disk, over.disk),
        read=min(report.read, MOST),
        written=min(report.written, MOST),
        processes=processes,
        threads=report.threads,
        gpu_memory=report.gpu_memory,
    )
