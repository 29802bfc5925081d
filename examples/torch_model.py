"""A torch model trained by fastopt: a torch.optim.Optimizer with torch's schedules and state dictionaries."""

import torch

import fastopt as fo

torch.manual_seed(0)
x = torch.rand(512, 2) * 2 - 1
y = (x[:, 0] * x[:, 1] > 0).long()
model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))


def train(optimizer, steps):
    """Take steps on all data; return the last loss."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


optimizer = fo.torch.AdamW(model.parameters(), lr=0.02, weight_decay=1e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
for _ in range(200):
    train(optimizer, 1)
    schedule.step()

# torch goes on from fastopt's state, and fastopt from torch's.
theirs = torch.optim.AdamW(model.parameters())
theirs.load_state_dict(optimizer.state_dict())
theirs.param_groups[0]["lr"] = 0.01
train(theirs, 50)
optimizer.load_state_dict(theirs.state_dict())
loss = train(optimizer, 150)

accuracy = (model(x).argmax(1) == y).float().mean().item()
print(f"loss {loss:.4f}, accuracy {accuracy:.3f}")
assert accuracy > 0.97
