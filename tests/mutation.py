"""Changes the library one place at a time, and counts the changes that its tests notice.

    python tests/mutation.py --sample 300                     # what `make mutation` runs
    python tests/mutation.py --only loss.py:187               # every change of one line, with the test that notices

A change is another operator, constant, condition or result, a deleted statement, or two swapped arguments. Every
module gets its share of the sample. PyTorch and the tests are imported once. Every change is tried in a fork of that
process: the functions and the constants of the module become those of the changed code, and the tests that reach the
changed line run, one of every test function first, up to the first that fails. `mutation.json` holds the changes that
these tests cannot notice, each with its reason, and the counts of the last run. This program needs Unix.
"""

import argparse
import ast
import copy
import gc
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "src" / "spcl_loss"
RECORD = TESTS / "mutation.json"
FILES = {  # module: the files of tests that concern it
    "loss.py": ("loss", "defaults", "fuzz"),
    "module.py": ("module",),
    "memory.py": ("memory", "module", "defaults", "stateful"),
    "difficulty.py": ("difficulty",),
    "curriculum.py": ("curriculum", "stateful"),
    "_sampling.py": ("sampling", "curriculum", "stateful"),
    "_checks.py": ("loss", "memory", "difficulty", "curriculum", "module", "messages", "operator"),
    "_numerics.py": ("numerics", "loss", "operator", "similarity", "fuzz"),
    "_similarity/dense.py": ("similarity", "operator", "loss", "fuzz"),
    "_similarity/strips.py": ("similarity", "operator", "loss", "fuzz"),
}
SLOW = 1.0  # seconds; a test that takes longer is left out, as is compiled code
BUDGET = 4.0  # seconds of tests for one change
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


# Changes. Each gives one attribute of a node of the syntax tree another value.


class Change(NamedTuple):
    module: str
    name: str  # the function, and its statement after the change
    lines: range | None  # a test must reach one of them to notice; None: computed at import, for every test
    tree: ast.Module
    node: ast.AST
    attribute: str
    value: object

    def applied(self, result: Callable):
        """What the function returns while the change is made."""
        before = getattr(self.node, self.attribute)
        setattr(self.node, self.attribute, self.value)
        try:
            return result()
        finally:
            setattr(self.node, self.attribute, before)

    def code(self):
        return self.applied(lambda: compile(ast.fix_missing_locations(self.tree), SOURCE / self.module, "exec"))


def changes(module: str) -> Iterator[Change]:
    """All changes of the module, each with another name."""
    names = Counter()
    for change in _changes(module):
        names[change.name] += 1
        count = names[change.name]
        yield change if count == 1 else change._replace(name=f"{change.name} ({count})")


def _changes(module: str) -> Iterator[Change]:
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    for node, statement, function, lines in list(_nodes(tree, tree, "", None)):
        for attribute, value in _variants(node):
            change = Change(module, "", lines, tree, node, attribute, value)
            yield change._replace(name=f"{function}: {change.applied(lambda s=statement: _first_line(s))}")
        for attribute, value, deleted in _deletions(node):
            name = f"{function}: deleted: {_first_line(deleted)}"
            yield Change(module, name, lines and _lines(deleted), tree, node, attribute, value)


def _nodes(node, statement, function, lines):
    """(node, its statement, its function, lines as those of a change) of all that is computed."""
    yield node, statement, function, lines
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            message, alternative_types = isinstance(child, ast.JoinedStr), lines is None and _is_union(child)
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if not isinstance(child, ast.AST) or message or alternative_types or for_types:
                continue
            inner, own, reached = function, statement, lines
            if isinstance(child, ast.stmt):
                own, reached = child, lines and _lines(child)
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{function}.{child.name}".lstrip(".")
                reached = _lines(child) if isinstance(child, ast.FunctionDef) else None
            yield from _nodes(child, own, inner, reached)


def _is_union(node) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)


def _lines(statement) -> range:
    """The lines of a statement without those of the statements in it; of a function with defaults its body."""
    body = getattr(statement, "body", None)
    if isinstance(statement, ast.FunctionDef):
        return range(body[0].lineno, statement.end_lineno + 1)
    return range(statement.lineno, body[0].lineno if body else statement.end_lineno + 1)


