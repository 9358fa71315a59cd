"""An independent float64 reference in NumPy: written from the paper's formulas, sharing no code with `relu_sgd`."""

import math

import numpy as np


def forward(W, V, X):
    """Preactivations Z, hidden layer H and predictions, one sample and one neuron at a time where it matters."""
    Z = np.einsum("ik,kj->ij", X, W)
    H = np.where(Z > 0, Z, 0.0)
    return Z, H, np.einsum("ij,ja->ia", H, V)


def half_sum(W, V, X, Y):
    """L = 1/2 ||Y - Yhat||_F^2."""
    return 0.5 * math.fsum(((Y - forward(W, V, X)[2]) ** 2).ravel())


def gradients(W, V, X, Y, at_zero):
    """Lemma A.4 with the slope `at_zero` at the kinks: the gradients of L with respect to W and V."""
    Z, H, predictions = forward(W, V, X)
    error = Y - predictions
    slope = np.where(Z > 0, 1.0, np.where(Z < 0, 0.0, at_zero))
    gradient_W = np.zeros_like(W)
    for j in range(W.shape[1]):
        gradient_W[:, j] = -X.T @ (slope[:, j] * (error @ V[j]))
    return gradient_W, -H.T @ error


def descend(
    W,
    V,
    X,
    Y,
    *,
    num_steps,
    learning_rate,
    momentum=0.0,
    normalization="half_sum",
    trained_layers="both",
    at_zero=0.0,
    tolerance=None,
    stop="never",
    batches=None,
):
    """Heavy-ball SGD, v <- momentum v + g, theta <- theta - learning_rate v; `batches[k]` are the samples of step k.

    Returns W, V, the number of steps made, and the first step at which the relative error was below `tolerance` (-1).
    """
    W, V = W.copy(), V.copy()
    velocity_W, velocity_V = np.zeros_like(W), np.zeros_like(V)
    converged_at = -1
    for k in range(num_steps + 1):
        error = np.sqrt(2 * half_sum(W, V, X, Y)) / np.sqrt((Y**2).sum())
        if tolerance is not None and error < tolerance:
            converged_at = k if converged_at < 0 else converged_at
            if stop == "first_passage":
                return W, V, k, converged_at
        if k == num_steps:
            break
        batch = slice(None) if batches is None else batches[k]
        x, y = X[batch], Y[batch]
        slope = at_zero[batch] if np.ndim(at_zero) else at_zero
        gradient_W, gradient_V = gradients(W, V, x, y, slope)
        if normalization == "mean":
            gradient_W, gradient_V = (2 / y.size * gradient for gradient in (gradient_W, gradient_V))
        velocity_W = momentum * velocity_W + gradient_W
        W = W - learning_rate * velocity_W
        if trained_layers == "both":
            velocity_V = momentum * velocity_V + gradient_V
            V = V - learning_rate * velocity_V
    return W, V, num_steps, converged_at


def jacobian(W, V, X, at_zero=0.0, trained_layers="both"):
    """DY as an explicit matrix: row i d2 + a is the gradient of output a of sample i."""
    Z, H, predictions = forward(W, V, X)
    slope = np.where(Z > 0, 1.0, np.where(Z < 0, 0.0, at_zero))
    rows = []
    for i in range(X.shape[0]):
        for a in range(V.shape[1]):
            by_W = np.outer(X[i], slope[i] * V[:, a])
            by_V = np.zeros_like(V)
            by_V[:, a] = H[i]
            rows.append(np.concatenate([by_W.ravel(), by_V.ravel()] if trained_layers == "both" else [by_W.ravel()]))
    return np.stack(rows)
