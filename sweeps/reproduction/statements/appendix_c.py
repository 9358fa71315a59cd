"""Appendix C: G(X), Hermite's expansion of relu, Lemmas C.1 to C.3 and the steps of their proofs."""

import math

import numpy as np
from scipy.integrate import quad
from scipy.special import log_ndtr

from relu_sgd.theory import gram, widths
from sweeps.reproduction.statements.check import Check, Checks, Outcome, at_least, at_most, combined, equal, event
from sweeps.reproduction.statements.paths import unit_rows

__all__ = ["CHECKS"]

_PSI = 1.0
_DENSITY = 1 / math.sqrt(2 * math.pi)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def definition_g(rng: np.random.Generator) -> Outcome:
    """Entries of G(X) by quadrature in the plane of the two rows: 1 / pi times an integral over angles."""
    x, y = rng.normal(size=(2, 2))
    angular = lambda t: max(float(x @ [math.cos(t), math.sin(t)]), 0) * max(float(y @ [math.cos(t), math.sin(t)]), 0)
    kinks = sorted(
        float(np.arctan2(v[1], v[0]) + turn) % (2 * math.pi) for v in (x, y) for turn in (math.pi / 2, -math.pi / 2)
    )
    value, _ = quad(angular, 0, 2 * math.pi, points=kinks, limit=200, epsabs=1e-11)
    return equal(value / math.pi, gram.gram(np.array([x, y]))[0, 1], 1e-7, scale=1e-3)


def _polynomials(count: int) -> list[np.polynomial.Polynomial]:
    """h_0, h_1, ... by NumPy's conversion from Hermite's basis."""
    basis = np.eye(count)
    return [np.polynomial.Polynomial(np.polynomial.hermite_e.herme2poly(basis[k][: k + 1])) for k in range(count)]


def equation_30(rng: np.random.Generator) -> Outcome:
    """Rodrigues' formula: the derivatives of exp(-z^2 / 2) by Cauchy's integral on a circle."""
    z, points = float(rng.normal()), np.exp(2j * math.pi * np.arange(64) / 64)
    values = np.exp(-((z + points) ** 2) / 2)
    outcomes = []
    for k in range(9):
        derivative = math.factorial(k) * float(np.mean(values * points**-k).real)
        rodrigues = (-1) ** k * math.exp(z**2 / 2) * derivative
        outcomes.append(equal(rodrigues, float(gram.hermite_polynomial(k, z)), 1e-8, scale=math.factorial(k)))
    return combined(*outcomes)


def _relu_moment(k: int) -> float:
    """E relu(g) h_k(g) by quadrature."""
    polynomial = _polynomials(k + 1)[k]
    z = 10 * (_NODES + 1)  # From 0 to 20, beyond which nothing is left.
    return float(10 * _WEIGHTS @ (z * polynomial(z) * np.exp(-(z**2) / 2))) * _DENSITY


def equation_31(rng: np.random.Generator) -> Outcome:
    """mu_k by quadrature, and what is left of relu after its expansion: E relu^2 = 1/2 is the sum of mu_k^2."""
    k = int(rng.integers(0, 13))
    moment = _relu_moment(k) / math.sqrt(math.factorial(k))
    last = int(rng.integers(500, 2000)) * 2
    total = sum(gram.hermite_coefficient(i) ** 2 for i in (0, 1, *range(2, last + 1, 2)))
    tail = math.sqrt(2 / math.pi) / (2 * math.pi) / 1.5 / 2 * (last + 1) ** -1.5
    return combined(equal(moment, gram.hermite_coefficient(k), 1e-8, scale=1e-2), equal(total + tail, 0.5, 1e-7))


