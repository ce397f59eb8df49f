"""Every error that a user can get says what was expected, what was received, and what to do."""

import ast
import itertools
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "spcl_loss"
EXPECTED = re.compile(r"\b(must|needs?|belong together)\b")
RECEIVED = re.compile(r"\breceived\b")
REMEDY = re.compile(  # a sentence of its own, after what was received, that begins with what to do
    r"received.*\. (?:Pass|Use|Convert|Move|Take|Build|Set|Fill|Number|Raise|Rank|Make|Give|Compare"
    r"|torch\.as_tensor converts|\{_shape_remedy\})",
    re.DOTALL,
)
# The errors that are exempt, by a part of their text, and why.
EXEMPT = {
    "StopIteration": "the end of an iterator, which Python itself takes",
    "NotImplementedError": "a base class without this method; users make none of them",
    "settings with different checksums": "cannot happen: the caller has seen that they differ",
    "has no setting": "names the setting that was received, and asks whether the nearest one was meant",
    "belongs to the memory": "names the setting that was received and where it belongs; a remedy is always among them",
    "A prototype is the mean of different entries": "the remedy follows the reason: lower it or enlarge the queue",
    "A sample has none if": "the remedy follows the reasons: leave it out, or give it a score",
    "has a first derivative only": "nothing was received: a second derivative was asked for; names the remedy",
    "must not fill its memory within a backward pass": "nothing was received but the call; names the remedy",
    "impl='triton' cannot be used": "received comes first; the reason says what is missing, then the remedy",
    "refused its own": "passes on the whole message of another rank",
    "do not match a single process": "what assert_matches_single_process was asked to find out",
    "ranks have not come to an end": "what assert_matches_single_process was asked to find out",
    "ranks failed": "passes on the error of another process",
}


def texts(node, function, module):
    """The possible texts of an expression. Fields of f-strings become {name}; names and functions are looked up."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        parts = [texts(part, function, module) for part in node.values]
        return ["".join(pieces) for pieces in itertools.product(*parts)]
    if isinstance(node, ast.FormattedValue):
        if isinstance(node.value, ast.Name) and node.value.id == "message":
            return texts(node.value, function, module)
        called = node.value.func if isinstance(node.value, ast.Call) else node.value
        return [f"{{{called.id if isinstance(called, ast.Name) else 'value'}}}"]
    if isinstance(node, ast.Name):
        for place in (function, module):  # a parameter has its values where the function is called
            assigned = [
                n for n in ast.walk(place) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == node.id
            ]
            if assigned:
                return [text for n in assigned for text in texts(n.value, place, module)]
    if isinstance(node, ast.Call):
        for place in ast.walk(module):
            if isinstance(place, ast.FunctionDef) and place.name == ast.unparse(node.func):
                returned = [n.value for n in ast.walk(place) if isinstance(n, ast.Return)]
                return [text for value in returned for text in texts(value, place, module)]
    return [ast.unparse(node)]


def messages(source):
    """(line, text) of everything that is raised, except what is only raised again."""
    module = ast.parse(source)
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    function_of = {id(node): function for function in functions for node in ast.walk(function)}  # the innermost one
    raised = [node for node in ast.walk(module) if isinstance(node, ast.Raise) and node.exc is not None]
    found = []
    for node in raised:
        arguments = node.exc.args if isinstance(node.exc, ast.Call) else []
        function = function_of.get(id(node), module)
        found += [(node.lineno, text) for part in arguments or [node.exc] for text in texts(part, function, module)]
    return found


def missing(text):
    parts = {"what was expected": EXPECTED, "what was received": RECEIVED, "what to do": REMEDY}
    return [name for name, pattern in parts.items() if not pattern.search(text)]


FILES = sorted(PACKAGE.rglob("*.py"))
RAISED = [(path.relative_to(PACKAGE), line, text) for path in FILES for line, text in messages(path.read_text("utf-8"))]


def test_every_message_says_what_was_expected_what_was_received_and_what_to_do():
    wrong = [
        f"{path}:{line} lacks {' and '.join(missing(text))}: {text}"
        for path, line, text in RAISED
        if missing(text) and not any(part in text for part in EXEMPT)
    ]
    assert not wrong, "\n".join(wrong)
    assert len(RAISED) > 40


@pytest.mark.parametrize("part", EXEMPT)
def test_every_exemption_is_needed(part):
    assert any(part in text and missing(text) for _, _, text in RAISED)


@pytest.mark.parametrize(
    ("source", "lacks"),
    [
        ("raise ValueError(f'x must be 1; received {x}. Pass 1')", []),
        ("raise ValueError('x must be 1; received 2')", ["what to do"]),
        ("raise ValueError(f'x must be 1. Pass {one}')", ["what was received", "what to do"]),
        ("def f():\n  m = 'bad'\n  raise TypeError(m)", ["what was expected", "what was received", "what to do"]),
        ("def g():\n  return 'x must be 1; received 2'\nraise TypeError(g())", ["what to do"]),
    ],
)
def test_what_a_message_lacks_is_noticed(source, lacks):
    ((_, text),) = messages(source)
    assert missing(text) == lacks
