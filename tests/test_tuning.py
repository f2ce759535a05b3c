"""Budgets found by timing batches, on a clock that the test winds."""

import math

from hypothesis import given
from hypothesis import strategies as st

from hfbatch.tuning import CALM, ROUNDS, WARM, TokenBudget


def run(budget, seconds_a_token, batches=200, share=1.0):
    """Batches as full as `share` of what is asked for, on a machine whose speed depends on the size."""
    asked = []
    for _ in range(batches):
        size = budget.tokens
        asked.append(size)
        tokens = max(1, int(size * share))
        budget.ran(tokens, tokens * seconds_a_token(size))
    return asked


def test_the_fastest_size_is_found_and_kept():
    budget = TokenBudget(2048, [1024, 4096])
    asked = run(budget, lambda size: {1024: 0.9, 2048: 1.0, 4096: 1.3}[size])
    assert budget.settled
    assert set(asked[WARM + 3 * ROUNDS :]) == {1024}
    assert set(asked) == {1024, 2048, 4096}


def test_a_gain_that_noise_could_make_leaves_the_default():
    budget = TokenBudget(2048, [1024, 4096])
    run(budget, lambda size: {1024: 0.98, 2048: 1.0, 4096: 0.99}[size])
    assert (budget.settled, budget.tokens) == (True, 2048)


def test_one_slow_batch_decides_nothing():
    hits = iter(range(1000))
    budget = TokenBudget(2048, [1024, 4096])
    run(budget, lambda size: (50 if next(hits) == WARM + 1 else 1) * {1024: 0.9, 2048: 1.0, 4096: 1.3}[size])
    assert budget.tokens == 1024


def test_batches_that_are_not_full_say_nothing_about_a_size():
    budget = TokenBudget(2048, [1024, 4096])
    asked = run(budget, lambda size: size, share=0.5)
    assert (budget.settled, set(asked)) == (False, {2048})


def test_a_size_for_which_there_is_no_memory_is_not_tried():
    budget = TokenBudget(2048, [1024, 4096], fits=lambda size: size < 4096)
    assert 4096 not in run(budget, lambda size: 1 / size)
    assert budget.settled


def test_without_other_sizes_the_budget_is_what_it_is():
    budget = TokenBudget(300)
    assert (budget.settled, set(run(budget, lambda size: 1.0))) == (True, {300})


def test_running_out_of_memory_halves_what_was_tried_and_it_grows_back_slowly():
    budget = TokenBudget(2048)
    budget.ran_out(2000)
    assert budget.tokens == 1000
    asked = run(budget, lambda size: 1.0, batches=CALM * 5)
    assert asked[: CALM - 1] == [1000] * (CALM - 1)
    assert asked == sorted(asked)
    assert asked[CALM] == 1251
    assert asked[-1] == budget.tokens == 2048


def test_running_out_while_sizes_are_tried_ends_the_search():
    budget = TokenBudget(2048, [1024, 4096])
    run(budget, lambda size: 1.0, batches=WARM + 2)
    budget.ran_out(4096)
    assert (budget.settled, budget.tokens) == (True, 2048)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 10**6)), max_size=60))
def test_there_is_always_room_for_something(events):
    budget = TokenBudget(2048, [1024, 4096])
    for ran, tokens in events:
        budget.ran(tokens, 1e-9) if ran else budget.ran_out(tokens)
        assert 1 <= budget.tokens <= 10**6
        assert math.isfinite(budget.tokens)
