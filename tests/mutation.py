"""Changes the library one place at a time, and counts the changes that its tests notice.

    python tests/mutation.py --share 0.25                     # what `make mutation` runs
    python tests/mutation.py --only loss.py:187               # the changes of one line, with the tests that notice

PyTorch and the tests are imported once. Every change then runs in a fork of that process, where it replaces the code
and the defaults of the functions of its module. Only the tests that reach the changed line run, the quickest first, up
to the first that fails. Changes that no test can notice stand in `mutation.json`, each with the reason.
"""

import argparse
import ast
import copy
import inspect
import itertools
import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
import types
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "src" / "spcl_loss"
FILES = {  # the tests that a module must pass. Random calls, random sequences of calls and compiled code take too long
    "loss.py": ("loss",),
    "module.py": ("module",),
    "memory.py": ("memory", "module"),
    "difficulty.py": ("difficulty",),
    "curriculum.py": ("curriculum",),
    "_sampling.py": ("sampling", "curriculum"),
    "_similarity/dense.py": ("similarity", "operator"),
    "_similarity/strips.py": ("similarity",),
}
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


# Changes. Each is one node of the syntax tree put in the place of another.


class Change(NamedTuple):
    """One node of a syntax tree put in the place of another."""

    module: str
    function: str
    lines: range  # a test that reaches none of them notices nothing
    what: str
    place: object  # the list or dictionary that holds the node
    key: object
    new: ast.AST
    old: ast.AST

    def code(self, tree: ast.Module, path: Path):
        """The module's code with this change."""
        self.place[self.key] = self.new
        try:
            return compile(tree, str(path), "exec")
        finally:
            self.place[self.key] = self.old


def changes(module: str, tree: ast.Module) -> Iterator[Change]:
    for place, key, node, statement, scope, reached in list(_nodes(tree, None, "", False)):
        if not scope and isinstance(getattr(node, "op", None), ast.BitOr):
            continue  # a type
        for new in _variants(node):
            new = ast.fix_missing_locations(ast.copy_location(new, node))
            before = ast.unparse(_head(statement))
            place[key] = new
            after = ast.unparse(_head(new if node is statement else statement))
            place[key] = node
            if isinstance(new, ast.If) and node is statement and not isinstance(node, ast.If):
                after = "deleted"
            yield Change(module, scope, reached, _difference(before, after), place, key, new, node)


def _nodes(node, statement, scope, within):
    """(list or dictionary, key, node in it, its statement, name of the function, lines) of all nodes that do something.

    `within`: whether the node is in a function. What runs at import is reached by every test.
    """
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.expr | ast.stmt | ast.keyword | ast.arguments):
                continue
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if isinstance(child, ast.JoinedStr) or typing:
                continue  # messages, and what only type checkers read
            inner = f"{scope}.{child.name}".lstrip(".") if isinstance(child, ast.FunctionDef | ast.ClassDef) else scope
            own = child if isinstance(child, ast.stmt) else statement
            place, key = (vars(node), field) if index is None else (value, index)
            function = isinstance(child, ast.FunctionDef)
            if not isinstance(child, ast.arguments):
                yield place, key, child, own, inner, _lines(own) if within or function else range(1 << 30)
            yield from _nodes(child, own, inner, within or function)


def _lines(statement) -> range:
    """The lines of a statement without those of the statements in it; of a function with defaults its body."""
    if isinstance(statement, ast.FunctionDef):
        return range(statement.body[0].lineno, statement.end_lineno + 1)
    body = getattr(statement, "body", None)
    return range(statement.lineno, (body[0].lineno if body else statement.end_lineno + 1))


def _difference(before: str, after: str, around: int = 24) -> str:
    """Both texts without what they share, but for a few characters."""
    before, after = before.replace("\n    ...", ""), after.replace("\n    ...", "")
    if after == "deleted":
        return f"{before}  ->  {after}"
    start = _shared(before, after)
    end = _shared(before[start:][::-1], after[start:][::-1])
    left, right = max(0, start - around), max(0, end - around)
    return f"{before[left : len(before) - right]}  ->  {after[left : len(after) - right]}"


