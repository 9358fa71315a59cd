"""Gradient descent against the differential inclusion: Theorem 5.5."""
