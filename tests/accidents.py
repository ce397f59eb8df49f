"""What happens to a training from outside: each accident is tried so often, and survived or not.

    python tests/accidents.py --kills 200                     # part of what `make faults` runs
    python tests/accidents.py --only "killed, two processes"  # one kind

The training is a small one of this file: encoder with dropout, loss with memory, optimizer, sampler, a checkpoint after
every step. One accident kills the ERC example on a tiny corpus and encoder. This process imports PyTorch once, and
every training runs in forks of it. To survive means: the training is continued and ends with the same bits as one that
nothing happened to, or it ends with an error where it cannot go on. This program needs Linux.
"""

import argparse
import datetime
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # optimizers import it at their first step; once is enough for all forks
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss, prototype_difficulty
from support.same import same

EPOCHS = 3


def train(rank: int, ranks: int, folder: Path, after_step: Callable[[int], None] = lambda step: None) -> None:
    """Begins a training or continues it from its checkpoint. In the end the folder holds final.pt."""
    torch.manual_seed(0)
    labels = torch.randint(5, (300,))
    inputs = torch.randn(5, 8)[labels] + torch.randn(300, 8)
    encoder = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.1), torch.nn.Linear(16, 8))
    criterion = SupervisedPrototypicalContrastiveLoss(5, 8, queue_size=16, support_size=4, gather_distributed=ranks > 1)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    sampler = DifficultyCurriculumSampler(
        prototype_difficulty(inputs, labels), num_epochs=EPOCHS, num_replicas=ranks, rank=rank
    )
    data = TensorDataset(inputs, labels)
    loader = DataLoader(data, batch_size=12 // ranks, sampler=sampler, generator=torch.Generator())
    parts = {"encoder": encoder, "criterion": criterion, "optimizer": optimizer, "sampler": sampler}
    torch.manual_seed(rank)  # dropout differs between ranks
    checkpoint, step = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"][rank])
        step = state["step"]
    if ranks > 1:
        dist.barrier()  # no rank saves before all have loaded

    def state_now() -> dict:
        own = torch.get_rng_state()
        everyones = [torch.empty_like(own) for _ in range(ranks)]
        if ranks > 1:
            dist.all_gather(everyones, own)
        states = {name: part.state_dict() for name, part in parts.items()}
        return {**states, "random": everyones if ranks > 1 else [own], "step": step}

    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        for batch, batch_labels in loader:
            optimizer.zero_grad()
            criterion(encoder(batch), batch_labels).backward()
            for parameter in encoder.parameters() if ranks > 1 else ():
                dist.all_reduce(parameter.grad)
                parameter.grad /= ranks
            optimizer.step()
            step += 1
            state = state_now()
            if rank == 0:
                save(state, checkpoint)
            after_step(step)
    state = state_now()
    if rank == 0:
        save(state, folder / "final.pt")


def save(state: dict, path: Path) -> None:
    partial_file = path.with_suffix(".partial")
    with partial_file.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial_file.replace(path)


# Processes.


class Ranks:
    """A training in forks of this process, one a rank. What they print goes to a file."""

    stores = itertools.count()

    def __init__(self, train: Callable, ranks: int, folder: Path, timeout: float = 60) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        self.log = folder.parent / "log"
        self.log.write_bytes(b"")
        store = folder.parent / f"store-{next(self.stores)}"
        fork = multiprocessing.get_context("fork")
        arguments = [(train, rank, ranks, folder, store, timeout) for rank in range(ranks)]
        self.processes = [fork.Process(target=self._run, args=own) for own in arguments]
        for process in self.processes:
            process.start()

    def _run(self, train, rank, ranks, folder, store, timeout) -> None:
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        if ranks > 1:
            dist.init_process_group(
                "gloo", store=dist.FileStore(str(store), ranks), rank=rank, world_size=ranks,
                timeout=datetime.timedelta(seconds=timeout),
            )  # fmt: skip
        train(rank, ranks, folder)

    def all_alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def exit_codes(self) -> list[int]:
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def error(self) -> str:
        """Waits for the end. Returns what the processes said if one has ended with an error, else nothing."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:] if any(self.exit_codes()) else ""


def complete(train: Callable, ranks: int, folder: Path) -> None:
    """Runs the training to its end."""
    if error := Ranks(train, ranks, folder).error():
        raise RuntimeError(error)


def is_killed(train: Callable, ranks: int, folder: Path, changes: int, seconds: float) -> bool:
    """Kills the training this time after so many changes of its folder. False if it has ended before."""
    processes = Ranks(train, ranks, folder)
    last = folder.stat().st_mtime_ns
    while changes > 0 and processes.all_alive():
        now = folder.stat().st_mtime_ns
        changes, last = changes - (now != last), now
        time.sleep(0.0005)
    time.sleep(seconds)
    processes.kill()
    if -signal.SIGKILL in processes.exit_codes():
        return True
    if error := processes.error():
        raise RuntimeError(error)
    return False


def result(folder: Path):
    """What a training has left in its folder, without times, and without the commit, which may change meanwhile."""
    if (folder / "final.pt").exists():
        return torch.load(folder / "final.pt", weights_only=True)
    from test_erc_train import outcome

    lines, scores, predictions, weights = outcome(folder)
    del scores["environment"]
    return [lines, scores, predictions, weights]


# The accidents. Each tries something, and gives how often, how often it was survived, and what else there is to say.


def killed(ranks: int, place: Path, kills: int, train: Callable = train) -> tuple[int, int, str]:
    """SIGKILL after 0 to 20 changes of the training's folder: a checkpoint is one file written, then renamed."""
    complete(train, ranks, place / "whole")
    whole, draw = result(place / "whole"), random.Random(ranks)
    done = survived = trainings = 0
    while done < kills:
        folder, before = place / f"run-{trainings}", done
        while done < kills and is_killed(train, ranks, folder, draw.randint(0, 20), draw.uniform(0, 0.01)):
            done += 1
        complete(train, ranks, folder)
        trainings += 1
        survived += (done - before) * same(result(folder), whole)
    return done, survived, f"kills, in {trainings} trainings that ended with the same bits"


def killed_erc(place: Path, kills: int) -> tuple[int, int, str]:
    """The same with the ERC example on a tiny corpus and encoder."""
    sys.path += [str(Path(__file__).parents[1] / "examples"), str(Path(__file__).parent / "examples")]
    import erc_tiny
    from erc import train as erc

    encoder = str(place / "encoder")
    complete(lambda *_: erc_tiny.encoder(encoder), 1, place)  # in a fork, as all that computes

    def train(rank: int, ranks: int, folder: Path) -> None:
        settings = erc_tiny.settings(encoder, epochs=2)
        erc.CHECKPOINT_EVERY = 1
        erc.train(settings, erc_tiny.corpus(), folder, resume=True)

    return killed(1, place, kills, train)


def full_disk(place: Path, tries: int, may_mount: bool) -> tuple[int, int, str]:
    """From a random step on the disk has room for half a checkpoint only; later there is room again.

    The disk is a tmpfs, if one may be mounted, else a limit of file sizes takes its place.
    """
    complete(train, 1, place / "whole")
    whole, draw, survived = result(place / "whole"), random.Random(0), 0
    size = (place / "whole" / "checkpoint.pt").stat().st_size
    disk, ballast = place / "disk", place / "disk" / "ballast"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={10 * size}", "none", str(disk)]
    mounted = may_mount and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        for _ in range(tries):
            full_from = draw.randint(1, 30)

            def fill(step: int, full_from: int = full_from) -> None:
                if step == full_from and mounted:
                    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - size // 2))
                elif step == full_from:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

            refused = Ranks(partial(train, after_step=fill), 1, disk).error()
            kept = torch.load(disk / "checkpoint.pt", weights_only=True)["step"] == full_from
            ballast.unlink(missing_ok=True)
            complete(train, 1, disk)
            survived += bool(refused) and kept and same(result(disk), whole)
            for path in disk.iterdir():
                path.unlink()
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
    how = "a tmpfs" if mounted else "a limit of file sizes"
    return tries, survived, f"trainings on {how} ended with an error, kept the last checkpoint and were continued"


def lost_rank(how: signal.Signals, place: Path, tries: int, timeout: float) -> tuple[int, int, str]:
    """One of three ranks dies (SIGKILL) or hangs (SIGSTOP): the others must end with an error within the timeout."""
    survived, longest = 0, 0.0
    for lost in range(tries):
        folder = place / f"run-{lost}"
        mark = folder / "lost"

        def lose(step: int, lost: int = lost, mark: Path = mark) -> None:
            if step == 4 and dist.get_rank() == lost:
                mark.touch()
                os.kill(os.getpid(), how)

        processes = Ranks(partial(train, after_step=lose), 3, folder, timeout)
        while not mark.exists() and processes.all_alive():
            time.sleep(0.01)
        began, others = time.monotonic(), [p for rank, p in enumerate(processes.processes) if rank != lost]
        for process in others:
            process.join(max(0, began + timeout + 60 - time.monotonic()))
        seconds = time.monotonic() - began
        survived += mark.exists() and [p.exitcode for p in others] == [1, 1] and seconds < timeout + 10
        longest = max(longest, seconds)
        processes.kill()
        processes.exit_codes()
    about = f"times the others ended with an error, after at most {longest:.0f} s (timeout {timeout:g} s)"
    return tries, survived, about


def jumping_clock(place: Path) -> tuple[int, int, str]:
    """The time of day jumps by up to a century at every look at it."""
    complete(train, 1, place / "whole")
    draw, now = random.Random(0), time.time()

    def jumps(rank: int, ranks: int, folder: Path) -> None:
        time.time = lambda: now + draw.uniform(-3e9, 3e9)
        time.time_ns = lambda: int(1e9 * time.time())

        def age(step: int) -> None:
            os.utime(folder / "checkpoint.pt", (draw.uniform(0, 3e9),) * 2)
            if step in (7, 19):
                os.kill(os.getpid(), signal.SIGKILL)

        train(rank, ranks, folder, age)

    ends = [Ranks(jumps, 1, place / "run").exit_codes() for _ in range(3)]
    same_bits = same(result(place / "run"), result(place / "whole"))
    survived = same_bits and ends == [[-signal.SIGKILL], [-signal.SIGKILL], [0]]
    return 1, int(survived), "training of three lives with the same bits"


ACCIDENTS: dict[str, Callable[[Path, argparse.Namespace], tuple[int, int, str]]] = {
    "killed, one process": lambda place, args: killed(1, place, args.kills),
    "killed, two processes": lambda place, args: killed(2, place, args.kills),
    "full disk": lambda place, args: full_disk(place, args.tries, args.mount),
    "a rank dies": lambda place, args: lost_rank(signal.SIGKILL, place, args.tries, args.timeout),
    "a rank hangs": lambda place, args: lost_rank(signal.SIGSTOP, place, args.tries, args.timeout),
    "clock jumps": lambda place, args: jumping_clock(place),
    "killed, ERC example": lambda place, args: killed_erc(place, args.erc_kills),
}


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description="Lets accidents happen to small trainings.")
    parser.add_argument("--kills", type=int, default=200, help="in one process, and as many in two")
    parser.add_argument("--erc-kills", type=int, default=20, help="of the ERC example; 0 leaves it out")
    parser.add_argument("--tries", type=int, default=3, choices=(1, 2, 3), help="of the other accidents")
    parser.add_argument("--mount", action="store_true", help="fill a tmpfs, which only root may mount")
    parser.add_argument("--timeout", type=float, default=10, help="seconds after which ranks give one another up")
    parser.add_argument("--only", choices=ACCIDENTS, help="one accident")
    args = parser.parse_args(arguments)
    good = True
    for name in [args.only] if args.only else ACCIDENTS:
        if "ERC" in name and not args.erc_kills and not args.only:
            continue
        with tempfile.TemporaryDirectory() as place:
            tried, survived, about = ACCIDENTS[name](Path(place), args)
        good &= tried == survived
        print(f"{name}: {tried} tried, {survived} survived: {about}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
