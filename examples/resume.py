"""A run that stops in the middle of an epoch and goes on in new objects, bit for bit as if it had not."""

import tempfile
from pathlib import Path

import numpy as np

import fastopt as fo


def make(seed):
    """Model with dropout, optimizer, schedule and loader: everything that has a state."""
    fo.manual_seed(seed)
    x, y, _, _ = fo.data.load_digits()
    model = fo.nn.Sequential(fo.nn.Linear(64, 32), fo.nn.ReLU(), fo.nn.Dropout(0.2), fo.nn.Linear(32, 10))
    optimizer = fo.optim.Adam(model.parameters(), lr=1e-3)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": fo.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100),
        "loader": fo.data.DataLoader(x, y, batch_size=64, shuffle=True),
    }


def train(run, steps):
    """Take ``steps`` steps through as many epochs as that needs; return the losses."""
    loss_fn, losses = fo.nn.CrossEntropyLoss(), []
    while len(losses) < steps:
        for xb, yb in run["loader"]:
            run["optimizer"].zero_grad()
            loss = loss_fn(run["model"](xb), yb)
            loss.backward()
            run["optimizer"].step()
            run["scheduler"].step()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    return losses


unbroken = make(seed=0)
expected = train(unbroken, 100)

broken = make(seed=0)
losses = train(broken, 37)
with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "run.safetensors"
    fo.checkpoint.save(path, **broken, epoch=1)
    resumed = make(seed=1)  # another seed: all its random states come from the file
    fo.checkpoint.load(path, **resumed)
losses += train(resumed, 63)

print(f"loss after 100 steps: {expected[-1]} unbroken, {losses[-1]} resumed")
assert losses == expected
for p, q in zip(unbroken["model"].parameters(), resumed["model"].parameters(), strict=True):
    np.testing.assert_array_equal(p.data, q.data)
