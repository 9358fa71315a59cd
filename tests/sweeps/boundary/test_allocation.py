"""Which widths have the next runs: a bracket by doubling, then runs near the boundary, of every sense of success."""

import numpy as np
import pytest

from relu_sgd import Status
from relu_sgd.proofs import Verdict
from sweeps.boundary import allocation
from sweeps.boundary.study import BoundaryStudy

SIZES = allocation.widths(400, 4)


def played(probabilities, first, runs=96, largest=1000):
    """The counts when runs are drawn with these probabilities, a row for every sense of success, and the rounds."""
    generator = np.random.default_rng(0)
    spent = np.zeros(len(SIZES), int)
    successes = np.zeros((len(probabilities), len(SIZES)), int)
    rounds = []
    while spent.sum() + 8 <= runs:
        places = allocation.next_widths(SIZES, successes, spent, 8, first, largest)
        if not places:
            break
        rounds.append([SIZES[place] for place in places])
        for place in places:
            uniform = generator.random(8)
            spent[place] += 8
            successes[:, place] += [int((uniform < row[place]).sum()) for row in probabilities]
    return successes, spent, rounds


def curve(boundary, slope=8.0):
    return 1 / (1 + (boundary / np.array(SIZES, float)) ** slope)


def test_widths_are_even_distinct_and_so_many_a_doubling():
    assert SIZES[0] == 2
    assert all(size % 2 == 0 for size in SIZES)
    assert list(SIZES) == sorted(set(SIZES))
    assert SIZES[-1] >= 400 > SIZES[-2]
    wide = np.array([size for size in SIZES if size >= 32])
    np.testing.assert_allclose(wide[1:] / wide[:-1], 2**0.25, rtol=0.06)


@pytest.mark.parametrize(("boundary", "first"), [(6, 40), (30, 28), (32, 32), (100, 10)])
def test_a_boundary_is_bracketed_by_doubling_and_then_has_the_runs(boundary, first):
    successes, spent, rounds = played([curve(boundary)], first)
    bracket = [sizes for sizes in rounds if len(sizes) == 1]
    assert len(bracket) <= 4 + abs(np.log2(boundary / first))
    near = np.abs(np.log2(np.array(SIZES) / boundary)) < 0.75
    assert spent[near].sum() >= 56
    share = successes[0][spent > 0] / spent[spent > 0]
    assert share.min() <= 0.25
    assert share.max() >= 0.75
    assert 96 <= spent.sum() <= 104


def test_two_senses_of_success_share_the_runs_of_a_row():
    _, spent, _ = played([curve(64), curve(16)], 30, runs=160)
    for boundary in (16, 64):
        assert spent[np.abs(np.log2(np.array(SIZES) / boundary)) < 0.75].sum() >= 48


@pytest.mark.parametrize("row_runs", [64, 72, 96])
def test_a_row_has_at_most_its_runs_and_a_larger_budget_goes_on_with_the_same_ones(row_runs):
    """Of one sense of success and with proofs; made runs succeed by a rule that has a boundary at d1 = 20 or so."""

    def made_by(study, made):
        while units := study.allocate(made, 8):
            for group, cell in units:
                width, seed = study.axes()["d1"][cell[1]], sum(each[:2] == (group, cell) for each in made)
                of = np.random.default_rng([width, seed]).random(8) < 1 / (1 + (20 / width) ** 6)
                found = {"status": np.where(of, Status.CONVERGED, Status.MAX_STEPS_REACHED)}
                made = [*made, (group, cell, found | {"verdict": np.where(of, Verdict.GLOBAL_MINIMUM, 0)})]
        return made

    for prove in (False, True):
        small, large = (
            BoundaryStudy(num_samples=(100,), d0=(8,), prove=prove, row_runs=runs) for runs in (row_runs, 160)
        )
        few, many = made_by(small, []), made_by(large, [])
        assert row_runs - 8 <= 8 * len(few) <= row_runs
        assert 152 <= 8 * len(many) <= 160
        later = made_by(large, few)
        assert [each[:2] for each in later] == [each[:2] for each in many]
        assert small.expected(few, 8) == []


def test_what_never_succeeds_is_looked_for_up_to_the_widest_that_is_allowed():
    for first, largest, widest in ((10, 100, 90), (33, 195, 182)):
        assert widest == max(size for size in SIZES if size <= largest)
        _, spent, _ = played([np.zeros(len(SIZES))], first, largest=largest)
        assert max(size for size, runs in zip(SIZES, spent, strict=True) if runs) == widest
    _, spent, _ = played([np.ones(len(SIZES))], 10)
    assert spent[0] == 8
    assert spent.max() == 8
