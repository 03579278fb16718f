"""The functions that are called by every contender; an importable module, as a user's would be."""

from __future__ import annotations


def noop(x: int) -> int:
    return x


def noop_numpy(x: int) -> int:
    """Does as little, in an interpreter that has numpy loaded."""
    import numpy as np

    return int(np.intp(x))


def noop_pandas(x: int) -> int:
    import pandas as pd

    return int(pd.NA is not None) * x


def interpreter(x: int) -> tuple[str, list[str]]:
    """Where a call runs: the interpreter, and the modules that it has loaded."""
    import sys

    return sys.executable, sorted(sys.modules)


def interpreter_numpy(x: int) -> tuple[str, list[str]]:
    import sys

    import numpy as np

    return sys.executable, sorted(sys.modules) if np else []


def interpreter_pandas(x: int) -> tuple[str, list[str]]:
    import sys

    import pandas as pd

    return sys.executable, sorted(sys.modules) if pd else []
