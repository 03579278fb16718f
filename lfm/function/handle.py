"""What ``Executor.put`` gives: the name of bytes that are already on their way, in place of the object."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from lfm.function.pickling import Met

TAG = "lfm-blob"  # the call's unpickler turns (TAG, digest) into the object


@dataclass(frozen=True, slots=True)
class Handle:
    """An object that was sent once; as an argument of a call it arrives as that object."""

    digest: str
    size: int  # bytes of its payload
    met: Met | None = field(default=None, compare=False, repr=False)  # what the object's pickle refers to

    def reference(self) -> tuple[str, str]:
        """The persistent id under which it is pickled."""
        return TAG, self.digest

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        # Only a pickler that knows handles may write one, as a persistent id; any other would send a name
        # that nobody can resolve.
        raise pickle.PicklingError("a handle of Executor.put() can only be sent as an argument of a call")
