import pytest

from hfbatch.budget import JUDGED_FROM, Budget
from hfbatch.errors import ErrorBudgetExceeded
from hfbatch.records import Receipt
from hfbatch.spec import ErrorsSpec


@pytest.mark.parametrize(
    ("rows", "failed", "final", "exceeded"),
    [
        (JUDGED_FROM - 1, 900, False, False),  # a fraction of few rows says little
        (JUDGED_FROM - 1, 900, True, True),
        (JUDGED_FROM, 100, False, False),  # exactly what is allowed
        (JUDGED_FROM, 101, False, True),
        (10, 1, True, False),
        (10, 2, True, True),
        (0, 0, True, False),
    ],
)
def test_a_fraction_is_judged_from_a_thousand_rows_on_and_at_the_end(rows, failed, final, exceeded):
    assert (Budget(ErrorsSpec(max_failed_fraction=0.1)).exceeded(rows, failed, final) is not None) == exceeded


@pytest.mark.parametrize(("failed", "exceeded"), [(5, False), (6, True)])
@pytest.mark.parametrize("final", [False, True])
def test_a_number_of_rows_is_judged_at_once(failed, exceeded, final):
    budget = Budget(ErrorsSpec(max_failed_rows=5, max_failed_fraction=1.0))
    assert (budget.exceeded(10, failed, final) is not None) == exceeded


def test_no_row_may_fail_under_a_budget_of_none():
    assert Budget(ErrorsSpec(max_failed_rows=0)).exceeded(10**6, 1, False) == (
        "1 rows failed, errors.max_failed_rows is 0"
    )
    assert Budget(ErrorsSpec(max_failed_fraction=0)).exceeded(10**6, 1, False) is not None
    assert Budget(ErrorsSpec(max_failed_fraction=1)).exceeded(10, 10, True) is None


def receipt(rows, **errors):
    return Receipt("s", "g", "data", rows, 1, "", errors)


def test_the_verdict_counts_all_receipts_and_says_what_to_do():
    budget = Budget(ErrorsSpec(max_failed_fraction=0.05))
    assert budget.judge([receipt(60, null_input=3), receipt(40, too_long=2)]) is None
    error = budget.judge([receipt(60, null_input=3), receipt(40, too_long=3)])
    assert isinstance(error, ErrorBudgetExceeded)
    assert str(error) == (
        "6 of 100 rows failed (6.00%), errors.max_failed_fraction is 0.05; codes: null_input, too_long. The rows are "
        "committed with their `error`; to accept them, raise the budget and run again (nothing is inferred twice)"
    )


def test_an_output_without_rows_is_within_any_budget():
    assert Budget(ErrorsSpec(max_failed_fraction=0, max_failed_rows=0)).judge([]) is None