def _first_line(statement) -> str:
    short = copy.copy(statement)
    for field in {"body", "orelse", "finalbody", "handlers", "decorator_list"}.intersection(statement._fields):
        setattr(short, field, [])
    return ast.unparse(short)


def _variants(node):
    """(attribute of the node, other value) of each change. All names stay in use: functions keep their variables."""
    match node:
        case ast.Compare():
            for at, operator in enumerate(node.ops):
                yield "ops", [*node.ops[:at], OTHER[type(operator)](), *node.ops[at + 1 :]]
            for at, part in enumerate(node.comparators):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    other = ast.Constant(f"another {part.value}")
                    yield "comparators", [*node.comparators[:at], other, *node.comparators[at + 1 :]]
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in OTHER:
            yield "op", OTHER[type(node.op)]()
        case ast.UnaryOp():
            yield "operand", ast.UnaryOp(node.op, node.operand)  # a second one undoes it
        case ast.Constant(value=bool(value)):
            yield "value", not value
        case ast.Constant(value=int(value) | float(value)):
            yield "value", value + 1
        case ast.Call(keywords=keywords):
            for at, (one, two) in enumerate(itertools.pairwise(keywords)):
                if one.arg and two.arg and ast.dump(one.value) != ast.dump(two.value):
                    swapped = [ast.keyword(one.arg, two.value), ast.keyword(two.arg, one.value)]
                    yield "keywords", [*keywords[:at], *swapped, *keywords[at + 2 :]]
        case ast.Return(value=ast.expr()) if ast.unparse(node) != "return None":
            yield "value", ast.IfExp(ast.Constant(False), node.value, ast.Constant(None))
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield "test", ast.UnaryOp(ast.Not(), node.test)


def _deletions(node):
    """(attribute of the node, its statements without one, this one)."""
    for field in ("body", "orelse", "finalbody"):
        statements = getattr(node, field, None)
        for at, statement in enumerate(statements if isinstance(statements, list) else []):
            match statement:
                case ast.Expr(value=ast.Constant()):  # a docstring
                    continue
                case (
                    ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Delete()
                    | ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_])
                ):  # fmt: skip
                    never = ast.If(ast.Constant(False), [statement], [])
                    yield field, [*statements[:at], never, *statements[at + 1 :]], statement


def sample(every: dict[str, list[Change]], size: int, seed: int) -> Iterator[Change]:
    """So many changes in all, of each module its share."""
    total = sum(map(len, every.values()))
    for module, own in every.items():
        yield from random.Random(f"{seed} {module}").sample(own, round(min(size, total) * len(own) / total))


# Putting a change into the running program.


class Program:
    """The library as it runs. Its functions get other code."""

    def __init__(self) -> None:
        if Path(sys.modules["spcl_loss"].__file__).parent != SOURCE:
            raise RuntimeError(f"the tests must import {SOURCE}; they imported {sys.modules['spcl_loss'].__file__}")
        self.functions = defaultdict(list)
        for function in gc.get_objects():
            if type(function) is types.FunctionType and function.__code__.co_filename.startswith(str(SOURCE)):
                self.functions[self.key(function)].append(function)
        gc.freeze()  # from now on gc.get_objects gives only what is new

    @staticmethod
    def key(function) -> tuple:
        return function.__code__.co_filename, function.__code__.co_firstlineno, function.__qualname__

    def run_instead(self, module: str, code, probe: Callable | None = None) -> None:
        """Lets the program go on with this code of the module. Raises ImportError if the code itself fails."""
        name = "spcl_loss." + module.removesuffix(".py").replace("/", ".")
        old, new = sys.modules[name], types.ModuleType(name)
        old.probe = new.probe = probe
        try:
            exec(code, vars(new))
        except Exception as error:
            raise ImportError(f"{type(error).__name__}: {error}") from error
        for function in gc.get_objects():
            if type(function) is types.FunctionType and function.__globals__ is vars(new):
                for before in self.functions[self.key(function)]:
                    before.__code__, before.__defaults__ = function.__code__, function.__defaults__
                    before.__kwdefaults__ = function.__kwdefaults__
        importers = [other for key, other in list(sys.modules.items()) if key.startswith("spcl_loss")]
        self._set_constants(old, new, importers)
        for key, value in vars(new).items():
            if isinstance(value, type) and value.__module__ == name:
                self._set_constants(getattr(old, key), value, [getattr(old, key)])

    @staticmethod
    def _set_constants(old, new, holders: list) -> None:
        for name, value in vars(new).items():
            before = vars(old).get(name)
            if isinstance(value, bool | int | float | tuple) and not name.startswith("__") and value != before:
                for holder in holders:
                    if vars(holder).get(name) is before:
                        setattr(holder, name, value)


