"""Runs that are killed at random moments, other ones each day; `make faults` has many more of them."""

import pytest

from tests.conftest import INNER, ROOT, run


@pytest.mark.slow
def test_killed_at_random_moments_runs_go_on_to_the_same_end(warm_python: str) -> None:
    done = run(warm_python, "tests/kills.py", str(INNER), "14", "0", cwd=ROOT)  # two of each kind
    assert done.returncode == 0, done.stdout + done.stderr
