"""What can be said of an environment: as records for ``--json``, and as lists that other tools read.  Prints nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.function import sent
from lfm.function.sent import own_files

if TYPE_CHECKING:
    from lfm_manager.environments.store import Built

ID = 12  # characters of a key that people see


def differences(a: Built, b: Built) -> list[dict[str, str | None]]:
    """The distributions in which two environments differ: their versions in each, None where there is none."""
    before = {d["name"]: d["version"] for d in a.distributions}
    after = {d["name"]: d["version"] for d in b.distributions}
    return [
        {"name": name, "a": before.get(name), "b": after.get(name)}
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def requirements(built: Built) -> str:
    """A requirements list that pins what it holds."""
    pins = [f"{d['name']}=={d['version']}" for d in built.distributions if d["name"] != "python"]
    return "".join(f"{line}\n" for line in [f"# environment {built.key[:ID]}, Python {built.python}", *pins])


def environment_yml(built: Built) -> str:
    """conda's format; what came from an index of wheels stays with pip."""
    lines = [f"name: lfm-{built.key[:ID]}", "dependencies:", f"  - python={built.python}"]
    pins = [d for d in built.distributions if d["name"] != "python"]
    if built.kind == "conda":
        lines += [f"  - {d['name']}={d['version']}" for d in pins]
    elif pins:
        lines += ["  - pip", "  - pip:", *[f"      - {d['name']}=={d['version']}" for d in pins]]
    return "\n".join(lines) + "\n"


def kind_of(output: Path | None) -> str:
    """In what form somebody wants it who names its file so."""
    name = output.name if output else ""
    if name.endswith((".yml", ".yaml")):
        return "conda"
    return "tarball" if ".tar" in name else "requirements"


def shown(built: Built) -> dict[str, Any]:
    """Everything that is known of one."""
    return summary(built) | {
        "distributions": list(built.distributions), "overlay": sent.noted(built.key), "whole": built.whole, "path": str(built.path),
        "libc": built.libc, "machine": built.machine, "files": built.files, "warnings": list(built.warnings),
    }  # fmt: skip


def summary(built: Built) -> dict[str, Any]:
    """One of many."""
    return {
        "id": built.key, "digest": built.digest, "bytes": built.bytes, "python": built.python, "kind": built.kind,
        "packages": len(built.distributions), "unpacked_bytes": built.unpacked_bytes, "built_s": built.built_s,
        "built": built.built,
    }  # fmt: skip


def resolved(packed: Any) -> dict[str, Any]:
    """What a function needs, before anything is built."""
    plan = packed.plan
    return {
        "id": plan.key, "kind": plan.kind, "python": plan.interpreter.version if plan.interpreter else None,
        "distributions": [{"name": d.name, "version": d.version, "why": d.why} for d in plan.distributions],
        "overlay": own_files(packed.overlay), "warnings": list(packed.warnings), "whole": plan.whole,
    }  # fmt: skip


def holds(built: Built) -> str:
    """The first of what was asked for, in a few words."""
    asked = [d["name"] for d in built.distributions if not d["why"].startswith("required by")]
    names = (asked or [d["name"] for d in built.distributions])[:4]
    rest = len(built.distributions) - len(names)
    return (", ".join(names) or "the standard library") + (f" (+{rest})" if rest else "")