def with_probes(module: str):
    """The module's code, in which every statement of a function first calls `probe` with its line."""
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in {part for function in functions for part in ast.walk(function)}:
        for field in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, field, None), list):
                pairs = [(ast.parse(f"probe({s.lineno})").body[0], s) for s in statements]
                setattr(node, field, [statement for pair in pairs for statement in pair])
    return compile(tree, SOURCE / module, "exec")


# Running tests. All of this happens within pytest's loop, in forks of its process.


class KilledError(Exception):
    """A signal has ended a fork, such as that of a crash or of a limit of time."""


def in_a_fork(function: Callable):
    """What the function returns in a fork of this process. Raises KilledError, or RuntimeError where it has raised."""

    def answer() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        signal.alarm(3600)  # for one that waits for ever
        theirs.send(function())

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=answer)
    child.start()
    theirs.close()
    try:
        received = ours.recv()
    except EOFError:
        received = None
    child.join()
    if child.exitcode < 0:
        raise KilledError(f"{signal.Signals(-child.exitcode).name} ended the process of the tests")
    if child.exitcode:
        raise RuntimeError(f"the process of the tests ended with exit code {child.exitcode}")
    return received


class Loop:
    """A plugin of pytest whose loop runs the tests once for each change."""

    def __init__(self, changes: list[Change]) -> None:
        self.changes, self.failed, self.now = changes, False, set()
        self.of_fixtures = defaultdict(set)  # by file, whose tests may share them
        self.explained = json.loads(RECORD.read_text(encoding="utf-8"))["explained"]
        self.counts = {change.module: {"noticed": 0, "explained": 0, "missed": 0} for change in changes}

    def pytest_collection(self) -> None:
        from hypothesis import Phase, settings

        phases = [Phase.explicit, Phase.generate]  # a failing example is not made smaller
        settings.register_profile("mutation", settings(), max_examples=4, phases=phases)
        settings.load_profile("mutation")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item) -> None:
        self.of_fixtures[item.path] |= self.now
        self.now.clear()

    def pytest_runtest_logreport(self, report) -> None:
        self.failed |= report.failed

    def pytest_runtestloop(self, session) -> bool:
        import torch._dynamo  # noqa: F401  # optimizers import it at their first step; once is enough for all forks

        self.items, self.program = session.items, Program()
        self.seconds, self.reached = in_a_fork(self.baseline)
        print(f"{len(self.items)} tests, {sum(self.seconds):.0f} s", flush=True)
        for number, change in enumerate(self.changes, 1):
            kind, by = self.outcome(change)
            self.counts[change.module][kind] += 1
            if kind == "missed" or len(self.changes) < 20:
                print(f"{kind}: {change.module} {change.name} {by}", flush=True)
            if number % 20 == 0:
                print(f"{number} of {len(self.changes)}", flush=True)
        gc.unfreeze()
        session.shouldfail = False
        return True

    def outcome(self, change: Change) -> tuple[str, str]:
        if reason := self.explained.get(change.module, {}).get(change.name):
            return "explained", reason
        try:
            by = in_a_fork(lambda: self.noticed_by(change))
        except KilledError as error:
            by = str(error)
        return ("noticed", by) if by else ("missed", "")

    def runs(self, number: int, following: int | None) -> bool:
        """Whether the test does not fail."""
        item, self.failed = self.items[number], False
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None if following is None else self.items[following])
        return not self.failed

    def baseline(self) -> tuple[list[float], list[set]]:
        """The seconds and the reached (module, line) of every test."""
        seconds, reached = [], []
        for module in self.counts:
            self.program.run_instead(module, with_probes(module), lambda line, m=module: self.now.add((m, line)))
        for number, following in itertools.pairwise([*range(len(self.items)), None]):
            self.now.clear()
            began = time.process_time()
            if not self.runs(number, following):
                raise RuntimeError(f"{self.items[number].nodeid} fails although nothing is changed")
            seconds.append(time.process_time() - began)
            reached.append(set(self.now))
        return seconds, [own | self.of_fixtures[item.path] for own, item in zip(reached, self.items, strict=True)]

    def tests_of(self, change: Change) -> list[int]:
        """The tests that may notice the change: one of every function, then another of each; the quickest first."""
        places = {(change.module, line) for line in change.lines or ()}
        rounds, of_function = [], Counter()
        for number in sorted(range(len(self.items)), key=self.seconds.__getitem__):
            item = self.items[number]
            concerns = item.path.stem.removeprefix("test_") in FILES[change.module]
            if concerns and (change.lines is None or not places.isdisjoint(self.reached[number])):
                rounds.append((of_function[item.function], self.seconds[number], number))
                of_function[item.function] += 1
        quick = [(seconds, number) for _, seconds, number in sorted(rounds) if seconds <= SLOW]
        sums = itertools.accumulate(seconds for seconds, _ in quick)
        return [number for (_, number), so_far in zip(quick, sums, strict=True) if so_far <= BUDGET]

    def noticed_by(self, change: Change) -> str:
        """The first test that fails, or what else the change led to; nothing if it went unnoticed."""
        import resource  # not at the top, since Windows lacks it

        try:
            self.program.run_instead(change.module, change.code())
        except ImportError as error:
            return str(error)
        for number, following in itertools.pairwise([*self.tests_of(change), None]):
            limit = math.ceil(time.process_time() + 2 + 10 * self.seconds[number])
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
            if not self.runs(number, following):
                return self.items[number].nodeid
        return ""


