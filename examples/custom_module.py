"""Regression with a module of one's own: residual blocks, the Huber loss, weights averaged for evaluation."""

import numpy as np

import fastopt as fo


class Residual(fo.nn.Module):
    """x + f(x), where f is a hidden layer of twice the width."""

    def __init__(self, width):
        super().__init__()
        self.up = fo.nn.Linear(width, 2 * width)
        self.down = fo.nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(fo.functional.silu(self.up(x)))


fo.manual_seed(0)
x = fo.randn(2000, 4).numpy()
y = np.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.05 * fo.randn(2000, 1).numpy()
x_train, x_test, y_train, y_test = fo.data.train_test_split(x, y, test_size=0.25)

model = fo.nn.Sequential(fo.nn.Linear(4, 32), Residual(32), Residual(32), fo.nn.Linear(32, 1))
loss_fn = fo.nn.HuberLoss(delta=0.5)
optimizer = fo.optim.AdamW(model.parameters(), lr=3e-3, max_norm=1.0, ema_decay=0.98)
loader = fo.data.DataLoader(x_train, y_train, batch_size=50, shuffle=True, seed=0)
schedule = fo.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=20 * len(loader))

for _ in range(20):
    for xb, yb in loader:
        optimizer.zero_grad()
        loss_fn(model(xb), yb).backward()
        optimizer.step()
        schedule.step()

with fo.no_grad(), optimizer.swap_ema():
    error = np.mean((model(x_test).numpy() - y_test) ** 2)
print(f"mean squared error {error:.4f}, variance of the targets {y_test.var():.4f}")
assert error < 0.03 * y_test.var()
