"""Reads a tar from a stream, member by member, with as little work per member as Python allows.

tarfile does the same and much more, at three times the cost for the thousands of small files of an
environment.  Knows the formats that are in use (ustar, pax, GNU); knows nothing of where members go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK = 512
BUFFER = 1 << 22
_ZEROS = bytes(BLOCK)
_SIZE_OF_NAME = 1 << 20  # more than any path has


class Readable(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


class BadTar(Exception):
    """It is cut short, or no tar."""


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    kind: str  # "file" | "folder" | "symlink" | "hardlink" | "other"
    size: int
    executable: bool
    link: str


_EMPTY = b"123456"  # links, devices, folders and pipes: whatever size they say, nothing follows
_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"2": "symlink", b"1": "hardlink"}


class TarStream:
    """Iterate for the members; ``copy`` writes the content of the one that came last."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._view = memoryview(bytearray(BUFFER))
        self._start = self._end = 0
        self._left = 0  # of the present member's content
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        said: dict[str, str] = {}  # by extended headers, of the member that follows
        while (header := self._header()) is not None:
            kind = header[156:157]
            self._left = _number(header[124:136])
            self._padding = -self._left % BLOCK
            if kind in b"xg":
                records = _records(self._content())
                said |= records if kind == b"x" else {}
                continue
            if kind in b"LK":
                said["path" if kind == b"L" else "linkpath"] = _text(self._content())
                continue
            member = _member(header, kind, said, self._left)
            self._left = member.size if kind not in _EMPTY else 0
            self._padding = -self._left % BLOCK
            said = {}
            yield member
            self._skip()

    def copy(self, descriptor: int) -> None:
        """Write the present member's content."""
        while self._left:
            piece = self._some(self._left)
            while piece:
                piece = piece[os.write(descriptor, piece) :]

    def _header(self) -> bytes | None:
        header = bytes(self._exactly(BLOCK))
        if header == _ZEROS:
            return None
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise BadTar("a header is damaged")
        return header

    def _content(self) -> bytes:
        if self._left > _SIZE_OF_NAME:
            raise BadTar("a header is too long")
        content = b""
        while self._left:
            content += bytes(self._some(self._left))
        self._skip()
        return content

    def _skip(self) -> None:
        """To the next header."""
        self._left, rest = 0, self._left + self._padding
        self._padding = 0
        while rest:
            step = min(rest, self._end - self._start) or min(rest, self._fill())
            self._start += step
            rest -= step

    def _some(self, most: int) -> memoryview:
        """The next bytes of the content, at least one."""
        if self._start == self._end:
            self._fill()
        size = min(most, self._end - self._start)
        self._start += size
        self._left -= size
        return self._view[self._start - size : self._start]

    def _exactly(self, size: int) -> memoryview:
        while self._end - self._start < size:
            if self._start:
                kept = self._end - self._start
                self._view[:kept] = bytes(self._view[self._start : self._end])
                self._start, self._end = 0, kept
            self._fill()
        self._start += size
        return self._view[self._start - size : self._start]

    def _fill(self) -> int:
        """Read more; BadTar at the end, for a tar says itself where it ends."""
        if self._start == self._end:
            self._start = self._end = 0
        size = self._stream.readinto(self._view[self._end :])
        if not size:
            raise BadTar("it is cut short")
        self._end += size
        return size


def _member(header: bytes, kind: bytes, said: dict[str, str], size: int) -> Member:
    name = said.get("path") or _text(header[:100])
    if "path" not in said and header[257:263] == b"ustar\0" and header[345:346] != b"\0":
        name = f"{_text(header[345:500])}/{name}"
    what = _KINDS.get(kind, "other")
    if kind == b"\0" and name.endswith("/"):  # as old tars wrote folders
        what = "folder"
    try:
        size = int(said["size"]) if "size" in said else size
    except ValueError:
        raise BadTar("a size is no number") from None
    return Member(
        name=name,
        kind=what,
        size=size,
        executable=bool(_number(header[100:108]) & 0o111),
        link=said.get("linkpath") or _text(header[157:257]),
    )


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's binary form
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.rstrip(b"\0 ").decode("ascii") or "0", 8)
    except ValueError:
        raise BadTar("a number is none") from None


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _records(content: bytes) -> dict[str, str]:
    """The ``LENGTH KEY=VALUE`` lines of a pax header."""
    found = {}
    while content:
        length, _, _ = content.partition(b" ")
        try:
            size = int(length)
            key, equals, value = content[len(length) + 1 : size - 1].partition(b"=")
        except ValueError:
            raise BadTar("an extended header is damaged") from None
        if not equals or not 0 < size <= len(content):
            raise BadTar("an extended header is damaged")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[size:]
    return found