def _shared(one: str, other: str) -> int:
    """How many first characters are the same."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _head(statement):
    """A statement without the statements in it."""
    short = copy.copy(statement)
    for field in ("body", "orelse"):
        if isinstance(statement, ast.stmt) and getattr(statement, field, None):
            setattr(short, field, [ast.Expr(ast.Constant(...))] if field == "body" else [])
    return short


def _variants(node):
    """What takes the node's place, one change at a time."""
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            yield ast.Compare(
                node.left, [*node.ops[:at], OTHER[type(operator)](), *node.ops[at + 1 :]], node.comparators
            )
        for at, value in enumerate(node.comparators):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                other = [*node.comparators[:at], ast.Constant("another " + value.value), *node.comparators[at + 1 :]]
                yield ast.Compare(node.left, node.ops, other)
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in OTHER:
        new = copy.copy(node)
        new.op = OTHER[type(node.op)]()
        yield new
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Call):
        for at in range(len(node.keywords) - 1):
            one, two = node.keywords[at : at + 2]
            swapped = [ast.keyword(one.arg, two.value), ast.keyword(two.arg, one.value)]
            if one.arg and two.arg and ast.dump(one.value) != ast.dump(two.value):
                yield ast.Call(node.func, node.args, [*node.keywords[:at], *swapped, *node.keywords[at + 2 :]])
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        new = copy.copy(node)
        new.test = ast.UnaryOp(ast.Not(), node.test)
        yield new
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield ast.Return(ast.Constant(None))
    called = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    stored = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    if called or stored or isinstance(node, ast.AugAssign | ast.Raise | ast.Delete):
        yield ast.If(ast.Constant(False), [node], [])  # deleted; the names that it uses stay known to the compiler


def _is_none(node) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


# Putting a change into the running program.


def transplant(old, new, holders, place: str) -> None:
    """Gives the functions and plain values of a module or class what those of its changed twin have."""
    for name, value in vars(new).items():
        before = vars(old).get(name)
        if isinstance(value, type) and value.__module__ == place:
            transplant(before, value, [before], place)
        for part in ("fget", "fset", "__func__", "__wrapped__"):  # properties, static methods, decorated functions
            if isinstance(getattr(value, part, None), types.FunctionType) and not inspect.ismethod(value):
                _take_over(getattr(before, part), getattr(value, part))
        if isinstance(value, types.FunctionType) and value.__module__ == place:
            _take_over(before, value)
        elif isinstance(value, bool | int | float | tuple) and not name.startswith("__") and value != before:
            for holder in holders:
                if vars(holder).get(name) is before:
                    setattr(holder, name, value)


def _take_over(before, value) -> None:
    before, value = inspect.unwrap(before), inspect.unwrap(value)
    before.__code__, before.__defaults__, before.__kwdefaults__ = (
        value.__code__, value.__defaults__, value.__kwdefaults__,
    )  # fmt: skip


def with_probes(module: str):
    """The module's code, in which every statement of a function first calls `probe` with its line."""
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in {part for function in functions for part in ast.walk(function)}:
        for field in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, field, None), list):
                pairs = [(ast.parse(f"probe({s.lineno})").body[0], s) for s in statements]
                setattr(node, field, [statement for pair in pairs for statement in pair])
    return compile(tree, str(SOURCE / module), "exec")


def run_instead(module: str, code, probe=None) -> None:
    """Lets the program go on with this code of the module."""
    name = "spcl_loss." + module.removesuffix(".py").replace("/", ".")
    sys.modules[name].probe = probe
    twin = types.ModuleType(name)
    exec(code, vars(twin))
    transplant(
        sys.modules[name], twin, [m for key, m in list(sys.modules.items()) if key.startswith("spcl_loss")], name
    )


