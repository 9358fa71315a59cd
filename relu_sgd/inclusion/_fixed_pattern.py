"""The inclusion while its pattern is fixed: which preactivations are active, and which are held at 0 on the lines of
their rows.

Samples whose rows are positive multiples of one row act as one sample, and those on the other side of the same line
through the origin share its kink: per neuron one surface, and one multiplier. In a fixed pattern theta' is a
polynomial of theta, so Taylor's series of the solution follows from a recursion. The pattern lasts as long as its
margins are positive, which are smooth too.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from relu_sgd.clarke.hull import rays
from relu_sgd.inclusion._kink_faces import Field, projection

__all__ = ["Mode", "Series", "TrainingLines", "training_lines"]

_ORDER = 30


class TrainingLines(NamedTuple):
    """The training set with one row for every direction, and the lines through the origin that the rows lie on.

    Attributes:
      X, Y: M x d0 and M x d2, M <= N: X_i = a_i u with a_i > 0 for i in a group becomes sqrt(sum a_i^2) u, with the
        label sum a_i Y_i / sqrt(sum a_i^2). The loss changes by a constant. Without rows that are 0.
      line, orientation: M, the line of each row, and whether it points along (1) or against (-1) its unit vector.
      units: L x d0.
      sample_line, sample_orientation: N, the same for the samples; orientation 0 for rows that are 0.
    """

    X: Float[np.ndarray, "M d0"]
    Y: Float[np.ndarray, "M d2"]
    line: Int[np.ndarray, " M"]
    orientation: Int[np.ndarray, " M"]
    units: Float[np.ndarray, "L d0"]
    sample_line: Int[np.ndarray, " N"]
    sample_orientation: Int[np.ndarray, " N"]

    def field(self, c: Float[np.ndarray, " M"], sides: Int[np.ndarray, " L"]) -> Field:
        """The velocities of one neuron about a point on the lines with side 0, from its coefficients c_ij."""
        pulls = c[:, None] * self.X
        along = np.einsum("ia,ia->i", pulls, self.units[self.line])
        at = sides == 0
        above, below = (
            np.bincount(self.line, np.where(self.orientation == sign, along, 0), len(sides))[at] for sign in (1, -1)
        )
        return Field(self.units[at], above, below, (sides[self.line] * self.orientation > 0) @ pulls)


def training_lines(X: Float[np.ndarray, "N d0"], Y: Float[np.ndarray, "N d2"]) -> TrainingLines:
    """Of a training set; rows count as parallel up to rounding."""
    lengths = np.linalg.norm(X, axis=1)
    units = np.zeros((0, X.shape[1]))
    line, orientation = np.zeros(len(X), int), np.zeros(len(X), int)
    for i in np.flatnonzero(lengths > 0):
        unit = X[i] / lengths[i]
        for sign in (1, -1):
            same = np.flatnonzero(np.linalg.norm(units - sign * unit, axis=1) <= 16 * np.finfo(float).eps)
            if len(same) and not orientation[i]:
                line[i], orientation[i] = same[0], sign
        if not orientation[i]:
            line[i], orientation[i] = len(units), 1
            units = np.concatenate([units, unit[None]])
    groups = sorted({(int(line[i]), int(orientation[i])) for i in np.flatnonzero(orientation)})
    rows, labels = np.zeros((len(groups), X.shape[1])), np.zeros((len(groups), Y.shape[1]))
    for row, (number, sign) in enumerate(groups):
        members = (line == number) & (orientation == sign)
        size = np.linalg.norm(lengths[members])
        rows[row] = sign * size * units[number]
        labels[row] = lengths[members] @ Y[members] / size
    row_line, row_orientation = np.array(groups, int).reshape(-1, 2).T
    return TrainingLines(rows, labels, row_line, row_orientation, units, line, orientation)


class Series(NamedTuple):
    """Taylor's coefficients of the solution in a mode, as functions of t / unit.

    Attributes:
      W, V: (order + 1) x d0 x d1, (order + 1) x d1 x d2.
      C: (order + 1) x M x d1, c_ij = <E_i, V_j>.
      unit: a time.
    """

    W: np.ndarray
    V: np.ndarray
    C: np.ndarray
    unit: float

    def window(self) -> float:
        """How long the series may be summed: until its last terms are as large as what rounding leaves
        of each neuron.
        """
        terms = np.linalg.norm(self.W, axis=1) + np.linalg.norm(self.V, axis=2)  # (order + 1) x d1
        window = np.inf
        for k in (len(terms) - 2, len(terms) - 1):
            present = terms[k] > 0
            window = min([window, *(1e-17 * terms[0] / np.where(present, terms[k], 1))[present] ** (1 / k)])
        return window * self.unit

    def at(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """W and V after a time t."""
        powers = (t / self.unit) ** np.arange(len(self.W))
        return np.tensordot(powers, self.W, 1), np.tensordot(powers, self.V, 1)

    def squared_speeds(self, times: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        """||theta'||^2."""
        k = np.arange(1, len(self.W))
        powers = k / self.unit * (times[:, None] / self.unit) ** (k - 1)
        return sum(np.sum((powers @ terms[1:].reshape(len(k), -1)) ** 2, axis=1) for terms in (self.W, self.V))


