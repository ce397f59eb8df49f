"""The benchmarks can be tried out without a GPU: in tiny sizes, with strips in the kernels' place."""

import argparse
import csv
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gpu
import gpu_check
import gpu_time
import loss
import measure
import memory_step
import pytest
import sampler
import torch

from spcl_loss import SupervisedPrototypicalContrastiveLoss

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")
PARTS = ("loss", "draw", "update")  # of a step
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


def rows_of(jobs):
    return [about | row for about, run in jobs for row in run()]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """gpu.py's check as a user starts it, with its processes."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, BENCHMARKS / "gpu.py", "--quick", "--impl", "strips", "--device", "cpu"]
    run = subprocess.run([*command, "--only", "check", "--output", folder], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, gpu.read_rows(folder / "gpu.jsonl"), folder


def test_the_check_finds_strips_right(checked):
    printed, rows, folder = checked
    assert "0 wrong" in printed and (folder / "gpu.md").read_text() in printed
    assert all(row["right"] for row in rows) and {row["part"] for row in rows} == {"poison", "33x64", "300x64"}
    cases = {(row["method"], row["temperature"]) for row in rows if "method" in row}
    assert cases > {("spcl", 0.05), ("spdcl", 0.05), ("supcon", 0.1), ("bcl", 0.1), ("eacl", 0.05), ("spcl", 0.005)}
    assert {row["products"] for row in rows if "method" in row} == {"float32", "tf32", "float16", "bfloat16"}


def test_exact_rows_have_exact_products():
    embeddings, labels, prototypes = gpu_check.inputs(50, 100, "exact", CPU)
    rows = torch.nn.functional.normalize(torch.cat([embeddings, prototypes]).double(), dim=1)
    for precision in gpu_check.PRECISIONS.values():
        torch.testing.assert_close(rows.to(precision.dtype).double(), rows, rtol=0, atol=0)
    assert (labels == -100).any() and labels.max() < gpu_check.CLASSES


@pytest.mark.parametrize("fault", ["one row of the gradient", "half of the gradient", "NaN", "the loss"])
def test_the_check_finds_what_is_wrong(monkeypatch, fault):
    true_loss = gpu_check.loss

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, embeddings):
            return embeddings.clone()

        @staticmethod
        def backward(ctx, grad):
            if fault == "one row of the gradient":
                grad = torch.cat([1.3 * grad[:1], grad[1:]])
            return grad * {"half of the gradient": 0.5, "NaN": math.nan}.get(fault, 1)

    def wrong(embeddings, *arguments, impl, **options):
        if impl == "strips":
            return true_loss(embeddings, *arguments, impl="strips", **options)
        losses = true_loss(Wrong.apply(embeddings), *arguments, impl="dense", **options)
        return losses + 1e-3 if fault == "the loss" else losses

    monkeypatch.setattr(gpu_check, "loss", wrong)
    verdicts = [row for row in rows_of(gpu_check.check_jobs(40, 64, "triton", CPU)) if row["rows"] == "exact"]
    suspected = {"one row of the gradient": "gradient, worst row", "the loss": "loss"}.get(fault, "gradient")
    assert not any(row["right"] for row in verdicts if row["what"] == suspected)
    others = "gradient" if fault == "the loss" else "loss"
    assert all(row["right"] for row in verdicts if row["what"] == others)


def test_the_check_allows_for_products_of_half_precision(monkeypatch):
    """Those of a GPU; on a CPU strips compute in float32 unless they are asked."""
    products = []

    def product_dtype(embeddings):
        products.append(embeddings.dtype)
        return embeddings.dtype

    monkeypatch.setattr("spcl_loss.loss.product_dtype", product_dtype)
    for N, D in ((33, 64), (200, 100)):
        wrong = [row for row in rows_of(gpu_check.check_jobs(N, D, "strips", CPU)) if not row["right"]]
        assert wrong == []
    assert {torch.float16, torch.bfloat16} < set(products)


def test_memory_is_poisoned_and_then_no_more():
    assert gpu_check.check_poison(CPU)["right"]
    with gpu_check.poisoned():
        assert torch.zeros(3).new_empty(5).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_contestant_is_timed(monkeypatch, tmp_path):
    for module, text in PEERS.items():
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = {**gpu.QUICK, "sizes": (24,)}
    gpu.run_jobs(
        tmp_path / "gpu.jsonl", "float32", gpu_time.time_jobs(torch.float32, "strips", CPU, plan), math.inf, 60
    )
    rows = {row["what"]: row for row in gpu.read_rows(tmp_path / "gpu.jsonl")}
    losses = {"ours, strips", "dense, eager", "dense, compiled", "memeff, CLIP", "inf-cl, one-way softmax"}
    for what in losses:
        assert all(rows[what][f"{part} ms"] > 0 for part in ("forward", "backward", "both")), rows[what]
        assert rows[what]["TFLOP/s"] > 0 and rows[what]["extra peak MiB"] is not None
    for how in ("eager", "compiled"):
        assert rows[f"ours with memory, {how}"]["both ms"] > 0
        assert rows[f"ours with memory, {how}, CUDA graph"]["skipped"] == "needs a GPU"
    assert "no such GPU" in rows["siglip-kernel, sigmoid"]["skipped"]  # its fault loses its own row only


def test_launches_are_counted_where_nothing_is_timed():
    """Having profiled slows what a process does afterwards."""
    counted = rows_of(gpu_time.count_jobs("strips", CPU, {**gpu.QUICK, "sizes": (24,)}))
    assert {row["what"] for row in counted} == {"ours with memory, eager", "ours with memory, compiled"}
    assert all(row["launches"] > 0 and row["N"] == 24 for row in counted)
    timed = gpu_time.time_jobs(torch.float32, "strips", CPU, gpu.QUICK)
    assert not any("launches" in run.func.__name__ for _, run in timed if isinstance(run, partial))


def numbered(count, run):
    return [({"what": "job", "N": N}, partial(run, N)) for N in range(count)]


def test_what_the_minutes_do_not_allow_is_named(tmp_path):
    path = tmp_path / "gpu.jsonl"
    gpu.run_jobs(path, "float32", numbered(3, lambda N: pytest.fail("ran")), time.time() - 1, 60)
    assert gpu.read_rows(path) == [
        {"part": "float32", "what": "job", "N": 0, "skipped": "no time left, nor for what would follow"}
    ]


@pytest.mark.parametrize("kept", [1, 7, -1])
def test_half_a_line_loses_itself_alone(tmp_path, kept):
    path = tmp_path / "gpu.jsonl"
    gpu.append(path, "300x64", {"N": 1}, [{"right": True}])
    whole = path.read_text()
    gpu.append(path, "300x64", {"N": 2}, [{"right": True}])
    half = path.read_text()[len(whole) :]
    path.write_text(whole + half[:kept])  # as a process leaves it that is killed
    gpu.append(path, "33x64", {"N": 3}, [{"right": True}, {"right": False}])
    assert [(row["N"], row["right"]) for row in gpu.read_rows(path)] == [(1, True), (3, True), (3, False)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), AssertionError("a | b\nc"), KeyError("x")])
def test_an_error_loses_its_own_job_alone(tmp_path, error):
    def run(N):
        if N == 1:
            raise error
        return [{"both ms": 1.0}]

    path = tmp_path / "gpu.jsonl"
    gpu.run_jobs(path, "float32", numbered(3, run), math.inf, 60)
    rows = gpu.read_rows(path)
    assert [row.get("both ms") for row in rows] == [1.0, None, 1.0]
    assert rows[1]["skipped"].startswith(type(error).__name__)
    assert gpu.report(rows, tmp_path, CPU) == 0
    # A comparison that was not made is none that was right.
    assert gpu.report([{**row, "part": "300x64"} for row in rows[1:2]], tmp_path, CPU) == 1
    assert type(error).__name__ in (tmp_path / "gpu.md").read_text()


def test_a_message_stays_within_its_cell():
    lines = measure.table([{"what": "job", "skipped": "a | b\nc"}]).splitlines()
    assert lines[2:] == [r"| job | a \| b c |"]


def test_a_broken_gpu_context_ends_the_process_after_its_row(monkeypatch, tmp_path):
    """Nothing that follows in that process could run."""

    def broken():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def run(N):
        if N == 1:
            monkeypatch.setattr(torch.cuda, "synchronize", broken)
            raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
        return [{"both ms": 1.0}]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    path = tmp_path / "gpu.jsonl"
    with pytest.raises(torch.AcceleratorError):
        gpu.run_jobs(path, "float32", numbered(3, run), math.inf, 60)
    assert ["Triton Error" in row.get("skipped", "") for row in gpu.read_rows(path)] == [False, True]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    gpu.run_jobs(path, "float32", numbered(3, run), math.inf, 60)  # the next process of this part
    assert [row.get("both ms") for row in gpu.read_rows(path)] == [1.0, None, 1.0]


def test_a_failed_capture_ends_the_process_after_its_row(tmp_path):
    def run(N):
        raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")

    path = tmp_path / "gpu.jsonl"
    with pytest.raises(torch.AcceleratorError):
        gpu.run_jobs(path, "float32", numbered(3, run), math.inf, 60)
    assert [row["N"] for row in gpu.read_rows(path)] == [0]


SCRIPT = """
import gc, os, sys, time
sys.path.insert(0, {benchmarks!r})
from pathlib import Path
import gpu

