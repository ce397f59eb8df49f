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
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss, prototype_difficulty
from support.same import same

PATIENCE = 60  # seconds that ranks wait for one another, where none is lost
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


def train_erc(rank: int, ranks: int, folder: Path) -> None:
    """The ERC example, in as many processes."""
    import erc_tiny
    from erc import train as erc

    settings = erc_tiny.settings(str(folder.parent / "encoder"), epochs=2)
    erc.train(settings, erc_tiny.corpus(), folder / "run", resume=True, checkpoint_every=1)


def make_encoder(rank: int, ranks: int, folder: Path) -> None:
    import erc_tiny

    erc_tiny.encoder(folder)


# Processes.


class Processes:
    """Forks of this process, one a rank, that run `target(rank, ranks, folder)`."""

    count = itertools.count()

    def __init__(
        self, target: Callable, ranks: int, folder: Path, timeout: float = PATIENCE, log: Path | None = None
    ) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        store = folder.parent / f"store-{next(self.count)}"
        self.log = log or folder.parent / "log"
        self.log.write_bytes(b"")
        self.began = time.monotonic()
        self.running = {self._fork(target, rank, ranks, folder, store, timeout): rank for rank in range(ranks)}
        self.first = min(self.running)
        self.ended: dict[int, tuple[int, float]] = {}  # by rank: exit code and seconds

    def _fork(self, target, rank, ranks, folder, store, timeout) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            torch.set_num_threads(1)
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
                dist.init_process_group(
                    "gloo", store=dist.FileStore(str(store), ranks), rank=rank, world_size=ranks,
                    timeout=datetime.timedelta(seconds=timeout),
                )  # fmt: skip
            target(rank, ranks, folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end. Kills all as soon as the first has used so many seconds of CPU; says whether none was."""
        while self.running:
            if seconds is not None and self._cpu_seconds() >= seconds:
                self.kill()
                return False
            self._collect()
            time.sleep(0.001)
        return True

    def _cpu_seconds(self) -> float:
        if self.first not in self.running:  # it has ended, and its clock with it
            return 0.0
        return time.clock_gettime((~self.first << 3) | 2)  # Linux's number for the clock of a process

    def _collect(self) -> None:
        for pid in list(self.running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.ended[self.running.pop(pid)] = os.waitstatus_to_exitcode(status), time.monotonic() - self.began

    def kill(self, rank: int | None = None, with_signal: int = signal.SIGKILL) -> None:
        """Kills all processes and waits for their end, or sends a signal to that of one rank."""
        for pid in [pid for pid in self.running if rank in (None, self.running[pid])]:
            os.kill(pid, with_signal)
        while rank is None and self.running:
            self._collect()
            time.sleep(0.001)

    def failed(self) -> str:
        """What the processes said, if one ended with an error."""
        if all(code == 0 for code, _ in self.ended.values()):
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]


def complete(target: Callable, ranks: int, folder: Path) -> None:
    """Runs the training to its end."""
    processes = Processes(target, ranks, folder)
    processes.wait()
    if said := processes.failed():
        raise RuntimeError(said)


def finals(folder: Path):
    """What a training has left in its folder, without times."""
    if (folder / "final.pt").exists():
        return torch.load(folder / "final.pt", weights_only=True)
    from test_erc_train import outcome

    return list(outcome(folder / "run"))


# The accidents. Each tries something, and gives how often, how often it was survived, and what else there is to say.


def killed(ranks: int, place: Path, kills: int, target: Callable = train) -> tuple[int, int, str]:
    """SIGKILL at random moments, measured in the first process's time on the CPU."""
    draw = random.Random(ranks)
    began = os.times()
    complete(target, ranks, place / "whole")
    whole, ended = finals(place / "whole"), os.times()
    cpu = (ended.children_user + ended.children_system - began.children_user - began.children_system) / ranks
    done = survived = runs = 0
    while done < kills:
        folder, of_run = place / f"run-{runs}", 0
        while done + of_run < kills:
            processes = Processes(target, ranks, folder)
            if processes.wait(draw.uniform(0, 0.6 * cpu)):
                if said := processes.failed():
                    raise RuntimeError(said)
                break
            of_run += 1
        complete(target, ranks, folder)
        done, runs = done + of_run, runs + 1
        survived += of_run if same(finals(folder), whole) else 0
    return done, survived, f"kills, in {runs} trainings that ended with the same bits"


def full_disk(place: Path, tries: int, may_mount: bool) -> tuple[int, int, str]:
    """From a random step on the disk has room for half a checkpoint only; later there is room again.

    The disk is a tmpfs, if one may be mounted, else a limit of file sizes takes its place.
    """
    complete(train, 1, place / "whole")
    whole, draw, survived = finals(place / "whole"), random.Random(0), 0
    size = (place / "whole" / "checkpoint.pt").stat().st_size
    disk, ballast = place / "disk", place / "disk" / "ballast"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={10 * size}", "none", str(disk)]
    mounted = may_mount and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        for number in range(tries):
            folder, full_from = disk / f"run-{number}", draw.randint(1, 30)

            def fill(step: int, full_from: int = full_from) -> None:
                if step != full_from:
                    return
                if mounted:
                    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - size // 2))
                else:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

            processes = Processes(partial(train, after_step=fill), 1, folder, log=place / "log")
            processes.wait()
            refused = processes.failed()
            kept = torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == full_from
            ballast.unlink(missing_ok=True)
            complete(train, 1, folder)
            survived += bool(refused) and kept and same(finals(folder), whole)
            shutil.rmtree(folder)
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
    how = "a tmpfs" if mounted else "a limit of file sizes"
    return tries, survived, f"trainings on {how} ended with an error, kept the last checkpoint and were continued"


def lost_rank(how: str, place: Path, tries: int, timeout: float) -> tuple[int, int, str]:
    """One of three ranks dies or hangs: the others must end with an error within the timeout."""
    survived, longest, ranks = 0, 0.0, 3
    for lost in range(tries):
        mark = place / f"run-{lost}" / "lost"

        def lose(step: int, lost: int = lost, mark: Path = mark) -> None:
            if step == 4 and dist.get_rank() == lost:
                mark.touch()
                if how == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGSTOP)

        processes = Processes(partial(train, after_step=lose), ranks, mark.parent, timeout)
        while not mark.exists() and len(processes.running) == ranks:
            time.sleep(0.01)
            processes._collect()
        began = time.monotonic()
        while len(processes.running) > (how == "hangs") and time.monotonic() - began < timeout + 60:
            processes._collect()
            time.sleep(0.01)
        seconds = time.monotonic() - began
        others = [code for rank, (code, _) in processes.ended.items() if rank != lost]
        longest = max(longest, seconds)
        survived += others == [1, 1] and seconds < timeout + 10
        processes.kill()
    return (
        tries,
        survived,
        f"times the others ended with an error, after at most {longest:.0f} s (timeout {timeout:g} s)",
    )


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

    for _ in range(3):
        Processes(jumps, 1, place / "run").wait()
    return 1, int(same(finals(place / "run"), finals(place / "whole"))), "training of three lives with the same bits"


def killed_erc(place: Path, kills: int) -> tuple[int, int, str]:
    sys.path += [str(Path(__file__).parents[1] / "examples"), str(Path(__file__).parent / "examples")]
    import erc.train  # noqa: F401  # once, for all forks

    complete(make_encoder, 1, place / "encoder")
    return killed(1, place, kills, train_erc)


ACCIDENTS: dict[str, Callable[[Path, argparse.Namespace], tuple[int, int, str]]] = {
    "killed, one process": lambda place, args: killed(1, place, args.kills),
    "killed, two processes": lambda place, args: killed(2, place, args.kills),
    "full disk": lambda place, args: full_disk(place, args.tries, args.mount),
    "a rank dies": lambda place, args: lost_rank("dies", place, args.tries, args.timeout),
    "a rank hangs": lambda place, args: lost_rank("hangs", place, args.tries, args.timeout),
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
