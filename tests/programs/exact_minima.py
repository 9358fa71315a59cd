"""Minima of L(., V) of tiny problems in exact rational arithmetic, by enumeration of regions: what `relu_sgd.proofs`
must never contradict.

`python tests/programs/exact_minima.py 500` decides 500 random integer problems both ways and counts.
"""

import itertools
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from relu_sgd import Params, Problem
from relu_sgd.proofs import Proof, Verdict, decide


def feasible(inequalities, equations=()):
    """Whether some x has a . x + b >= 0 (> 0 where strict) for every (a, b, strict), and a . x + b = 0 for every (a,
    b): Fourier and Motzkin."""
    inequalities = [(list(a), b, strict) for a, b, strict in inequalities]
    equations = [(list(a), b) for a, b in equations]
    while equations:
        a, b = equations.pop()
        k = next((k for k, entry in enumerate(a) if entry), None)
        if k is None:
            if b:
                return False
            continue

        def without(row, constant, a=a, b=b, k=k):
            ratio = row[k] / a[k]
            return [r - ratio * s for r, s in zip(row, a, strict=True)], constant - ratio * b

        equations = [without(*row) for row in equations]
        inequalities = [(*without(row, constant), strict) for row, constant, strict in inequalities]
    left = set(range(len(inequalities[0][0]) if inequalities else 0))
    while left:  # The unknown that leaves the fewest inequalities goes first.
        products = {
            k: sum(a[k] > 0 for a, _, _ in inequalities) * sum(a[k] < 0 for a, _, _ in inequalities) for k in left
        }
        k = min(left, key=products.__getitem__)
        left.remove(k)
        up = [row for row in inequalities if row[0][k] > 0]
        down = [row for row in inequalities if row[0][k] < 0]
        found = {(tuple(a), b, strict) for a, b, strict in inequalities if a[k] == 0}
        for (a, b, s), (c, d, t) in itertools.product(up, down):
            e, f = -c[k], a[k]
            combined = [e * x + f * y for x, y in zip(a, c, strict=True)]
            size = max(map(abs, [*combined, e * b + f * d])) or 1
            found.add((tuple(x / size for x in combined), (e * b + f * d) / size, s or t))
        inequalities = [(list(a), b, s) for a, b, s in found]
    return all(b > 0 if strict else b >= 0 for _, b, strict in inequalities)


def exact(array):
    return [[Fraction(float(entry)) for entry in row] for row in array]


def solve(matrix, right, near):
    """A solution of a consistent linear system, its free unknowns as in `near`; None where there is none."""
    rows = [[*row, r] for row, r in zip(matrix, right, strict=True)]
    pivots = []
    for k in range(len(near)):
        p = next((p for p in range(len(pivots), len(rows)) if rows[p][k]), None)
        if p is None:
            continue
        rows[len(pivots)], rows[p] = rows[p], rows[len(pivots)]
        head = rows[len(pivots)] = [x / rows[len(pivots)][k] for x in rows[len(pivots)]]
        rows = [
            row if q == len(pivots) or not row[k] else [x - row[k] * y for x, y in zip(row, head, strict=True)]
            for q, row in enumerate(rows)
        ]
        pivots.append(k)
    if any(row[-1] for row in rows[len(pivots) :]):
        return None
    free = [k for k in range(len(near)) if k not in pivots]
    found = list(near)
    for row, k in zip(rows, pivots, strict=False):
        found[k] = row[-1] - sum(row[f] * near[f] for f in free)
    return found