def run(N):
    if N == 1:
        os.kill(os.getpid(), 9)
    if N == 3:
        time.sleep(600)
    return [{{"both ms": float(N)}}]

gc.freeze()  # so that collecting takes no time
part = sys.argv[sys.argv.index("--part") + 1]
path = Path(sys.argv[sys.argv.index("--output") + 1]) / "gpu.jsonl"
gpu.run_jobs(path, part, [({{"N": N}}, lambda N=N: run(N)) for N in range(5)], time.time() + 600, 3)
"""


def test_a_process_that_dies_or_hangs_loses_the_job_at_hand_alone(monkeypatch, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(SCRIPT.format(benchmarks=str(BENCHMARKS)))
    monkeypatch.setattr(gpu, "__file__", str(script))
    options = argparse.Namespace(output=tmp_path, minutes=2, impl="strips", device="cpu", quick=True)
    gpu.run_parts(["float32"], time.time() + 600, options)
    rows = gpu.read_rows(tmp_path / "gpu.jsonl")
    assert {row["N"]: row.get("both ms", row.get("skipped")) for row in rows if "N" in row} == {
        0: 0.0,
        1: "its process ended",
        2: 2.0,
        3: "its process ended",
        4: 4.0,
    }
    assert [row["failed"] for row in rows if "failed" in row] == ["exit status -9", "exit status 1"]


def test_the_benchmark_measures_the_checkout_that_it_names(tmp_path):
    """It runs where nothing is installed but PyTorch and Triton."""
    script = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu, spcl_loss; print(spcl_loss.__file__)"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert Path(found.stdout.strip()).parents[2] == BENCHMARKS.parent


def test_the_exit_status_is_that_of_the_checks(tmp_path, capsys):
    right = {"part": "33x64", "products": "tf32", "what": "loss", "error": 1.0, "tolerance": 2.0, "right": True}
    right |= {"N": 33, "D": 64, "rows": "exact", "method": "spcl", "temperature": 0.05}
    timed = {"part": "bfloat16", "dtype": "bfloat16", "what": "ours, triton", "N": 32, "D": 256, "both ms": 0.5}
    assert gpu.report([right, timed, {"part": "bfloat16", "failed": "exit status 1"}], tmp_path, CPU) == 0
    with (tmp_path / "gpu.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["both ms"] == "0.5" and row["machine"] and row["commit"] and row["command"] and row["date"]
    assert gpu.report([right, {**right, "error": 3.0, "right": False}], tmp_path, CPU) == 1
    assert "1 wrong" in capsys.readouterr().out
    assert gpu.report([right, {"part": "300x64", "failed": "did not end in time"}], tmp_path, CPU) == 1
    assert "did not end in time" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_dies_is_recorded(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "absent.py"))
    options = argparse.Namespace(output=tmp_path, minutes=2, impl="strips", device="cpu", quick=True, only="check")
    rows = gpu.run_all(options, gpu.QUICK)
    assert {row["part"]: row["failed"] for row in rows} == dict.fromkeys(("poison", "33x64", "300x64"), "exit status 2")
    assert len(rows) == 3  # without progress a process is not started again


def test_a_contestant_that_prepares_is_timed_without_its_preparation():
    calls = []
    pair = (lambda: calls.append("prepare") or len(calls), calls.append)
    times = measure.interleaved({"pair": pair, "slow": lambda: time.sleep(0.01)}, seconds=0, least=2)
    assert calls == ["prepare", 1, "prepare", 3, "prepare", 5]
    assert len(times["pair"]) == len(times["slow"]) == 2 and min(times["slow"]) >= 0.01


def test_a_step_is_compared_with_the_dense_loss_of_its_kind(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    criterion = SupervisedPrototypicalContrastiveLoss(3, 8)
    times = {name: [2.0, 6.0] for name in memory_step.contestants(criterion, torch.randn(4, 8), torch.zeros(4).long())}
    times |= {"bare dense loss": [1.0, 3.0], "bare dense loss, compiled": [0.5, 1.5]}
    ratios = {row["what"]: row["ratio to bare"] for row in memory_step.results(times)}
    compiled = {"bare dense loss, compiled": 1, "loss + memory, compiled": 4}
    eager = {"bare dense loss": 1, "loss + memory": 2, **{f"of which the {part}": 2 for part in PARTS}}
    assert ratios == {**compiled, **eager}


def test_every_size_is_compiled_for_itself(monkeypatch):
    compiled, compile = [], torch.compile

    def record(graph, inputs):
        compiled.append([type(value) for value in inputs])
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(compile, backend=record))
    for N in (8, 12):
        loss.measure(N, 4, 3, seconds=0, memory_gib=1)
    assert len(compiled) == 2
    assert not any(kind is torch.SymInt for kinds in compiled for kind in kinds)  # the mark of code for all sizes


def test_the_sampler_is_timed_in_turn_with_its_processor_time():
    calls = []
    runs = {"sleeps": lambda: calls.append("sleeps") or time.sleep(0.01), "other": lambda: calls.append("other")}
    rows = sampler.measured(runs, rounds=2, about="5", score_bytes=None)
    assert calls[:6] == ["sleeps", "other"] * 3  # the first round does not count
    assert [row["what"] for row in rows] == ["sleeps, 5", "other, 5"]
    assert rows[0]["seconds"] >= 0.01 > rows[0]["processor seconds"]


def test_a_result_names_where_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/loss.py", "--sizes", "32"])
    measure.save(tmp_path / "new" / "loss.csv", [{"N": 32, "milliseconds": 0.123456}, {"N": 64, "note": None}])
    with (tmp_path / "new" / "loss.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["N"] == "32" and first["milliseconds"] == "0.1235" and second["note"] == second["milliseconds"] == ""
    assert first["command"] == "python benchmarks/loss.py --sizes 32" and torch.__version__ in first["machine"]


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.csv")), ids=lambda path: path.stem)
def test_every_published_row_names_commit_date_machine_and_command(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert rows and all(row[key] for row in rows for key in ("commit", "date", "machine", "command"))
