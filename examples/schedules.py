"""Plot learning-rate schedules: ``python examples/schedules.py [PICTURE]`` (needs the extra ``plot``)."""

import sys

import numpy as np

import fastopt as fo

STEPS = 200


def rates(make):
    """The learning rate of each step under the schedule that ``make`` puts on an optimizer."""
    optimizer = fo.optim.SGD([np.zeros(1)], lr=0.1)
    schedule = make(optimizer)
    course = []
    for _ in range(STEPS):
        course.append(optimizer.param_groups[0]["lr"])
        optimizer.step([np.zeros(1)])
        schedule.step()
    return course


lr_scheduler = fo.optim.lr_scheduler
courses = {
    "step": rates(lambda o: lr_scheduler.StepLR(o, step_size=50, gamma=0.5)),
    "exponential": rates(lambda o: lr_scheduler.ExponentialLR(o, gamma=0.98)),
    "cosine": rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS)),
    "warmup, cosine": rates(lambda o: lr_scheduler.WarmupCosineLR(o, warmup_steps=20, total_steps=STEPS)),
    "one cycle": rates(
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=STEPS + 1, cycle_momentum=False)
    ),
}
for name, course in courses.items():
    print(f"{name:>15}: first {course[0]:.4f}, highest {max(course):.4f}, last {course[-1]:.2g}")
if len(sys.argv) > 1:
    fo.plot.plot_schedule(courses, sys.argv[1], title="learning-rate schedules")