# Running tests. All of this happens within pytest's loop, in forks of its process.


class Loop:
    """A plugin whose loop runs the tests once per change."""

    def __init__(self, args) -> None:
        self.args, self.failed, self.share = args, False, 0.0
        self.trees = {module: ast.parse((SOURCE / module).read_text(encoding="utf-8")) for module in args.modules}

    def pytest_collection(self) -> None:
        from hypothesis import Phase, settings

        # Fewer examples, and a failing one is not made smaller.
        settings.register_profile("mutation", settings(), max_examples=10, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report) -> None:
        self.failed |= report.failed

    def pytest_runtestloop(self, session) -> bool:
        args, self.items = self.args, session.items
        if Path(sys.modules["spcl_loss"].__file__).parent != SOURCE:
            raise RuntimeError(f"the tests must import {SOURCE}; they imported {sys.modules['spcl_loss'].__file__}")
        seconds, hits, unusable = in_a_fork(self.baseline)
        usable = [n for n in range(len(self.items)) if n not in unusable and seconds[n] <= args.slowest]
        if unusable:
            print("fail unchanged: " + ", ".join(self.items[n].nodeid for n in unusable), flush=True)
        total = sum(seconds[n] for n in usable)
        print(f"{len(usable)} of {len(self.items)} tests, {total:.0f} s in all; {len(unusable)} fail, the "
              f"others take over {args.slowest:g} s", flush=True)  # fmt: skip
        known = json.loads((TESTS / "mutation.json").read_text(encoding="utf-8"))
        every = list(self.every_change())
        chosen = self.chosen(every)
        outcomes = defaultdict(list)
        for number, change in enumerate(chosen):
            if known.get(change.module, {}).get(f"{change.function}: {change.what}"):
                outcome, by = "explained", ""
            else:
                tests = [n for n in usable if hits[n].get(change.module, set()).intersection(change.lines)]
                tests.sort(key=seconds.__getitem__)
                sums = itertools.accumulate(seconds[n] for n in tests)
                tests = [n for n, so_far in zip(tests, sums, strict=True) if so_far <= args.budget]
                try:
                    by = in_a_fork(lambda c=change, t=tests: self.noticed_by(c, [(n, seconds[n]) for n in t]))
                except KilledError as error:
                    by = str(error)
                outcome = "noticed" if by else "not noticed"
            outcomes[outcome].append(change)
            if outcome == "not noticed" or args.only:
                print(f"{number + 1}: {change.module}:{change.lines.start} {change.function}: {change.what}\n"
                      f"    {outcome} {by or f'by {len(tests)} tests'}", flush=True)  # fmt: skip
            if number % 10 == 9:
                print(f"{number + 1} of {len(chosen)}: {len(outcomes['noticed'])} noticed", flush=True)
        for module in args.modules:
            counts = [
                sum(c.module == module for c in outcomes[kind]) for kind in ("noticed", "explained", "not noticed")
            ]
            print(f"{module}: {counts[0]} noticed, {counts[1]} explained, {counts[2]} not noticed")
        noticed, explained, missed = (len(outcomes[kind]) for kind in ("noticed", "explained", "not noticed"))
        share = noticed / max(1, noticed + missed)
        print(f"{len(chosen)} of {len(every)} changes, seed {args.seed}: {noticed} noticed, {explained} explained, "
              f"{missed} not noticed; {share:.1%} of those that can be noticed")  # fmt: skip
        session.shouldfail = False
        self.share = share
        return True

    def every_change(self) -> Iterator[Change]:
        for module in self.args.modules:
            yield from changes(module, self.trees[module])

    def chosen(self, every: list[Change]) -> list[Change]:
        if self.args.only:
            module, line = self.args.only.split(":")
            return [c for c in every if c.module == module and int(line) in c.lines]
        chosen = []
        for module in self.args.modules:  # each by itself, so that a run over some modules is a part of that over all
            own = [change for change in every if change.module == module]
            chosen += random.Random(f"{self.args.seed} {module}").sample(own, round(self.args.share * len(own)))
        return chosen

    def baseline(self):
        """Seconds and reached lines of every test, and the tests that fail although nothing was changed."""
        now: dict[str, set[int]] = defaultdict(set)
        for module in self.args.modules:
            run_instead(module, with_probes(module), lambda line, m=module: now[m].add(line))
        seconds, hits, unusable = [], [], []
        of_file = defaultdict(lambda: defaultdict(set))  # reached by fixtures, which later tests of the file may share

        loop = self

        class Phases:
            @staticmethod
            def pytest_runtest_call(item):
                nonlocal now
                now = hits[-1]

        for number, item in enumerate(self.items):
            fixtures = of_file[item.path]
            hits.append(defaultdict(set))
            now, loop.failed = fixtures, False
            began = time.process_time()
            if number == 0:
                item.config.pluginmanager.register(Phases)
            item.ihook.pytest_runtest_protocol(item=item, nextitem=(self.items[number + 1 :] or [None])[0])
            seconds.append(time.process_time() - began)
            if loop.failed:
                unusable.append(number)
        for item, own in zip(self.items, hits, strict=True):
            for module, lines in of_file[item.path].items():
                own[module] |= lines
        return seconds, [dict(own) for own in hits], unusable

    def noticed_by(self, change: Change, tests: list[tuple[int, float]]) -> str:
        """The name of the first test that fails. A test that takes far longer than its seconds ends the process."""
        import resource  # not at the top, since Windows lacks it

        try:
            run_instead(change.module, change.code(self.trees[change.module], SOURCE / change.module))
        except Exception as error:
            return f"when it was imported: {type(error).__name__}"
        self.failed = False
        for at, (number, seconds) in enumerate(tests):
            item = self.items[number]
            following = self.items[tests[at + 1][0]] if at + 1 < len(tests) else None
            limit = int(time.process_time() + 3 + 10 * seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return item.nodeid
        return ""


class KilledError(Exception):
    """A signal has ended a fork."""


def in_a_fork(function):
    """What the function returns in a fork of this process.

    Raises:
        KilledError: a signal has ended the fork, such as that of a crash or of a limit of time.
        RuntimeError: the function has raised an exception.
    """
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                silence = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silence, 1)
                os.dup2(silence, 2)
                signal.alarm(3600)  # for one that waits for ever
                try:
                    answer = pickle.dumps((function(), ""))
                except BaseException:
                    answer = pickle.dumps((None, traceback.format_exc()))
                file.write(answer)
                file.flush()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            raise KilledError(f"{signal.Signals(os.WTERMSIG(status)).name} ended the process of the tests")
        if status:
            raise RuntimeError(f"the process of the tests ended with exit code {os.waitstatus_to_exitcode(status)}")
        file.seek(0)
        answer, failure = pickle.load(file)
    if failure:
        raise RuntimeError(f"mutation.py failed in the process of the tests:\n{failure}")
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description="Changes the library, and counts the changes that its tests notice.")
    parser.add_argument("--share", type=float, default=1.0, help="of the changes of a module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--only", metavar="MODULE:LINE", help="the changes of this line")
    parser.add_argument("--slowest", type=float, default=1.0, help="leaves out tests that take more seconds")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of tests for a change, the quickest first")
    parser.add_argument("--at-least", type=float, default=0.9, help="the share of noticed changes to succeed with")
    args = parser.parse_args()
    if args.only:
        args.modules = [args.only.split(":")[0]]
    import pytest

    files = dict.fromkeys(f"{TESTS}/test_{name}.py" for module in args.modules for name in FILES[module])
    loop = Loop(args)
    options = [
        "-k",
        "not compil",
        "-s",
        "-p",
        "no:terminal",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        "no:faulthandler",
    ]
    code = pytest.main([*options, *files], plugins=[loop])
    return int(code != 0 or loop.share < args.at_least)


if __name__ == "__main__":
    sys.exit(main())
