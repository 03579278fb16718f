"""What a code object names: its imports, the dotted names it reads, the constants it holds.

Reads bytecode, runs nothing, looks nothing up.  A live function and a module's file (compiled, or its cached
``.pyc``) are read alike, so scoping is Python's own and a stale source file cannot mislead.
"""

from __future__ import annotations

import dis
import operator
import sys
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

Chain = tuple[str, ...]  # ("np", "linalg", "norm")

_OP = dis.opmap


def _codes(*names: str) -> frozenset[int]:
    """The opcodes of this Python with these names; pseudo-instructions of the compiler are beyond a byte."""
    return frozenset(_OP[name] for name in names if _OP.get(name, 256) < 256)


_CACHE, _EXTENDED = 0, _OP["EXTENDED_ARG"]
_GLOBAL = {_OP[name]: shift
           for name, shift in (("LOAD_GLOBAL", 1), ("LOAD_NAME", 0), ("LOAD_FROM_DICT_OR_GLOBALS", 0))
           if name in _OP}  # fmt: skip
_METHOD = _codes("LOAD_METHOD")  # 3.11; since then a bit of LOAD_ATTR's argument
_ATTRIBUTE = {_OP["LOAD_ATTR"]: 0 if _METHOD else 1, **dict.fromkeys(_METHOD, 0)}
_LOCAL = _codes("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_DEREF", "LOAD_CLASSDEREF")
_LOCAL_PAIR = _codes("LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW")
_STORE_LOCAL = _codes("STORE_FAST", "STORE_DEREF")
_STORE_PAIR = _codes("STORE_FAST_STORE_FAST", "STORE_FAST_LOAD_FAST")
_STORE_LOAD = _codes("STORE_FAST_LOAD_FAST")
_STORE_NAME = _codes("STORE_NAME", "STORE_GLOBAL")
_STORE = _STORE_LOCAL | _STORE_PAIR | _STORE_NAME
_FILLER = _codes("PUSH_NULL", "PRECALL", "RESUME", "NOP", "COPY_FREE_VARS", "NOT_TAKEN")
_SKIPPED = _codes("TO_BOOL")  # between a condition and its jump, since 3.13
_CALL = _codes("CALL", "CALL_FUNCTION_EX", "CALL_KW")
_JUMP_FALSE = _codes("POP_JUMP_IF_FALSE", "POP_JUMP_FORWARD_IF_FALSE")
_JUMP_TRUE = _codes("POP_JUMP_IF_TRUE", "POP_JUMP_FORWARD_IF_TRUE")
_JUMP_NONE = _codes(
    "POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE", "POP_JUMP_FORWARD_IF_NONE", "POP_JUMP_FORWARD_IF_NOT_NONE"
)
_JUMP = _JUMP_FALSE | _JUMP_TRUE | _JUMP_NONE
_RETURN = _codes("RETURN_VALUE", "RETURN_CONST")
_CONST = _codes("LOAD_CONST", "RETURN_CONST", "LOAD_CONST_IMMORTAL")
_SMALL = _codes("LOAD_SMALL_INT")
_IMPORT, _FROM, _BUILD_CLASS = _OP["IMPORT_NAME"], _OP["IMPORT_FROM"], _OP["LOAD_BUILD_CLASS"]
_FORWARD, _COMPARE, _POP_TOP = _OP["JUMP_FORWARD"], _OP["COMPARE_OP"], _OP["POP_TOP"]
_EXC_MATCH, _RERAISE, _WITH = _OP["CHECK_EXC_MATCH"], _OP["RERAISE"], _OP["WITH_EXCEPT_START"]
_COMPARE_SHIFT = {11: 0, 12: 4}.get(sys.version_info[1], 5)
_NEW_LOCALS = 0x2  # the flag of a function's code; a class body has it not