def interval(noticed: int, of: int) -> tuple[float, float]:
    """The 95% interval of a share, after Wilson."""
    z = 1.96
    middle, half = noticed + z * z / 2, z * math.sqrt(noticed * (of - noticed) / max(1, of) + z * z / 4)
    return (middle - half) / (of + z * z), (middle + half) / (of + z * z)


def main() -> int:
    parser = argparse.ArgumentParser(description="Changes the library, and counts the changes that its tests notice.")
    parser.add_argument("--sample", type=int, default=300, help="how many of all changes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="MODULE:LINE", help="all changes of this line")
    args = parser.parse_args()
    every = {module: list(changes(module)) for module in FILES}
    chosen = list(sample(every, args.sample, args.seed))
    if args.only:
        module, line = args.only.split(":")
        chosen = [change for change in every[module] if int(line) in (change.lines or ())]
    loop = Loop(chosen)
    files = dict.fromkeys(f"{TESTS}/test_{name}.py" for module in loop.counts for name in FILES[module])
    without = [f"-pno:{plugin}" for plugin in ("terminal", "cacheprovider", "xdist", "faulthandler")]
    if code := pytest.main(["-s", "-k", "not compil", *without, *files], plugins=[loop]):
        return int(code)

    total = {kind: sum(own[kind] for own in loop.counts.values()) for kind in ("noticed", "explained", "missed")}
    for module, own in {**loop.counts, "all": total}.items():
        print(f"{module}: " + ", ".join(f"{count} {kind}" for kind, count in own.items()))
    noticed, possible = total["noticed"], total["noticed"] + total["missed"]
    low, high = interval(noticed, possible)
    print(f"{len(chosen)} of {sum(map(len, every.values()))} changes; noticed {noticed / max(1, possible):.1%} of "
          f"those that can be noticed, 95% interval {low:.1%} to {high:.1%}")  # fmt: skip
    if not args.only:
        last_run = {"sample": args.sample, "seed": args.seed, **loop.counts}
        record = {"last run": last_run, "explained": loop.explained}
        RECORD.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(noticed < 0.9 * possible)


if __name__ == "__main__":
    sys.exit(main())
