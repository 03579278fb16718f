"""The names of things on the wire.  Opaque text or numbers; nobody parses them, except a person reading a log."""

from typing import NewType

TaskId = NewType("TaskId", str)  # "<client session>-<n>": made by the client, so that a resent submit is the same task
FunctionId = NewType("FunctionId", str)  # sha-256 over code, environment key, overlay digest and preload
EnvironmentKey = NewType("EnvironmentKey", str)  # sha-256 over what an environment holds: known before it is built
Digest = NewType("Digest", str)  # sha-256 of the bytes of a blob, in hexadecimal
PeerId = NewType("PeerId", int)  # one connected session, as the manager counts them; never used twice
