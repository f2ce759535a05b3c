"""How many rows may fail before a run is no success: the job's `errors:` section, applied."""

from __future__ import annotations

from collections.abc import Iterable

from hfbatch.errors import ErrorBudgetExceeded
from hfbatch.records import Receipt
from hfbatch.spec import ErrorsSpec

JUDGED_FROM = 1000  # rows: a fraction of fewer says little


class Budget:
    """How many rows may fail."""

    def __init__(self, errors: ErrorsSpec) -> None:
        self.errors = errors

    def exceeded(self, rows: int, failed: int, final: bool) -> str | None:
        """Why `failed` of `rows` are too many, or None. Before the end a fraction is judged from 1,000 rows on."""
        if self.errors.max_failed_rows is not None and failed > self.errors.max_failed_rows:
            return f"{failed:,} rows failed, errors.max_failed_rows is {self.errors.max_failed_rows:,}"
        if rows and (final or rows >= JUDGED_FROM) and failed / rows > self.errors.max_failed_fraction:
            allowed = self.errors.max_failed_fraction
            return f"{failed:,} of {rows:,} rows failed ({failed / rows:.2%}), errors.max_failed_fraction is {allowed}"
        return None

    def judge(self, receipts: Iterable[Receipt]) -> ErrorBudgetExceeded | None:
        """The final verdict on all committed rows."""
        receipts = list(receipts)
        rows, failed = sum(receipt.rows for receipt in receipts), sum(receipt.failed for receipt in receipts)
        reason = self.exceeded(rows, failed, final=True)
        if reason is None:
            return None
        codes = sorted({code for receipt in receipts for code in receipt.errors})
        return ErrorBudgetExceeded(
            f"{reason}; codes: {', '.join(codes)}. The rows are committed with their `error`; to accept them, raise "
            "the budget and run again (nothing is inferred twice)"
        )
