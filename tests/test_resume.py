"""A training loop that is killed and continued ends as if nothing had been: the one of docs/howto/resume.md."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support.same import same

PAGE = Path(__file__).parent.parent / "docs/howto/resume.md"
LOOP = re.search(r"^```python\n(.*?)^parts = ", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
ANNOUNCE = """
import sys

checkpoint, save_every = Path(sys.argv[1]), int(sys.argv[2])
_save = save
def save(state, path):
    _save(state, path)
    print("saved", flush=True)
torch.set_num_threads(1)
train(checkpoint, save_every=save_every)
"""


def run_and_kill(checkpoint: Path, save_every: int, saves: int) -> None:
    """Starts or continues the loop in a process of its own, and kills it as soon as it has saved that many times."""
    with subprocess.Popen(
        [sys.executable, "-c", LOOP + ANNOUNCE, str(checkpoint), str(save_every)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        for _ in range(saves):
            assert process.stdout.readline() == b"saved\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("save_every", [1, 5])
def test_a_loop_killed_at_random_steps_ends_with_the_same_bits(tmp_path: Path, save_every: int) -> None:
    loop: dict[str, Any] = {"__name__": "loop"}
    exec(compile(LOOP, str(PAGE), "exec"), loop)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = loop["train"](tmp_path / "whole.pt", save_every=save_every)
        checkpoint, moments = tmp_path / "killed.pt", random.Random(save_every)
        for _ in range(3):  # together at most 60 of the 64 steps
            run_and_kill(checkpoint, save_every, saves=moments.randint(1, 20 // save_every))
        continued = loop["train"](checkpoint, save_every=save_every)
    finally:
        torch.set_num_threads(threads)
    for name, part in whole.items():
        assert same(part.state_dict(), continued[name].state_dict()), name
