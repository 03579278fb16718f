"""What every message is made of: a frozen record that travels as a msgpack array behind its type's name."""

from __future__ import annotations

from typing import Any, Self

import msgspec


class Record(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True, gc=False):
    """A frozen record of plain fields.  ``gc=False``: records hold values, never each other in a circle.

    A subclass says ``frozen=True`` again: for type checkers it is not inherited.
    """

    def but(self, **changes: Any) -> Self:
        """The same with other values in these fields.  TypeError for a field that it has not."""
        return msgspec.structs.replace(self, **changes)

    def fields(self) -> dict[str, Any]:
        """Its fields by name, as they are."""
        return msgspec.structs.asdict(self)