def lemma_c2(rng: np.random.Generator) -> Outcome:
    """k^2.5 mu_k^2 stays between positive constants for even k: it falls from 2^2.5 / (4 pi) to sqrt(2 / pi) / (2 pi).
    mu_k^2 by the printed formula's logarithm, (38), from sums and not from the project's function.
    """
    k = 2 * int(10 ** rng.uniform(0, 5))
    factors = np.arange(1, k // 2)  # (k-3)!! / (k-2)!! = prod (2i - 1) / (2i), and (k-2)! = their product.
    ratio = float(np.sum(np.log((2 * factors - 1) / (2 * factors))))
    value = math.exp(ratio + 2.5 * math.log(k) - math.log(k * (k - 1))) / (2 * math.pi)
    return combined(
        at_least(value, math.sqrt(2 / math.pi) / (2 * math.pi)),
        at_most(value, 2**2.5 / (4 * math.pi)),
        equal(value, k**2.5 * gram.hermite_coefficient(k) ** 2, 1e-7),
    )


def equation_33(rng: np.random.Generator) -> Outcome:
    """h_k' = z h_k - h_(k+1), with the derivative of NumPy's polynomial."""
    h, z, k = _polynomials(14), float(rng.normal()), int(rng.integers(0, 13))
    right = z * gram.hermite_polynomial(k, z) - gram.hermite_polynomial(k + 1, z)
    return equal(float(h[k].deriv()(z)), right, 1e-9, scale=math.factorial(k))


def equation_34(rng: np.random.Generator) -> Outcome:
    """h_k' = k h_(k-1), likewise."""
    h, z, k = _polynomials(14), float(rng.normal()), int(rng.integers(1, 14))
    return equal(float(h[k].deriv()(z)), k * gram.hermite_polynomial(k - 1, z), 1e-9, scale=math.factorial(k))


def _double(n: int) -> int:
    """n!!, 1 for n = -1 and 0."""
    return math.prod(range(n, 0, -2)) if n > 0 else 1


def equation_35(rng: np.random.Generator) -> Outcome:
    """h_k(0)."""
    k = int(rng.integers(1, 14))
    return equal(gram.hermite_polynomial(k, 0.0), 0.0 if k % 2 else (-1) ** (k // 2) * _double(k - 1))


def _equation_36(k: int) -> Outcome:
    """Integral over z > 0 of z d^k/dz^k exp(-z^2 / 2), which is (-1)^k z h_k exp(-z^2 / 2): by quadrature, and from
    mu_k as the project computes it.
    """
    moments = np.array([_relu_moment(k), gram.hermite_coefficient(k) * math.sqrt(math.factorial(k))])
    printed = 0.0 if k % 2 else (-1) ** ((k - 2) // 2) * _double(k - 3)
    return equal((-1) ** k * moments / _DENSITY, printed, 1e-7, scale=math.sqrt(math.factorial(k)))


def equation_37(rng: np.random.Generator) -> Outcome:
    """E h_k^2 = k!, by Gauss's quadrature, exact for polynomials."""
    k = int(rng.integers(1, 14))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    return equal(float(weights @ gram.hermite_polynomial(k, nodes) ** 2) / weights.sum(), math.factorial(k), 1e-8)


def _least_gram(X: np.ndarray) -> float:
    """lambda(X) with the arc-cosine kernel written out."""
    lengths = np.linalg.norm(X, axis=1)
    cosine = np.clip(X @ X.T / np.outer(lengths, lengths), -1, 1)
    np.fill_diagonal(cosine, 1)
    angle = np.arccos(cosine)
    G = np.outer(lengths, lengths) * (np.sin(angle) + (math.pi - angle) * cosine) / (2 * math.pi)
    return float(np.linalg.eigvalsh(G)[0])


def lemma_c3(rng: np.random.Generator) -> Outcome:
    """Random rows of different lengths, and orthogonal ones, for which r = 1 gives 1/4 of 0.341."""
    N, d0 = int(rng.integers(2, 12)), int(rng.integers(2, 8))
    X = unit_rows(rng, N, d0) * rng.uniform(0.5, 2, size=(N, 1))
    basis = np.linalg.qr(rng.normal(size=(4, 4)))[0] * rng.uniform(0.5, 2)
    return combined(
        *(
            at_least(_least_gram(rows), gram.khatri_rao_bound(rows, r), 1e-7)
            for rows in (X, basis)
            for r in (1, 2, 4, 6)
        )
    )


def _concentration(rng: np.random.Generator, repaired: bool) -> Outcome:
    """P(f(z) > E f(z) + t) <= exp(-t^2 / 2), printed with z in place of the first f(z): for f(z) = z - shift, and
    repaired for |z| as well; logarithms of the exact laws of a normal z.
    """
    t, shift = rng.uniform(0.5, 4), rng.uniform(5, 10)
    tails = [log_ndtr(-t), math.log(2) + log_ndtr(-t - math.sqrt(2 / math.pi))] if repaired else [log_ndtr(shift - t)]
    return at_least(-np.array(tails), t**2 / 2)


def _last_display_of_4_3(rng: np.random.Generator, printed: bool) -> Outcome:
    """N max(1, (Psi + log N) / (d0 delta^2.5) max(1, log(12 N / (d0 delta^2.5)))) against N max(1, C delta^-2.5
    log(1 / delta) Psi log^2(N) / d0), for d0 = N, with C as large as elementary bounds of the left side ask; printed
    with N (Psi + log N), which for large N no C helps.
    """
    N, delta, psi = 10 ** rng.uniform(9, 18), rng.uniform(0.1, 0.6), rng.uniform(1, 10)
    d0, scale = N, delta**-2.5
    left = (N if printed else 1) * (psi + math.log(N)) * scale / d0 * max(1.0, math.log(12 * N * scale / d0))
    constant = 2 * (math.log(12) + 1 + 2.5 * math.log(1 / delta)) / math.log(1 / delta)
    right = constant * scale * math.log(1 / delta) * psi * math.log(N) ** 2 / d0
    return at_most(N * max(1.0, left), N * max(1.0, right))


def equation_39(rng: np.random.Generator) -> Outcome:
    """With the Khatri-Rao power itself; attained by orthogonal rows of one length."""
    basis = np.linalg.qr(rng.normal(size=(4, 4)))[0] * rng.uniform(0.5, 2)
    outcomes = []
    for X in (unit_rows(rng, int(rng.integers(2, 9)), 4) * rng.uniform(0.5, 2), basis):
        for r, power in ((1, X), (2, np.einsum("ia,ib->iab", X, X)), (3, np.einsum("ia,ib,ic->iabc", X, X, X))):
            rows = power.reshape(len(X), -1)
            outcomes.append(at_least(np.linalg.eigvalsh(rows @ rows.T)[0], gram.gershgorin_bound(X, r), 1e-8))
    return combined(*outcomes)


_ROWS = (12, 30)  # N and d0 of (40), whose t is such that half of the draws may fail.


def equation_40(rng: np.random.Generator) -> Outcome:
    """How likely all |<X_i, X_j>| are below t, for rows from the sphere of radius sqrt(d0), where sigma_X^2 = 2."""
    N, d0 = _ROWS
    t = math.sqrt(2 * d0 * math.log(N**2 / 0.5))
    largest = []
    for _ in range(20):
        X = unit_rows(rng, N, d0) * math.sqrt(d0)
        products = np.abs(X @ X.T)
        np.fill_diagonal(products, 0)
        largest.append(products.max())
    return event(np.array(largest) < t, 1 - np.array(largest) / t)


def _least_hidden(rng: np.random.Generator, X: np.ndarray, d1: int) -> float:
    """sigma_min(H^T) for W with N(0, 1) entries, some neurons at a time."""
    product = np.zeros((len(X), len(X)))
    for begin in range(0, d1, 8192):
        hidden = np.maximum(X @ rng.normal(size=(X.shape[1], min(8192, d1 - begin))), 0)
        product += hidden @ hidden.T
    return math.sqrt(max(float(np.linalg.eigvalsh(product)[0]), 0.0))


def _printed_width_of_orthogonal_rows(num_samples: int) -> float:
    """(29) as printed with psi = 1 for N orthogonal rows of one length: ||X||^2 / lambda does not depend on N."""
    ratio = 1 / (0.5 - 1 / (2 * math.pi))
    logarithm = max(1.0, math.log(12 * ratio))
    return 16 / (1 - math.log(2)) * ratio * (_PSI + math.log(num_samples)) * logarithm


def lemma_c1_printed(rng: np.random.Generator) -> Outcome:
    """With its own constant, where the width that (29) asks for is N: N = d1 from 5,210 on for orthogonal rows.

    For rows of norm 1 that are orthogonal XW has N(0, 1) entries. An upper bound of alpha is ||H^T u|| for the unit
    vector u that a few steps of conjugate gradients from a random one lead to.
    """
    N = 5250
    assert _printed_width_of_orthogonal_rows(N) <= N
    hidden = rng.standard_normal((N, N), np.float32)
    np.maximum(hidden, 0, out=hidden)
    solution = np.zeros(N, np.float32)
    residual = rng.standard_normal(N, np.float32)
    direction = residual.copy()
    for _ in range(6):
        image = hidden @ (direction @ hidden)
        step = (residual @ residual) / (direction @ image)
        solution += step * direction
        new = residual - step * image
        direction = new + (new @ new) / (residual @ residual) * direction
        residual = new
    size = float(np.linalg.norm(solution.astype(float) @ hidden.astype(float)) / np.linalg.norm(solution.astype(float)))
    bound = widths.least_singular_value_bound(0.5 - 1 / (2 * math.pi), N)
    return event([size > bound], [size / bound - 1])


def lemma_c1(rng: np.random.Generator) -> Outcome:
    """At the repaired width, for random rows and for orthogonal ones: expected is twice the bound."""
    sizes = []
    for X in (unit_rows(rng, 6, 8) * 2, np.eye(6) * 1.5):
        smallest = _least_gram(X)
        d1 = math.ceil(widths.lemma_c1_width(X, psi=_PSI))
        sizes.append(_least_hidden(rng, X, d1) / widths.least_singular_value_bound(smallest, d1) - 1)
    return event(np.array(sizes) > 0, sizes)


def _equation_42(rng: np.random.Generator, repaired: bool) -> Outcome:
    """lambda_t >= lambda / 2 at the level t, for N = d0 orthogonal rows of norm sqrt(d0): ||relu(Xw)|| is near
    N / sqrt(2), beyond the printed level.

    lambda_t is at most u^T G_t u = E <u, relu(Xw)>^2 over the draws that are kept, for any unit vector u; as repaired
    it is at least lambda minus what the draws beyond t have of ||relu(Xw)||^2.
    """
    N = 400
    smallest = N * (0.5 - 1 / (2 * math.pi))
    level = gram.truncation_level(np.eye(N) * math.sqrt(N), repaired=repaired, lambda_X=smallest)
    lengths = math.sqrt(N) * np.linalg.norm(np.maximum(rng.normal(size=(1000, N)), 0), axis=1)
    kept = lengths <= level
    if repaired:
        return at_least(smallest - float(np.mean(lengths**2 * ~kept)), smallest / 2)
    # No eigenvalue but the least is below their mean, tr G_t / N; an upper bound of P(kept) of 99.9 percent.
    share = float(kept.mean()) + 6.91 / len(kept)
    return at_least(level**2 * share / N, smallest / 2)


def equation_41(rng: np.random.Generator) -> Outcome:
    """The integral that (41) bounds, after the tail bound, with s = ||X||^2: (t^2 + 2 s) exp(-t^2 / 2s) <= 6 s
    exp(-t^2 / 4s), and at t of (41) it is at most lambda / 2.
    """
    X = unit_rows(rng, 6, 4) * rng.uniform(0.5, 2)
    s, smallest = float(np.linalg.norm(X, 2) ** 2), _least_gram(X)
    level = gram.truncation_level(X, repaired=False)
    any_t = rng.uniform(0, 6 * math.sqrt(s), 20)
    last = lambda t: 6 * s * np.exp(-(t**2) / (4 * s))
    return combined(
        at_most((any_t**2 + 2 * s) * np.exp(-(any_t**2) / (2 * s)), last(any_t)),
        at_most(last(level), smallest / 2),
    )


def _tail(rng: np.random.Generator, repaired: bool) -> Outcome:
    """P(||relu(Xw)|| >= t) <= exp(-t^2 / 2 ||X||^2), the step that (41) comes from, at t^2 = 2 ||X||^2 log 5, where it
    says 1/5; repaired: the deviation from the mean of the norm, which Gaussian concentration bounds.
    """
    N = 30
    t = math.sqrt(2 * math.log(5))
    lengths = np.linalg.norm(np.maximum(rng.normal(size=(40, N)), 0), axis=1)
    mean = math.sqrt(N / 2) if repaired else 0.0  # The mean is at most that.
    return event(lengths < mean + t, 1 - lengths / (mean + t))


def equation_43(rng: np.random.Generator) -> Outcome:
    """Matrix Chernoff for columns relu(XW_j) cut off at t, with d1 so small that half of the draws may fail."""
    N, t, epsilon = 3, 2.5, 0.5
    X = np.eye(N)
    columns = np.maximum(rng.normal(size=(20_000, N)), 0)
    columns = columns * (np.linalg.norm(columns, axis=1) < t)[:, None]
    smallest = float(np.linalg.eigvalsh(columns.T @ columns / len(columns))[0])
    base = math.exp(-epsilon) / (1 - epsilon) ** (1 - epsilon)
    d1 = math.ceil(math.log(0.5 / N) / math.log(base) * t**2 / smallest)
    least = []
    for _ in range(20):
        hidden = np.maximum(X @ rng.normal(size=(N, d1)), 0)
        hidden = hidden * (np.linalg.norm(hidden, axis=0) < t)
        least.append(float(np.linalg.eigvalsh(hidden @ hidden.T)[0]) / ((1 - epsilon) * d1 * smallest) - 1)
    return event(np.array(least) > 0, least)


def equation_44(rng: np.random.Generator) -> Outcome:
    """The constant c of (44) is the exponent of (43) at epsilon = 1/2."""
    size = rng.uniform(1, 50)
    return equal((math.exp(-0.5) / math.sqrt(0.5)) ** size, math.exp(-0.5 * (1 - math.log(2)) * size))


def _law_before_44(rng: np.random.Generator, power: int) -> Outcome:
    """E H_t H_t^T = beta_w^2 d1 G_t asks for columns W_j of covariance beta_w^2 I; printed is beta_w I. The scale of
    E relu(XW_j) relu(XW_j)^T, from draws.
    """
    X, beta = np.eye(3), rng.uniform(0.3, 0.6)
    columns = np.maximum(X @ rng.normal(size=(3, 100_000)) * math.sqrt(beta**power), 0)
    return equal(np.sum(columns**2) / columns.shape[1], beta**2 * np.trace(gram.gram(X)), 0.03)


def _last_display_of_c1(rng: np.random.Generator, denominator: float) -> Outcome:
    """-c d1 lambda / (2 t^2) with t of (41), and what the last display makes of it."""
    d1, smallest, norm = rng.uniform(10, 1e4), rng.uniform(0.01, 1), rng.uniform(1, 4)
    c, logarithm = 0.5 * (1 - math.log(2)), max(1.0, math.log(12 * norm**2 / smallest))
    return equal(
        -c * d1 * smallest / (2 * 4 * norm**2 * logarithm), -c * d1 * smallest / (denominator * norm**2 * logarithm)
    )


CHECKS: Checks = {
    "definition-g": Check(definition_g),
    "lemma-c1": Check(lemma_c1_printed, math.exp(-_PSI)),
    "lemma-c1-repaired": Check(lemma_c1, math.exp(-_PSI)),
    "equation-30": Check(equation_30),
    "equation-31": Check(equation_31),
    "lemma-c2": Check(lemma_c2),
    "equation-33": Check(equation_33),
    "equation-34": Check(equation_34),
    "equation-35": Check(equation_35),
    "equation-36": Check(lambda rng: _equation_36(1)),
    "equation-36-repaired": Check(lambda rng: _equation_36(int(rng.integers(2, 14)))),
    "equation-37": Check(equation_37),
    "lemma-c3": Check(lemma_c3),
    "theorem-4-3-concentration": Check(lambda rng: _concentration(rng, repaired=False)),
    "theorem-4-3-concentration-repaired": Check(lambda rng: _concentration(rng, repaired=True)),
    "equation-39": Check(equation_39),
    "equation-40": Check(equation_40, 0.5),
    "theorem-4-3-last-display": Check(lambda rng: _last_display_of_4_3(rng, printed=True), is_arithmetic=True),
    "theorem-4-3-last-display-repaired": Check(
        lambda rng: _last_display_of_4_3(rng, printed=False), is_arithmetic=True
    ),
    "lemma-c1-proof-tail": Check(lambda rng: _tail(rng, repaired=False), 0.2),
    "lemma-c1-proof-tail-repaired": Check(lambda rng: _tail(rng, repaired=True), 0.2),
    "equation-41": Check(equation_41),
    "equation-42": Check(lambda rng: _equation_42(rng, repaired=False)),
    "equation-42-repaired": Check(lambda rng: _equation_42(rng, repaired=True)),
    "equation-43": Check(equation_43, 0.5),
    "equation-44": Check(equation_44, is_arithmetic=True),
    "equation-44-law": Check(lambda rng: _law_before_44(rng, 1)),
    "equation-44-law-repaired": Check(lambda rng: _law_before_44(rng, 2)),
    "lemma-c1-last-display": Check(lambda rng: _last_display_of_c1(rng, 4), is_arithmetic=True),
    "lemma-c1-last-display-repaired": Check(lambda rng: _last_display_of_c1(rng, 8), is_arithmetic=True),
}
