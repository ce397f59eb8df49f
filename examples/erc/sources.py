"""Where a dataset's files are: a folder named by the user, one on this machine, or a download into the cache."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from .dialogues import InputError


class NoDataError(InputError):
    """The dataset is neither on this machine nor to be downloaded."""


@dataclass(frozen=True)
class Source:
    """A dataset's files.

    Args:
        name: of the dataset.
        folder: its subfolder of `$SPCL_DATA_DIR` and of the cache.
        files: every file with its checksum, see `checksum`; "" where there is none to check.
        url: the public folder that holds the files; None: they are not to be had from any.
        obtain: how to get them by hand, as the middle of a sentence.
    """

    name: str
    folder: str
    files: dict[str, str]
    url: str | None
    obtain: str

    def missing(self, folder: Path) -> list[str]:
        return [name for name in self.files if not (folder / name).is_file()]


def locate(source: Source, data_dir: str | Path | None = None) -> Path:
    """The folder with the files.

    `data_dir` if given (then nowhere else is looked), `$SPCL_DATA_DIR`, the user's cache, a download into it.
    """
    if data_dir is not None:
        if missing := source.missing(Path(data_dir)):
            raise NoDataError(f"{data_dir} lacks {', '.join(missing)}: --data-dir must name the folder that holds them")
        return Path(data_dir)
    cache = cache_folder() / source.folder
    places = [cache]
    if os.environ.get("SPCL_DATA_DIR"):
        places.insert(0, Path(os.environ["SPCL_DATA_DIR"]) / source.folder)
    for place in places:
        if not source.missing(place):
            return place
    if source.url is None:
        raise NoDataError(_remedy(source, cache, "is not on this machine, and its licence lets nobody pass it on"))
    try:
        for name, expected in source.files.items():
            download(f"{source.url}/{name}", cache / name, expected)
    except OSError as error:
        what = f"is not on this machine and could not be downloaded ({_reason(error)})"
        raise NoDataError(_remedy(source, cache, what)) from error
    return cache


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/spcl-loss`, by default `~/.cache/spcl-loss`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spcl-loss"


def download(url: str, target: Path, expected: str) -> None:
    """Fetch `url` to `target`, which appears only when it is whole and its checksum right."""
    from tqdm import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with urllib.request.urlopen(url, timeout=30) as response, partial.open("wb") as file:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            with tqdm(total=total, desc=target.name, unit="B", unit_scale=True) as progress:
                while block := response.read(1 << 16):
                    file.write(block)
                    progress.update(len(block))
        if (found := checksum(partial.read_bytes(), expected)) != expected:
            raise OSError(f"{url} has the checksum {found}, expected {expected}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def checksum(content: bytes, like: str) -> str:
    """The content's sha256, or its git object id where `like` is as short as one.

    A repository states the object ids of its files without a download, so they can be taken from its listing.
    """
    if len(like) == 40:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hashlib.sha256(content).hexdigest()


def _remedy(source: Source, cache: Path, what: str) -> str:
    return (
        f"{source.name} {what}: {source.obtain} and put {', '.join(source.files)} into {cache}, or name their folder "
        "with --data-dir, or run with --practice, which needs no data."
    )


def _reason(error: OSError) -> str:
    return str(error.reason) if isinstance(error, urllib.error.URLError) else str(error)
