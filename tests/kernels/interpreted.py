"""The Triton backend under Triton's interpreter, on a CPU, with any of its paths forced on small problems."""

import numpy as np
import pytest

from spcl_loss._similarity.kernels import config

with pytest.MonkeyPatch.context() as _environment:
    _environment.setenv("TRITON_INTERPRET", "1")  # read when kernels are defined, Triton's own among them
    pytest.importorskip("triton")  # there is none but for Linux
    import triton.language as tl
    from triton.runtime import interpreter

    from spcl_loss._similarity.kernels import backward, dispatch, forward, tiles

__all__ = ["PATHS", "WARNINGS", "backward", "choose", "dispatch", "forward", "interpret", "interpreter", "tiles"]

# The interpreter's NumPy on values that are meant: the logarithm of an empty sum, -inf, and the maximum of NaNs.
# The last one is Triton 3.6's own, on its scalars.
WARNINGS = [
    pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning"),
]
PATHS = ("small", "tiles", "tiles, sorted")


def interpret(monkeypatch):
    """Lets impl="triton" take CPU tensors, and the interpreter multiply bfloat16 and work faster."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot)
    _replace_language_once(monkeypatch)


def _replace_language_once(monkeypatch):
    """The interpreter replaces all of triton.language at every call of a device function: once a launch will do."""
    replaced = set()
    replace, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__

    def replace_once(function):
        languages = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        if languages <= replaced:
            return interpreter._LangPatchScope()
        replaced.update(languages)
        return replace(function)

    def launch_anew(*args, **kwargs):
        replaced.clear()
        try:
            return launch(*args, **kwargs)
        finally:
            replaced.clear()

    monkeypatch.setattr(interpreter, "_patch_lang", replace_once)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch_anew)


def choose(monkeypatch, path, descriptors=True):
    """Sends any size through one path; bands and workspace of few tiles, so that there are several."""
    monkeypatch.setattr(config, "SMALL_ROWS", 10**6 if path == "small" else 0)
    monkeypatch.setattr(config, "SORTED_ROWS", 0 if path.endswith("sorted") else 10**9)
    monkeypatch.setattr(config, "BAND_ROWS", 32)
    monkeypatch.setattr(config, "H_BAND_ROWS", 32)
    monkeypatch.setattr(config, "WORKSPACE_BYTES", 6000)
    monkeypatch.setattr(config, "has_tensor_descriptors", lambda architecture: descriptors)


_interpreted_dot = interpreter.InterpreterBuilder.create_dot


def _dot(builder, left, right, *rest):
    """The interpreter keeps bfloat16 as the 16-bit integers that look alike, and would multiply those."""
    return _interpreted_dot(builder, _widened(left), _widened(right), *rest)


def _widened(operand):
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
