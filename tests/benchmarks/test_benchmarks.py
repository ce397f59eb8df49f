"""What the GPU benchmarks do can be tried without a GPU: tiny sizes under Triton's interpreter, and their parts."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")  # there is none but for Linux
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEERS = {  # what their packages offer, as far as it is called
    "memeff": """
import torch

class MemoryEfficientCLIPLoss(torch.nn.Module):
    def __init__(self, temperature=0.07, normalized_inputs=False, stable=True, tau_plus=0.0, label_smoothing=0.0):
        super().__init__()

    def forward(self, image_features, text_features, tau_plus=None):
        return (image_features * text_features).sum()
""",
    "inf_cl": """
def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
    return scale * (q * k).sum(1)
""",
    "siglip_kernel": """
def fused_siglip_loss(img_features, txt_features, log_temperature, bias, use_fp8=False, backend="auto"):
    raise RuntimeError("no such GPU")
""",
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """All sections of gpu.py once, on the CPU, with packages that stand for the peers."""
    folder = tmp_path_factory.mktemp("gpu")
    for module, text in PEERS.items():
        (folder / f"{module}.py").write_text(text)
    pythonpath = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", "--dry-run", "--output", folder / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": pythonpath},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, json.loads((folder / "out" / "gpu.json").read_text()), folder / "out"


def test_a_dry_run_goes_through_everything_and_says_what_it_is(dry_run):
    printed, found, folder = dry_run
    assert "dry run" in found["machine"] and "no time above means anything" in printed
    assert not [row for row in found["rows"] if "failed row" in row]
    assert (folder / "gpu.png").stat().st_size > 0
    rows = found["rows"]
    assert {row["section"] for row in rows} == {"check", "ceiling", "step", "time", "yardsticks", "peers"}
    checks = [row for row in rows if row["section"] == "check"]
    assert all(row["right"] for row in checks) and len(checks) > 40
    assert {row["method"] for row in checks if "method" in row} > {"SPCL", "SPDCL", "SupCon", "BCL", "EACL"}


def test_a_dry_run_times_every_contestant(dry_run):
    _, found, _ = dry_run
    timed = {row["what"] for row in found["rows"] if row.get("both ms")}
    ours = {"ours", "ours, once", "ours, not sorted by class", "ours, gradient in registers"}
    assert timed >= ours | {"dense", "dense, compiled", "memeff, CLIP"}
    for row in found["rows"]:
        if row.get("both ms"):
            assert row["share of floor"] > 0 and row["executed TFLOP/s"] > 0
    steps = {row["what"]: row for row in found["rows"] if row["section"] == "step"}
    assert steps["eager"]["launches"] > 0 and steps["torch.compile"]["microseconds"] > 0
    assert steps["CUDA graph"]["skipped"] == "needs a GPU"


def test_a_peer_that_fails_loses_only_its_own_row(dry_run):
    _, found, _ = dry_run
    siglip = [row for row in found["rows"] if str(row.get("what")).startswith("siglip")]
    assert siglip and all("no such GPU" in row["skipped"] for row in siglip)


@pytest.mark.parametrize("fault", [1.1, math.nan])
def test_a_wrong_gradient_is_seen(monkeypatch, fault):
    import gpu_check

    true_loss = gpu_check.loss

    def wrong(embeddings, *arguments, impl, **options):
        value = true_loss(embeddings, *arguments, impl="dense", **options)
        return value + (fault - 1) * (value - value.detach()) if impl == "triton" else value

    cpu = torch.device("cpu")
    monkeypatch.setattr(gpu_check, "loss", wrong)
    verdicts = list(gpu_check.check_methods(20, 8, "float32", cpu))
    assert not any(verdict["right"] for verdict in verdicts if verdict["what"] == "gradient")
    if fault == fault:
        assert all(verdict["right"] for verdict in verdicts if verdict["what"] == "loss")


def test_memory_is_poisoned_and_then_no_more():
    from device import poisoned
    from gpu_check import check_poison

    assert check_poison(torch.device("cpu"))["right"]
    with poisoned(torch.device("cpu")):
        assert torch.zeros(3).new_empty(5).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_exit_status_is_that_of_the_checks(tmp_path, capsys):
    import gpu_report

    right = {"section": "check", "method": "SPCL", "what": "loss", "right": True}
    assert gpu_report.write([right], tmp_path, dry=True) == 0
    assert gpu_report.write([right, {**right, "right": False}], tmp_path, dry=True) == 1
    assert gpu_report.write([right, {"section": "check", "failed row": "x", "why": "y"}], tmp_path, dry=True) == 1
    assert gpu_report.write([{"section": "check", "skipped row": "all", "why": "no time"}], tmp_path, dry=True) == 1
    assert "1 checks against float64, 1 failed" not in capsys.readouterr().out


def test_without_time_rows_are_skipped_and_named(tmp_path):
    import gpu

    gpu.run_section("ceiling", "", gpu.DRY, False, time.time() - 1, tmp_path / "rows")
    assert [row["skipped row"] for row in gpu.read_rows(tmp_path / "rows")] == ["bfloat16", "float32", "tf32"]


def test_a_fault_in_one_row_leaves_the_others(monkeypatch, tmp_path):
    import gpu
    import gpu_time

    def ceiling(dtype, *_):
        if dtype == "float32":
            raise RuntimeError("out of memory")
        return {"dtype": dtype}

    monkeypatch.setattr(gpu_time, "ceiling", ceiling)
    gpu.run_section("ceiling", "", gpu.DRY, False, time.time() + 1000, tmp_path / "rows")
    rows = gpu.read_rows(tmp_path / "rows")
    assert [row.get("dtype") for row in rows] == ["bfloat16", None, "tf32"]
    assert "out of memory" in rows[1]["why"]
    with (tmp_path / "rows").open("a") as file:
        file.write('{"section": "time", "wh')
    assert "failed row" in gpu.read_rows(tmp_path / "rows")[-1]


def test_a_section_that_dies_is_recorded(monkeypatch, tmp_path):
    import argparse

    import gpu

    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "absent.py"))
    options = argparse.Namespace(output=tmp_path, minutes=2, dry_run=True)
    assert "exit status 2" in gpu.measure(options, ["ceiling"])[0]["why"]
    options.minutes = 0
    assert gpu.measure(options, ["ceiling"])[0]["why"] == "no time left"


def test_the_cheapest_and_the_dearest_way_through_a_kernel():
    from machine_code import Instruction, count, loop_way, main_loop, other_way

    listing = [
        (False, "S2R", "R0, SR_TID.X"),
        (True, "BRA", "0x30"),  # 1: over one instruction
        (False, "LDG", "R1"),
        (False, "HGMMA", ".64x128x16.F32 R24, gdesc[UR8], R24"),  # 3: the loop
        (True, "BRA", "0x30"),
        (True, "BRA", "0x90"),  # 5: the epilogue, dear or cheap
        (False, "FSEL", "R1"),
        (False, "FADD", "R1"),
        (False, "BRA", "0xa0"),
        (False, "FMUL", "R1"),
        (True, "EXIT", ""),
        (False, "EXIT", ""),
        (False, "BRA", "0x50"),  # code to wait in
    ]
    code = [Instruction(16 * at, *instruction) for at, instruction in enumerate(listing)]
    assert main_loop(code) == (3, 4)
    assert count(loop_way(code)) == {"HGMMA": 1, "BRA": 1}
    assert count(other_way(code, min)) == {"S2R": 1, "BRA": 2, "FMUL": 1, "EXIT": 2}
    assert count(other_way(code, max)) == {"S2R": 1, "BRA": 3, "LDG": 1, "FSEL": 1, "FADD": 1, "EXIT": 2}


def test_a_dry_run_of_tune_compiles_times_and_writes_the_table(tmp_path):
    command = [sys.executable, BENCHMARKS / "tune.py", "--dry-run", "--output", tmp_path, "--seconds", "0"]
    run = subprocess.run(
        [*command, "--precisions", "half", "--kernels", "backward"],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (found,) = json.loads((tmp_path / "tune.json").read_text())["kernels"]
    assert len(found["predicted"]) == 2 and any(found["predicted"].values())
    assert all(time > 0 for times in found["seconds"].values() for time in times)
    compile((tmp_path / "launch.py").read_text(), "launch.py", "exec")


def test_tune_replaces_one_entry_of_the_table():
    import tune

    from spcl_loss._similarity import launch

    source = Path(launch.__file__).read_text()
    tile = launch.Tile(1, 2, 3, 4, 5, 6)
    for architecture, precision, kernel in [("sm_90", "half", "forward"), ("sm_100", "tf32", "backward_steep")]:
        scope = {"__name__": "replaced"}
        exec(compile(tune.rewrite(source, architecture, precision, kernel, tile), "launch.py", "exec"), scope)
        assert scope["TILES"][architecture][precision].pop(kernel) == tile
        present = {name: dict(table) for name, table in launch.TILES[architecture].items()}
        del present[precision][kernel]
        assert scope["TILES"][architecture] == present
    with pytest.raises(ValueError, match="no entry sm_90, half, absent"):
        tune.rewrite(source, "sm_90", "half", "absent", tile)


def test_tune_keeps_the_present_tile_unless_another_is_clearly_faster():
    import tune

    present, close, fast = (tune.Tile(rows, 64, 64, 4, 3, 32) for rows in (1, 2, 3))
    times = {present: [1.0, 4.0], close: [0.99, 3.97]}
    assert tune.choose(times, present) == (present, 1.0)
    best, ratio = tune.choose({**times, fast: [1.25, 2.0]}, present)
    assert best == fast and ratio == pytest.approx(math.sqrt(1.25 / 2))
    for kernel in ("small", "forward", "backward_steep", "narrow_128"):
        tiles = tune.candidates(kernel, "half")
        assert 5 < len(tiles) == len(set(tiles)) <= 80, kernel