class Exact:
    """A problem with V fixed; weights are vectors with W_kj in place j d0 + k."""

    def __init__(self, X, Y, V):
        self.X, self.Y, self.V = exact(X), exact(Y), exact(V)
        (self.N, self.d0), (self.d1, self.d2) = np.shape(X), np.shape(V)
        self.pairs = [(i, j) for i in range(self.N) for j in range(self.d1) if any(self.X[i]) and any(self.V[j])]

    def row(self, i, j):
        """The coefficients of Z_ij."""
        return [self.X[i][k] if other == j else Fraction(0) for other in range(self.d1) for k in range(self.d0)]

    def output(self, i, a, active):
        """The coefficients of Yhat_ia where the pairs in `active` act."""
        rows = [[self.V[j][a] * x for x in self.row(i, j)] for j in range(self.d1) if (i, j) in active]
        return (
            [sum(column, Fraction(0)) for column in zip(*rows, strict=True)]
            if rows
            else [Fraction(0)] * (self.d0 * self.d1)
        )

    def zero_loss(self, active, kinks):
        """Whether some W fits with exactly these pairs active, those at 0 and the others negative."""
        equations = [(self.output(i, a, active), -self.Y[i][a]) for i in range(self.N) for a in range(self.d2)]
        equations += [(self.row(*pair), Fraction(0)) for pair in kinks]
        signs = [
            ([x if pair in active else -x for x in self.row(*pair)], Fraction(0), True)
            for pair in self.pairs
            if pair not in kinks
        ]
        return feasible([*signs, ([Fraction(0)] * (self.d0 * self.d1), Fraction(1), False)], equations)

    def loss_and_slopes(self, w):
        """L at w, E, and Z at w, exactly."""
        Z = [
            [sum(r * x for r, x in zip(self.row(i, j), w, strict=True)) for j in range(self.d1)] for i in range(self.N)
        ]
        E = [
            [
                self.Y[i][a] - sum(max(Z[i][j], Fraction(0)) * self.V[j][a] for j in range(self.d1))
                for a in range(self.d2)
            ]
            for i in range(self.N)
        ]
        return sum(e * e for row in E for e in row) / 2, E, Z

    def is_local_minimum(self, w):
        """Whether L grows, to first order, into every closed region that meets at w: on each L is convex, so that is
        the whole truth.

        To first order L changes by a sum over neurons, so each is asked on its own.
        """
        _, E, Z = self.loss_and_slopes(w)
        for j in range(self.d1):
            at_zero = [i for i in range(self.N) if (i, j) in self.pairs and Z[i][j] == 0]
            pull = [sum(e * v for e, v in zip(E[i], self.V[j], strict=True)) for i in range(self.N)]
            for signs in itertools.product((1, -1), repeat=len(at_zero)):
                acts = [i for i in range(self.N) if Z[i][j] > 0]
                acts += [i for i, sign in zip(at_zero, signs, strict=True) if sign > 0]
                fall = [sum((pull[i] * self.X[i][k] for i in acts), Fraction(0)) for k in range(self.d0)]
                cone = [
                    ([sign * x for x in self.X[i]], Fraction(0), False) for i, sign in zip(at_zero, signs, strict=True)
                ]
                if feasible([*cone, (fall, Fraction(-1), False)]):
                    return False
        return True

    def minimum_of_pattern(self, active, kinks, near):
        """The W near a given one that minimises L on the linear pieces of a pattern with its kinks at 0."""
        n = len(near)
        J = [self.output(i, a, active) for i in range(self.N) for a in range(self.d2)]
        y = [self.Y[i][a] for i in range(self.N) for a in range(self.d2)]
        K = [self.row(*pair) for pair in kinks]
        system = [[sum(r[p] * r[q] for r in J) for q in range(n)] + [k[p] for k in K] for p in range(n)] + [
            k + [Fraction(0)] * len(K) for k in K
        ]
        right = [sum(r[p] * t for r, t in zip(J, y, strict=True)) for p in range(n)] + [Fraction(0)] * len(K)
        found = solve(system, right, [*near, *([Fraction(0)] * len(K))])
        return None if found is None else found[:n]


def contradiction(proof: Proof, problem: Problem) -> str:
    """What is wrong with a proof for V fixed, "" if nothing."""
    truth = Exact(problem.X, problem.Y, proof.V)
    kinks = {tuple(pair) for pair in np.argwhere(proof.kinks).tolist()}
    active = {tuple(pair) for pair in np.argwhere(proof.active).tolist()}
    if proof.verdict == Verdict.GLOBAL_MINIMUM:
        return "" if truth.zero_loss(active, kinks) else "no W of this pattern has zero loss"
    if proof.verdict == Verdict.LOCAL_MINIMUM:
        near = [Fraction(float(x)) for x in proof.W.T.ravel()]
        w = truth.minimum_of_pattern(active, kinks, near)
        assert w is not None
        loss, _, Z = truth.loss_and_slopes(w)
        if max(abs(x - y) for x, y in zip(w, near, strict=True)) > proof.error + 1e-9:
            return "the exact minimum of the pattern is elsewhere"
        if any((Z[i][j] > 0) != ((i, j) in active) or (Z[i][j] == 0) != ((i, j) in kinks) for i, j in truth.pairs):
            return "the exact minimum has another pattern"
        if not truth.is_local_minimum(w):
            return "it is no local minimum"
        if not (loss > 0 and proof.loss[0] <= loss <= proof.loss[1]):
            return "its loss is not within the bounds"
    return ""


def random_problem(generator):
    """A small problem of integers, with duplicate, opposite and zero rows, zero output weights and starts on kinks."""
    N, d0, d1, d2 = (int(generator.integers(1, high)) for high in (5, 3, 3, 3))
    whole = lambda *shape: generator.integers(-2, 3, shape).astype(float)
    X = whole(N, d0)
    if N > 1 and generator.random() < 0.3:
        X[-1] = generator.choice([-1.0, 1.0]) * X[0]
    W = whole(d0, d1) if generator.random() < 0.5 else generator.normal(size=(d0, d1))
    return Params(W, whole(d1, d2)), Problem(X, whole(N, d2))


def main(count):
    verdicts, reasons = Counter(), Counter()
    for seed in range(count):
        params, problem = random_problem(np.random.default_rng(seed))
        proof = decide(params, problem)
        wrong = contradiction(proof, problem)
        verdicts[proof.verdict.name, wrong or "right"] += 1
        if proof.verdict == Verdict.UNDECIDED:
            reasons[proof.reason.split(" (")[0]] += 1
    print(dict(verdicts), dict(reasons), sep="\n")
    return all(wrong == "right" for _, wrong in verdicts)


if __name__ == "__main__":
    sys.exit(not main(int(sys.argv[1])))
