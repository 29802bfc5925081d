"""MNIST through the command line on the device, and the same network and batches in torch; writes cuda_mnist.csv.

python benchmarks/cuda/mnist_epochs.py --data DIR [--epochs 10] [--out DIR] [--device cuda]

Without data (--data none) noise of MNIST's size is used, which says how long it takes and nothing else.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import harness
from harness import Row

HIDDEN, BATCH, LR = 256, 64, 1e-3


def write_noise(folder: Path, images: tuple[int, int]) -> None:
    """IDX files as MNIST has them, of random bytes."""
    rng = np.random.default_rng(0)
    for name, n in zip(("train", "t10k"), images, strict=True):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            with gzip.open(folder / f"{name}-{kind}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(header + array.tobytes())


def ours(data: Path, epochs: int, device: str) -> dict[str, Any]:
    """What `fastopt train` says about its run."""
    command = [sys.executable, "-m", "fastopt", "train", "mnist", "--data", str(data)]
    command += ["--hidden", str(HIDDEN), "--batch-size", str(BATCH), "--optimizer", "adam", "--lr", str(LR)]
    command += ["--epochs", str(epochs), "--json"]
    if device != "cpu":
        command += ["--device", device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"fastopt train: {done.stderr.strip() or done.stdout.strip()}")
    summary: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return summary


def theirs(data: Path, epochs: int, device: str, graph: bool) -> dict[str, float]:
    """torch: data on the device, batches by index, Adam fused; a step captured as a graph, or eager."""
    import torch
    from torch.nn import functional as F

    import fastopt as fo

    x, y, xt, yt = (torch.as_tensor(a).to(device) for a in fo.data.load_mnist(data))
    torch.manual_seed(0)
    layers = torch.nn.Linear(784, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10)
    model = torch.nn.Sequential(*layers).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True, capturable=graph)
    bx, by = x[:BATCH].clone(), y[:BATCH].clone()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(bx), by).backward()
        optimizer.step()

    call = step
    if graph:
        from with_torch_cuda import captured

        call = captured(step)
    start = time.perf_counter()
    for _ in range(epochs):
        order = torch.randperm(len(x), device=device)
        for first in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[first : first + BATCH]
            torch.index_select(x, 0, rows, out=bx)
            torch.index_select(y, 0, rows, out=by)
            call()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        accuracy = float((model(xt).argmax(1) == yt).float().mean())
    return {"train_seconds": seconds, "test_accuracy": accuracy}


def row(provider: str, epochs: int, summary: dict[str, Any], device: str, version: str) -> Row:
    micro = round(summary["train_seconds"] * 1e6, 2)
    rate = round(epochs * 60000 / summary["train_seconds"], 1)
    return Row(
        "mnist", provider, f"{epochs} epochs", "float32", f"784-{HIDDEN}-10 b{BATCH}", micro, micro, micro,
        rate, "samples/s", round(summary["test_accuracy"], 4), "", 0, device, version,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of MNIST's files, or none")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, nargs=2, default=(60000, 10000), help="of noise")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    if args.out:
        harness.RESULTS = args.out
    with tempfile.TemporaryDirectory() as folder:
        data = Path(args.data)
        if args.data == "none":
            data = Path(folder)
            write_noise(data, tuple(args.images))
            print("noise instead of MNIST: times only")
        runs: dict[str, Any] = {"fastopt": lambda: ours(data, args.epochs, args.device)}
        try:
            import torch
        except ImportError as error:
            print(f"torch: left out, {error}")
        else:
            runs["torch-eager"] = lambda: theirs(data, args.epochs, args.device, False)
            if torch.cuda.is_available() and args.device == "cuda":
                runs["torch-graph"] = lambda: theirs(data, args.epochs, args.device, True)
        rows = []
        for provider, run in runs.items():
            try:
                summary = run()
            except Exception as error:  # the others are still worth their time
                if args.dry:
                    raise
                print(f"LEFT OUT {provider}: {type(error).__name__}: {error}")
                continue
            rows.append(row(provider, args.epochs, summary, args.device, ""))
            print(
                f"{provider}: {args.epochs} epochs in {summary['train_seconds']:.3f} s, "
                f"test accuracy {summary['test_accuracy']:.2%}",
                flush=True,
            )
    if rows and not args.dry:
        print("wrote", harness.write("cuda_mnist", rows))


if __name__ == "__main__":
    main()
