"""The states of a call as a picture for people, drawn from the table that the code obeys.

``python -m lfm_manager.core.diagram`` prints it; a test keeps ``manager/README.md`` in step.
"""

from __future__ import annotations

from lfm_manager.core.tasks import EDGES


def diagram() -> str:
    """Mermaid text."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> Waiting: submitted"]
    lines += [f"    {a.__name__} --> {b.__name__}: {why}" for (a, b), why in EDGES.items()]
    lines += ["    Done --> [*]: released", "    Failed --> [*]: released", "```"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
