"""What people see of a sample and a forecast, as text on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfbatch.cli.text import bold, facts, out
from hfbatch.words import clock, count, duration

if TYPE_CHECKING:
    from hfbatch.forecast import Forecast
    from hfbatch.sample import Look

_BAR = 30  # signs of the longest bar


def ahead(look: Look, forecast: Forecast | None, cost_per_hour: float | None) -> None:
    """A sample, and what it says of the run."""
    share = "all that there are" if look.tokens_spread == 0 and look.rows_read else "drawn evenly from what is to do"
    state = f"{count(look.rows_to_do, 'row')}; {look.rows_skipped:,} are committed, and skipped"
    rows = [
        ("sample", f"{count(look.rows, 'row')}, {share}"),
        ("to do", state),
        ("tokens", _tokens(look)),
        ("lengths", lengths(look.token_lengths)),
        ("truncated", "this task cuts no text" if look.truncated_share is None else f"{look.truncated_share:.1%}"),
        ("duplicates", f"{look.duplicate_share:.1%} of the sample's inputs were there before"),
        ("errors", ", ".join(f"{code} {rows:,}" for code, rows in look.errors.items()) or "none before the model"),
        ("padding", _padding(look, forecast)),
        *_forecast(forecast, cost_per_hour),
    ]
    out("\n" + bold("a look ahead") + "\n" + facts(rows))


def ahead_as_data(look: Look, forecast: Forecast | None) -> dict[str, Any]:
    """The same as plain data."""
    return {"sample": look.model_dump(), "forecast": forecast.model_dump() if forecast else None}


def _tokens(look: Look) -> str:
    spread = f" (95% sure: {look.tokens_spread:,} more or less)" if look.tokens_spread else ""
    each = f"{look.tokens_mean:,.1f} in the mean, {look.tokens_median:,.0f} median, {look.tokens_longest:,} longest"
    return f"{look.tokens:,} in all{spread}; {each}"


def lengths(bins: list[int]) -> str:
    """A bar a line: how many sequences have so many tokens."""
    highest = max(bins, default=0)
    if not highest:
        return "none"
    edges = [1 << power for power in range(len(bins))]
    names = [f"{low // 2 + 1:,} to {low:,}" if low > 2 else f"{low}" for low in edges]
    names[15:] = [f"over {1 << 14:,}"] * len(names[15:])
    wide = max(map(len, names))
    first = next(number for number, rows in enumerate(bins) if rows)
    lines = [
        f"{name:>{wide}}  {'#' * -(-rows * _BAR // highest):<{_BAR}}  {rows:,} ({rows / sum(bins):.1%})"
        for name, rows in zip(names[first:], bins[first:], strict=True)
    ]
    return "\n".join(lines)


def _padding(look: Look, forecast: Forecast | None) -> str:
    if look.padding_naive is None or look.padding_budget is None:
        return "none: inputs of this task have one shape"
    naive = f"{look.padding_naive:.1%} in batches of 32 in arrival order"
    mine = f"{look.padding_budget:.1%} in batches of {look.batch_tokens:,} tokens, as hfbatch cuts them"
    layout = forecast.layout if forecast else ""
    packed = "0% in this model's layers, which are packed" if layout.startswith("packed") else ""
    return "; ".join(filter(None, (naive, mine, packed or ("" if layout else "0% where layers can be packed"))))


def _forecast(forecast: Forecast | None, cost_per_hour: float | None) -> list[tuple[str, str]]:
    if forecast is None:
        return [("time", "not known: nothing to do, or nothing was timed")]
    measured = "measured with one actor" if forecast.source == "trial" else f"as in {forecast.source}"
    split = f"start {forecast.start_s:.1f} s, then {forecast.tokens_per_s:,.0f} tokens/s, {measured}"
    spread = f", {duration(forecast.spread_s)} more or less by the tokens" if forecast.spread_s else ""
    told = [("time", f"about {_span(forecast.seconds)}{spread}: {split}")]
    if forecast.cost is not None and cost_per_hour is not None:
        told.append(("cost", f"about {forecast.cost:,.4g}, at {cost_per_hour:,g} an hour"))
    return told


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else clock(seconds)