_FORGIVING = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
_COMPUTED = frozenset({"import_module", "__import__"})


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement, or one call of ``import_module`` with a constant."""

    module: str  # as written; "" for "from . import x"
    level: int  # of a relative one
    names: tuple[str, ...]  # what follows "from m import"
    line: int
    guard: str = ""  # "try": ImportError is caught; "branch": it may not run; "": it will run
    dynamic: bool = False  # by import_module: what is done with the module does not show


@dataclass(frozen=True, slots=True)
class Target:
    """What importing bound to a name: a module, or an attribute of one."""

    source: Import
    attribute: str = ""  # of "from m import attribute"
    whole: bool = True  # False: "import a.b" binds only "a"


@dataclass(slots=True)
class Unit:
    """What one function, one class, or the top level of one module names."""

    imports: list[Import] = field(default_factory=list)
    chains: dict[Chain, int] = field(default_factory=dict)  # rooted in a global name -> line
    uses: list[tuple[Target, Chain, int]] = field(
        default_factory=list
    )  # attributes of what it imported itself
    attributes: dict[str, int] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    bound: dict[str, Target] = field(default_factory=dict)
    computed: list[int] = field(default_factory=list)  # lines of imports of a computed name
    file: str = ""


@dataclass(slots=True)
class Source:
    """A module as its file tells: the code that importing it runs, and the functions and classes it defines."""

    top: Unit
    units: dict[str, Unit]
    passed: dict[
        str, tuple[Chain, ...]
    ]  # functions given to a call while importing (decorators): to which names


def read_function(code: CodeType) -> Unit:
    """What a function names, with all code nested in it."""
    unit = Unit(file=code.co_filename)
    _Reader(code, unit).read()
    return unit


def read_module(code: CodeType) -> Source:
    """What a module names, by what it defines."""
    source = Source(Unit(file=code.co_filename), {}, {})
    _ModuleReader(code, source).read()
    return source


def instructions(code: CodeType) -> Iterator[tuple[int, int, int]]:
    """(offset, opcode, argument), without inline caches."""
    raw, extended = code.co_code, 0
    for at in range(0, len(raw), 2):
        op = raw[at]
        if op == _CACHE:
            continue
        argument = raw[at + 1] | extended
        extended = argument << 8 if op == _EXTENDED else 0
        if op != _EXTENDED and op not in _SKIPPED:
            yield at, op, argument


class _Reader:
    """One pass over one code object.  ``unit`` gets what it finds; ``sink`` is another unit for a while."""

    def __init__(self, code: CodeType, unit: Unit) -> None:
        self.code, self.unit, self.sink = code, unit, unit
        self.steps = list(instructions(code))
        starts = [(start, line) for start, _, line in code.co_lines() if line is not None]
        self.starts, self.lines = [s for s, _ in starts], [line for _, line in starts]
        self.handlers = _handlers(code, self.steps) if code.co_exceptiontable else []
        self.branches: list[tuple[int, int]] = []  # code that a condition may jump over
        self.never: list[tuple[int, int]] = []  # code that cannot run here
        self.importing: Import | None = None
        self.attribute = ""  # the name last taken by "from m import name"
        self.before: list[Any] = [None, None]  # the last two constants: level and names of an import

    def line(self, at: int) -> int:
        index = bisect_right(self.starts, at) - 1
        return self.lines[index] if index >= 0 else self.code.co_firstlineno

    def local(self, index: int) -> str:
        return self.code._varname_from_oparg(index)  # type: ignore[attr-defined, no-any-return]

    # ------------------------------------------------------------ the pass

    def read(self) -> None:
        names = self.code.co_names
        chain: list[str] = []
        chain_at, chain_local = 0, False
        for index, (at, op, arg) in enumerate(self.steps):
            if op in _FILLER or (self.never and any(start <= at < end for start, end in self.never)):
                continue
            if op in _ATTRIBUTE:
                name = names[arg >> _ATTRIBUTE[op]]
                self.sink.attributes.setdefault(name, self.line(at))
                if chain:
                    chain.append(name)
                continue
            if chain:
                self.read_name(tuple(chain), chain_at, chain_local, index)
                chain = []
            if op in _GLOBAL:
                chain, chain_at, chain_local = [names[arg >> _GLOBAL[op]]], at, False
            elif op in _LOCAL:
                chain, chain_at, chain_local = [self.local(arg)], at, True
            elif op in _LOCAL_PAIR:
                self.read_name((self.local(arg >> 4),), at, True, index)
                chain, chain_at, chain_local = [self.local(arg & 15)], at, True
            elif op in _STORE:
                self.store(op, arg)
                if op in _STORE_LOAD:
                    chain, chain_at, chain_local = [self.local(arg & 15)], at, True
            else:
                self.step(index, at, op, arg)
        if chain:
            self.read_name(tuple(chain), chain_at, chain_local, len(self.steps))

    def step(self, index: int, at: int, op: int, arg: int) -> None:
        """An instruction that neither reads nor stores a name."""
        if op in _CONST:
            value = self.code.co_consts[arg]
            self.before = [self.before[1], value]
            if isinstance(value, CodeType):
                self.nested(value)
            else:
                self.note(value)
        elif op in _SMALL:
            self.before = [self.before[1], arg]
        elif op == _IMPORT:
            level, wanted = self.before
            name = self.code.co_names[arg]
            self.importing = Import(name, level or 0, tuple(wanted or ()), self.line(at), self.guard(at))
            self.attribute = ""
            self.sink.imports.append(self.importing)
        elif op == _FROM:
            self.attribute = self.code.co_names[arg]
        elif op in _JUMP:
            self.branch(index, at, op, arg)
        elif op == _POP_TOP and not self.attribute:
            self.importing = None

    def store(self, op: int, arg: int) -> None:
        if op in _STORE_NAME:
            name = self.code.co_names[arg]
        else:
            name = self.local(arg >> 4 if op in _STORE_PAIR else arg)
        source = self.importing
        if source is not None and source.names:
            self.sink.bound[name] = Target(source, self.attribute)
            self.attribute = ""  # and more may come of the same statement
        elif (
            source is not None
        ):  # "import a.b.c as d" walks down by IMPORT_FROM; plain "import a.b.c" binds "a"
            self.sink.bound[name] = Target(source, whole=bool(self.attribute) or "." not in source.module)
            self.importing = None

    def read_name(self, chain: Chain, at: int, local: bool, index: int) -> None:
        """A dotted name was read; ``index`` is the instruction after it."""
        if chain[-1] in _COMPUTED:
            self.computed_import(at, index)
        if not local:
            self.sink.chains.setdefault(chain, self.line(at))
        elif (target := self.unit.bound.get(chain[0])) is not None:
            self.sink.uses.append((target, chain[1:], self.line(at)))

    def computed_import(self, at: int, index: int) -> None:
        """``import_module("constant")`` is an import; any other call of it is noted."""
        steps = (step for step in self.steps[index:] if step[1] not in _FILLER)
        _, op, arg = next(steps, (0, 0, 0))
        value = self.code.co_consts[arg] if op in _CONST else None
        if isinstance(value, str) and value:
            level = len(value) - len(value.lstrip("."))
            self.sink.imports.append(
                Import(value[level:], level, (), self.line(at), self.guard(at), dynamic=True)
            )
        elif op not in _STORE:
            self.sink.computed.append(self.line(at))

    def note(self, value: Any) -> None:
        if isinstance(value, str):
            if len(value) <= 200:
                self.sink.constants.add(value)
        elif isinstance(value, tuple | frozenset):
            for item in value:
                self.note(item)

    def nested(self, code: CodeType) -> None:
        _Reader(code, self.unit).read()

    # ------------------------------------------------------------ what may not run, or may fail

    def guard(self, at: int) -> str:
        if any(start <= at < end for start, end in self.handlers):
            return "try"
        return "branch" if any(start < at < end for start, end in self.branches) else ""

    def branch(self, index: int, at: int, op: int, arg: int) -> None:
        after = self.steps[index + 1][0] if index + 1 < len(self.steps) else at + 2
        end = after + 2 * arg
        truth = None if op in _JUMP_NONE else self.known(index)
        if truth is None:
            self.branches.append((at, end))
        elif truth == (op in _JUMP_TRUE):
            self.never.append((after, end))
        else:  # this side always runs; where it ends by leaping over the other side, that one never does
            last = next(((op, arg) for at, op, arg in reversed(self.steps) if at < end), (0, 0))
            if last[0] == _FORWARD:
                self.never.append((end, end + 2 * last[1]))
            elif last[0] in _RETURN:
                self.never.append((end, len(self.code.co_code)))

    def known(self, index: int) -> bool | None:
        """The truth of the condition before a jump, where it is the same for every run here."""
        _, op, arg = self.steps[index - 1]
        names = self.code.co_names
        for table in (_GLOBAL, _ATTRIBUTE):
            if op in table and names[arg >> table[op]] == "TYPE_CHECKING":
                return False
        if op != _COMPARE or index < 3:
            return None
        (_, op1, arg1), (_, op2, arg2) = self.steps[index - 3 : index - 1]
        value = self.code.co_consts[arg2] if op2 in _CONST else None
        if op1 in _GLOBAL and names[arg1 >> _GLOBAL[op1]] == "__name__" and value == "__main__":
            return False  # files travel as modules, never as scripts
        if op1 in _ATTRIBUTE:
            return _same_here(names[arg1 >> _ATTRIBUTE[op1]], dis.cmp_op[arg >> _COMPARE_SHIFT], value)
        return None


class _ModuleReader(_Reader):
    """The code of a module: what importing it runs goes to its top, the rest to what it defines."""

    def __init__(self, code: CodeType, source: Source) -> None:
        super().__init__(code, source.top)
        self.source = source
        self.made = ""  # the function just made, and not yet stored
        self.since: list[Chain] = []  # names read since the last store: decorators, if a call follows

    def nested(self, code: CodeType) -> None:
        name = code.co_name
        if name.startswith("<"):  # a lambda or a comprehension of the top level
            _Reader(code, self.unit).read()
            return
        own = self.source.units.setdefault(name, Unit(file=code.co_filename))
        if code.co_flags & _NEW_LOCALS:
            self.made = name
            _Reader(code, own).read()
        else:
            _ClassReader(code, self.unit, own).read()

    def read_name(self, chain: Chain, at: int, local: bool, index: int) -> None:
        super().read_name(chain, at, local, index)
        self.since.append(chain)

    def store(self, op: int, arg: int) -> None:
        if self.sink is not self.unit:  # a class: the names of its bases are its own need, not the module's
            own = self.source.units.setdefault(self.code.co_names[arg], Unit(file=self.unit.file))
            own.chains.update(self.sink.chains)
            self.sink = self.unit
        super().store(op, arg)
        self.made, self.since = "", []

    def step(self, index: int, at: int, op: int, arg: int) -> None:
        super().step(index, at, op, arg)
        if op == _BUILD_CLASS:
            self.sink = Unit(bound=self.unit.bound, imports=self.unit.imports)
        elif op in _CALL and self.made and self.sink is self.unit:
            self.source.passed[self.made] = (*self.source.passed.get(self.made, ()), *self.since)


class _ClassReader(_Reader):
    """A class body: its statements run while importing, its methods when they are called."""

    def __init__(self, code: CodeType, top: Unit, own: Unit) -> None:
        super().__init__(code, top)
        self.own = own

    def nested(self, code: CodeType) -> None:
        if code.co_flags & _NEW_LOCALS or code.co_name.startswith("<"):
            _Reader(code, self.own).read()
        else:
            _ClassReader(code, self.unit, self.own).read()


def _same_here(name: str, relation: str, value: Any) -> bool | None:
    """``sys.version_info >= (3, 12)`` and ``sys.platform == "win32"``; None for any other comparison."""
    mine: Any = {"version_info": sys.version_info[:], "platform": sys.platform}.get(name)
    compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
               "!=": operator.ne}.get(relation)  # fmt: skip
    if compare is None or type(value) is not type(mine):
        return None
    try:
        return bool(compare(mine, value))
    except TypeError:
        return None


def _handlers(code: CodeType, steps: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The ranges of a code object in which a failing import is caught."""
    places = {at: index for index, (at, _, _) in enumerate(steps)}
    return [
        (start, end)
        for start, end, target in _exception_table(code.co_exceptiontable)
        if (index := places.get(target)) is not None and _forgives(code, steps[index : index + 60])
    ]


def _forgives(code: CodeType, steps: list[tuple[int, int, int]]) -> bool:
    """Whether a handler that starts with these instructions catches ImportError."""
    named: set[str] = set()
    for index, (_, op, arg) in enumerate(steps):
        if op in _GLOBAL:
            named.add(code.co_names[arg >> _GLOBAL[op]])
        elif op == _EXC_MATCH:
            if named & _FORGIVING:
                return True
            named.clear()
        elif op == _WITH:
            return "suppress" in code.co_names
        elif op == _POP_TOP and index == 1:  # a bare "except:"
            return True
        elif op == _RERAISE:
            return False
    return False


def _exception_table(table: bytes) -> Iterator[tuple[int, int, int]]:
    """(start, end, target) offsets; the format is CPython's Objects/exception_handling_notes.txt."""
    at = iter(table)

    def number(byte: int) -> int:
        value = byte & 63
        while byte & 64:
            byte = next(at)
            value = value << 6 | byte & 63
        return value

    for byte in at:
        start, length, target = number(byte) * 2, number(next(at)) * 2, number(next(at)) * 2
        number(next(at))  # depth of the stack
        yield start, start + length, target
