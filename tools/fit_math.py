"""Derive every polynomial coefficient of csrc/math.hpp.

Each function is fitted by weighted least squares at Chebyshev nodes (near-minimax: the nodes crowd at the
ends), in 60-digit arithmetic. Coefficients are rounded to the target type one at a time, lowest power first,
and the remaining ones are fitted again, so that the rounding of one is made good by the others. Needs mpmath.

    python tools/fit_math.py            print the coefficients and the approximation error of each polynomial
    python tools/fit_math.py --check    fail if csrc/math.hpp has other coefficients
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpmath as mp

mp.mp.dps = 60
Fn = Callable[[mp.mpf], mp.mpf]


@dataclass(frozen=True)
class Fit:
    """sum c[i] v^i ~ target(v) on [lo, hi]; error is weighted; first: a c[0] that is given, not fitted."""

    name: str
    bits: int
    lo: float
    hi: float
    degree: int
    target: Fn
    weight: Fn
    first: float | None = None


def round_to(value: mp.mpf, bits: int) -> float:
    """Nearest float64 or float32 (as a Python float)."""
    return float(value) if bits == 64 else struct.unpack("f", struct.pack("f", float(value)))[0]


def literal(value: float, bits: int) -> str:
    mantissa, exponent = value.hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{int(exponent)}{'f' if bits == 32 else ''}"


def fit(job: Fit) -> tuple[list[float], float]:
    """Rounded coefficients, and the largest weighted error on a fine grid."""
    count = 12 * (job.degree + 2)
    mid, half = (mp.mpf(job.hi) + job.lo) / 2, (mp.mpf(job.hi) - job.lo) / 2
    nodes = [mid + half * mp.cospi(mp.mpf(2 * i + 1) / (2 * count)) for i in range(count)]
    square = [job.weight(v) ** 2 for v in nodes]
    rest = [job.target(v) for v in nodes]
    moments = [
        mp.fsum(s * v**k for s, v in zip(square, nodes, strict=True)) for k in range(2 * job.degree + 1)
    ]

    coefs: list[float] = []
    for first in range(job.degree + 1):
        if first == 0 and job.first is not None:
            c = job.first
        else:
            size = job.degree + 1 - first
            matrix = mp.matrix(size, size)
            for i in range(size):
                for j in range(size):
                    matrix[i, j] = moments[2 * first + i + j]
            right = [
                mp.fsum(s * v ** (first + i) * y for s, v, y in zip(square, nodes, rest, strict=True))
                for i in range(size)
            ]
            c = round_to(mp.lu_solve(matrix, mp.matrix(right))[0], job.bits)
        coefs.append(c)
        rest = [y - c * v**first for y, v in zip(rest, nodes, strict=True)]

    grid = [mid + half * mp.cospi(mp.mpf(i) / 701) for i in range(1, 701)]
    worst = max(abs(job.weight(v) * (mp.polyval(coefs[::-1], v) - job.target(v))) for v in grid)
    return coefs, float(worst)


def exp_tail(r: mp.mpf) -> mp.mpf:
    return (mp.expm1(r) - r) / r**2


def log_tail(f: mp.mpf) -> mp.mpf:
    return (mp.log1p(f) - f) / f**2


def atanh_tail(z: mp.mpf) -> mp.mpf:
    s = mp.sqrt(z)
    return (2 * mp.atanh(s) / s - 2) / z


def erf_small(z: mp.mpf) -> mp.mpf:
    a = mp.sqrt(z)
    return mp.erf(a) / a - 1


def log_erfc(v: mp.mpf) -> mp.mpf:
    return mp.log(mp.erfc(1 + v))


def normal_slope(z: mp.mpf) -> mp.mpf:
    """(2 Phi(a) - 1) / a for a = sqrt(z)."""
    a = mp.sqrt(z)
    return mp.erf(a / mp.sqrt(2)) / a


def denominator(target: Fn, high: float, degree: int, rounds: int = 8) -> list[mp.mpf]:
    """Q, with highest coefficient 1, of the best P / Q ~ target(z) of that degree for 0 <= sqrt(z) <= high.

    P - Q target is fitted by least squares, weighted with 1 / Q of the round before.
    """
    count, size = 24 * (degree + 1), 2 * degree + 1
    nodes = [(high * (1 + mp.cospi(mp.mpf(2 * i + 1) / (2 * count))) / 2) ** 2 for i in range(count)]
    coefs = [mp.mpf(1)]
    for _ in range(rounds):
        matrix, right = mp.matrix(count, size), mp.matrix(count, 1)
        for i, z in enumerate(nodes):
            weight, value = mp.sqrt(z) / mp.polyval(coefs[::-1], z), target(z)
            for j in range(degree + 1):
                matrix[i, j] = weight * z**j
            for j in range(degree):
                matrix[i, degree + 1 + j] = -weight * value * z**j
            right[i] = weight * value * z**degree
        solution = mp.lu_solve(matrix.T * matrix, matrix.T * right)
        coefs = [*(solution[degree + 1 + j] for j in range(degree)), mp.mpf(1)]
    return coefs


HALF_LN2 = 0.3470  # with a little slack for the rounding of the reduced argument
ERF_MAX = {32: 4.0, 64: 6.0}
NORMAL_MAX = 5.5


def jobs() -> list[Fit]:
    def exp_weight(r: mp.mpf) -> mp.mpf:
        return r**2 / mp.expm1(r)

    def erfc_weight(v: mp.mpf) -> mp.mpf:
        return mp.erfc(1 + v)

    made = []
    for bits, exp_degree, small_degree, large_degree in ((32, 5, 6, 6), (64, 10, 12, 18)):
        made += [
            # exp(r) = 1 + r + r^2 Q(r), error relative to exp(r) - 1
            Fit("exp_tail", bits, -HALF_LN2, HALF_LN2, exp_degree, exp_tail, exp_weight, 0.5),
            # erf(x) = x + x P(x^2) for |x| < 1, error relative to x
            Fit("erf_small", bits, 1e-20, 1.0, small_degree, erf_small, lambda z: mp.mpf(1)),
            # erf(1 + v) = 1 - exp(L(v)) from there on, absolute error
            Fit("log_erfc", bits, 0.0, ERF_MAX[bits] - 1, large_degree, log_erfc, erfc_weight),
        ]
    # the same within 2^-26 of exp(r) - 1
    made.append(Fit("exp_tail_short", 32, -HALF_LN2, HALF_LN2, 4, exp_tail, exp_weight, 0.5))
    # Phi(a) = 1/2 + a P(a^2) / (2 Q(a^2)), absolute error; Q is rounded first
    q = [round_to(c, 32) for c in denominator(normal_slope, NORMAL_MAX, 5)]

    def q_at(z: mp.mpf) -> mp.mpf:
        return mp.polyval(q[::-1], z)

    made += [
        Fit("normal_q", 32, 0.0, 1.0, 4, lambda z: mp.polyval(q[:-1][::-1], z), lambda z: mp.mpf(1)),
        Fit(
            *("normal_p", 32, 1e-20, NORMAL_MAX**2, 5),
            lambda z: normal_slope(z) * q_at(z),
            lambda z: mp.sqrt(z) / q_at(z),
        ),
    ]
    # log(1 + f) = f + f^2 L(f), error relative to log(1 + f)
    made.append(Fit("log_tail", 32, -0.2930, 0.4143, 9, log_tail, lambda f: f**2 / mp.log1p(f), -0.5))
    # log(1 + f) = 2 s + s z R(z), s = f / (2 + f), z = s^2, error relative to s
    made.append(Fit("log_tail", 64, 1e-9, 0.02945, 6, atanh_tail, lambda z: z))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if a coefficient is not in csrc/math.hpp")
    check = parser.parse_args().check
    header = Path(__file__).resolve().parents[1] / "csrc" / "math.hpp"
    source = "".join(header.read_text().split()) if check else ""
    for job in jobs():
        coefs, worst = fit(job)
        line = ", ".join(literal(c, job.bits) for c in coefs)
        if not check:
            print(f"{job.name} float{job.bits}, error 2^{float(mp.log(worst, 2)):.1f}\n    {line}")
        elif line.replace(" ", "") not in source:
            raise SystemExit(f"csrc/math.hpp: {job.name} float{job.bits} should be {line}")


if __name__ == "__main__":
    main()
