"""500 random problems: solved and certified or reported; gradients right or flagged."""

from tests import fuzz

# Seeds that once failed: (family seed, n, m, T) and the member. None so far.


def test_no_gradient_is_silently_wrong():
    tally = fuzz.run(problems=500, seed=0, family_count=3)
    assert tally.problems >= 500
    assert tally.solved >= 0.85 * tally.problems, tally
    assert tally.trusted_and_decided >= 0.6 * tally.problems, tally
    assert not [offender for offender in tally.offenders if offender[-1]], tally.offenders
    assert tally.trusted_and_right >= 0.999 * tally.trusted_and_decided, tally.offenders


def test_the_fuzzer_can_fail():
    """A gradient off by 10 % in one direction is seen, and is an offence unless flagged."""
    import numpy as np

    slopes = np.array([[1.0, 2.0, 3.0], [1.0, 2.2, 3.0], [1.0, 2.2, 3.0]])
    differenced = np.repeat(np.array([[1.0, 2.0, 3.0]])[:, :, None], len(fuzz.STEPS), axis=2)
    differenced = np.repeat(differenced, 3, axis=0)
    solved = np.ones(3, bool)
    judged = fuzz._compare(slopes, differenced, solved, np.array([True, True, False]))
    tally = fuzz.Tally()
    tally.add(fuzz.families(1, 0)[0], judged)
    assert [index for _, index, *_ in tally.offenders] == [1]
    assert (tally.wrong, tally.wrong_and_flagged) == (2, 1)
