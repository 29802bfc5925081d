"""A disk that is full, a file that may not grow, a folder that may not be written: the old file stays, and alone.

A small tmpfs is filled where one can be mounted; elsewhere, and for every other case, a limit on a file's size stops
the save at a byte by chance.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from campaign import children
from campaign.counts import Counts

_CHILD = """
    import errno, json, os, resource, signal, sys
    import numpy as np
    from campaign import training
    from fastopt import checkpoint

    way, path, amount = sys.argv[1], sys.argv[2], int(sys.argv[3])
    run = training.make(200)
    training.train(run, 3)
    before = open(path, "rb").read() if os.path.exists(path) else None
    state = training.state_of(run)
    if way == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (amount, amount))
    elif way == "denied":
        os.setgroups([]), os.setgid(65534), os.setuid(65534)
    try:
        checkpoint.save(path, **run, epoch=7)
        outcome = "saved"
    except OSError as err:
        outcome = errno.errorcode[err.errno]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2) if way != "limit" else None
    print(json.dumps([outcome, training.state_of(run) == state]))
"""


def run(count: int, seed: int) -> Counts:
    """Let so many saves fail."""
    counts = Counts()
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder, _small_disk() as disk:
        os.chmod(folder, 0o755)
        size = _whole(Path(folder))
        for i in range(count):
            case = f"save {i} of seed {seed}"
            if i % 8 == 7 and os.getuid() == 0:
                _denied(Path(folder), rng, counts, case)
            elif i % 2 and disk is not None:
                _full(disk, size, rng, counts, case)
            else:
                _limited(Path(folder), size, rng, counts, case)
    return counts


@contextmanager
def _small_disk() -> Iterator[Path | None]:
    """A file system of half a megabyte, None where none can be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=512k", "campaign", folder]
        mounted = (
            shutil.which("mount") and not subprocess.run(command, capture_output=True, check=False).returncode
        )
        try:
            yield Path(folder) if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=True)


def _whole(folder: Path) -> int:
    """The size of the checkpoint, saved without a fault."""
    path = folder / "whole.safetensors"
    children.run(_CHILD, "plain", path, 0).check_returncode()
    return path.stat().st_size


def _save(way: str, path: Path, amount: int, counts: Counts, case: str) -> str:
    """Save in a child; hold a failure to leaving the old file, alone, and the run as they were."""
    before, beside = path.read_bytes() if path.exists() else None, sorted(os.listdir(path.parent))
    done = children.run(_CHILD, way, path, amount)
    if done.returncode:
        counts.fail(f"{case}: {done.stderr[-500:]}")
        return "died"
    outcome, same = json.loads(done.stdout)
    after = path.read_bytes() if path.exists() else None
    if outcome != "saved":
        kept = after == before and sorted(os.listdir(path.parent)) == beside
        counts.check(
            kept and same, f"old file kept ({outcome})", f"{case}: {outcome}, and something has changed"
        )
    return str(outcome)


def _limited(folder: Path, size: int, rng: np.random.Generator, counts: Counts, case: str) -> None:
    path = folder / "limited.safetensors"
    path.write_bytes(b"the old file")
    amount = int(rng.integers(0, size + 200))
    outcome = _save("limit", path, amount, counts, case)
    expected = "saved" if amount >= size else "EFBIG"
    if outcome != expected:
        counts.fail(f"{case}: {outcome} with {amount} bytes for {size}")
    elif outcome == "saved":
        counts.check(path.stat().st_size == size, "saved whole", f"{case}: the file is not whole")


def _full(disk: Path, size: int, rng: np.random.Generator, counts: Counts, case: str) -> None:
    for file in disk.iterdir():
        file.unlink()
    path = disk / "full.safetensors"
    path.write_bytes(b"the old file")
    space = os.statvfs(disk)
    free = space.f_bavail * space.f_frsize
    left = int(rng.integers(0, size + 20_000))
    (disk / "ballast").write_bytes(bytes(max(0, free - left)))
    outcome = _save("plain", path, 0, counts, case)
    if outcome == "saved":
        counts.check(path.stat().st_size == size, "saved whole", f"{case}: the file is not whole")
    elif outcome != "ENOSPC":
        counts.fail(f"{case}: {outcome} on a full disk")


def _denied(folder: Path, rng: np.random.Generator, counts: Counts, case: str) -> None:
    """As a user who may not write in the folder, or may, but not read it."""
    inner = folder / "denied"
    inner.mkdir(exist_ok=True)
    path = inner / "run.safetensors"
    path.write_bytes(b"the old file")
    mode = int(rng.choice([0o555, 0o733]))
    os.chmod(inner, mode)
    os.chmod(path, int(rng.choice([0o644, 0o444])))
    outcome = _save("denied", path, 0, counts, case)
    if outcome == "saved":
        counts.check(
            mode == 0o733, "saved in a folder that cannot be read", f"{case}: saved with mode {mode:o}"
        )
    elif outcome != "EACCES" or mode != 0o555:
        counts.fail(f"{case}: {outcome} with mode {mode:o}")