class Mode:
    """A fixed pattern of L x d1 sides: 1 or -1, or 0 for a line that a neuron is held on.

    Attributes:
      margin_neurons: the neuron of each margin. All margins are positive inside the mode: the distances from 0 of what
        is not held; and for a held neuron, the growth of the loss along every ray by which it could let go.
      is_watched: whether the margins tell when the mode ends; they do not for a neuron that has too many rays.
    """

    def __init__(self, lines: TrainingLines, sides: np.ndarray, both: bool, before: "Mode | None" = None) -> None:
        """A mode, which takes over from another one what they have in common."""
        self.lines, self.sides, self.both = lines, sides, both
        self.active = (sides[lines.line] * lines.orientation[:, None] > 0).astype(float)
        unchanged = (sides == before.sides).all(axis=0) if before else np.zeros(sides.shape[1], bool)
        self._faces: list[tuple[np.ndarray, np.ndarray | None]] = [
            before._faces[j] if before and unchanged[j] else self._face(j) for j in range(sides.shape[1])
        ]
        self.projections = np.array([along for along, _ in self._faces])
        self.is_watched = all(growth is not None for _, growth in self._faces)
        self.loose = np.argwhere(sides)
        growing = [j for j, (_, growth) in enumerate(self._faces) for _ in range(0 if growth is None else len(growth))]
        self.margin_neurons = np.array([*self.loose[:, 1], *growing], int)

    def _face(self, j: int) -> tuple[np.ndarray, np.ndarray | None]:
        """d0 x d0, the projection onto the face that holds a neuron; rays x M, what each c_ij adds to the growth along
        a ray.
        """
        X, orientation = self.lines.X, self.lines.orientation
        held = self.lines.units[self.sides[:, j] == 0]
        if not len(held):
            return np.eye(X.shape[1]), np.zeros((0, len(X)))
        directions, lengths = rays(held), np.linalg.norm(X, axis=1)
        at = self.sides[self.lines.line, j] == 0
        if directions is not None:
            products = directions @ X.T
            return projection(held), -products * np.where(at, products > 1e-9 * lengths, self.active[:, j])
        if not self.active[:, j].any() and (orientation[at] > 0).all():
            # It rests at W_j = 0, and does so at least as long as no c_ij is positive.
            return projection(held), -np.diag(lengths)[at]
        return projection(held), None

    def hidden(self, W: np.ndarray) -> np.ndarray:
        """M x d1."""
        return self.active * (self.lines.X @ W)

    def series(self, W: np.ndarray, V: np.ndarray, order: int = _ORDER) -> Series:
        """Taylor's series of the solution that stays in this mode."""
        X, Y = self.lines.X, self.lines.Y
        hidden = np.zeros((order + 1, *self.active.shape))
        E, C = np.zeros((order + 1, *Y.shape)), np.zeros((order + 1, *self.active.shape))
        Ws, Vs = np.zeros((order + 1, *W.shape)), np.zeros((order + 1, *V.shape))
        Ws[0], Vs[0] = W, V
        largest = np.linalg.norm
        hidden[0] = self.hidden(W)
        error = largest(Y - hidden[0] @ V)
        rate = largest(X) ** 2 * largest(V) ** 2 + (largest(hidden[0]) ** 2 + largest(X) * error if self.both else 0)
        unit = 1 / float(rate) if 0 < rate < np.inf else 1.0
        for k in range(order + 1):
            hidden[k] = self.hidden(Ws[k])
            if self.both:
                E[k] = -np.einsum("kij,kja->ia", hidden[: k + 1], Vs[k::-1])
                E[0] += Y if k == 0 else 0
                C[k] = np.einsum("kia,kja->ij", E[: k + 1], Vs[k::-1])
            else:
                E[k] = (Y if k == 0 else 0) - hidden[k] @ V
                C[k] = E[k] @ V.T
            if k == order:
                break
            free = X.T @ (self.active * C[k])
            Ws[k + 1] = unit / (k + 1) * np.einsum("jab,bj->aj", self.projections, free)
            if self.both:
                Vs[k + 1] = unit / (k + 1) * np.einsum("kij,kia->ja", hidden[: k + 1], E[k::-1])
        return Series(Ws, Vs, C, unit)

    def margins(self, series: Series) -> np.ndarray:
        """Their Taylor coefficients, (order + 1) x margins."""
        line, neuron = self.loose.T
        distances = np.einsum(
            "mb,kbm->km", self.lines.units[line] * self.sides[line, neuron][:, None], series.W[:, :, neuron]
        )
        growths = [series.C[:, :, j] @ growth.T for j, (_, growth) in enumerate(self._faces) if growth is not None]
        return np.concatenate([distances, *growths], axis=1)

    def sizes(self, W: np.ndarray, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What margins compare with: d1, of neurons' weights; margins, those or velocities."""
        X, Y = self.lines.X, self.lines.Y
        neurons = np.sqrt(np.sum(W**2, axis=0) + np.sum(V**2, axis=1))
        reach = np.abs(Y).max(initial=0) + np.abs(X @ W).max(initial=0) * np.abs(V).sum(initial=0)
        velocities = neurons * reach * np.linalg.norm(X, axis=1).sum()
        of_growth = velocities[self.margin_neurons[len(self.loose) :]]
        return neurons, np.concatenate([neurons[self.loose[:, 1]], of_growth])
