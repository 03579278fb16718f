"""Run by the packed interpreter (``-I -B``): import every module, and tell where each file came from.

Input: ``{"modules": [...], "forbidden": [folders]}``.  ``forbidden`` are the folders of the machine that built
it: whatever is opened or mapped from there would be missing on a node.
"""

import json
import os
import sys
from typing import Any

TEXT = 500  # characters of what an import failed with


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)  # a module that prints while it is imported must not spoil the answer
    asked = json.load(sys.stdin)
    prefix = os.path.realpath(sys.prefix) + "/"
    forbidden = tuple(folder.rstrip("/") + "/" for folder in asked["forbidden"])
    outside: dict[str, str] = {}
    current = ["<start>"]

    def note(path: object) -> None:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str) or not path.startswith("/") or path.startswith(prefix):
            return
        if path.startswith(forbidden) or path.endswith((".py", ".pyc", ".pth")):
            outside.setdefault(path, current[0])

    def hook(event: str, args: Any) -> None:
        if event == "open" or event == "ctypes.dlopen":
            note(args[0])
        elif event == "import" and args[1]:
            note(args[1])

    sys.addaudithook(hook)
    def behind(error: BaseException | None) -> str | None:
        """The module whose absence a package caught before it said in words of its own what it lacks."""
        for _ in range(16):
            if isinstance(error, ModuleNotFoundError) and error.name:
                return error.name
            error = error and (error.__cause__ or error.__context__)
        return None

    failed = []
    for name in asked["modules"]:
        current[0] = name
        try:
            __import__(name)
        except BaseException as error:
            failed.append(
                {
                    "module": name,
                    "missing": getattr(error, "name", None)
                    if isinstance(error, ModuleNotFoundError)
                    else None,
                    "behind": behind(error),
                    "type": type(error).__name__,
                    "text": " ".join(str(error).split())[:TEXT],
                    "import_error": isinstance(error, ImportError),
                }
            )
    current[0] = "<end>"
    for name, module in list(sys.modules.items()):
        if module is sys.modules["__main__"]:  # this program, by whatever name
            continue
        current[0] = name
        path = getattr(module, "__file__", None)
        if path and not path.startswith("<"):
            note(path)
    current[0] = "a shared library"
    with open("/proc/self/maps") as maps:
        for line in maps:
            _, slash, rest = line.rstrip("\n").partition("/")
            note(slash + rest)
    with open(answer, "w") as out:
        json.dump({"failed": failed, "outside": outside}, out)
    os._exit(0)  # what the modules left running is nobody's business any more


main()
