"""How long a study's remaining runs will take, from how long the finished ones took."""

from collections.abc import Iterable, Sequence


def time_left(finished: Sequence[tuple[float, float]], ahead: Iterable[float]) -> float:
    """Return the seconds that the runs ahead will take at the pace of the finished ones; NaN before the first one.

    Args:
        finished: (work, seconds) of each finished run, in whatever unit of work.
        ahead: the work of each run ahead.
    """
    work = sum(done for done, _ in finished)
    return sum(ahead) * sum(seconds for _, seconds in finished) / work if work else float("nan")


def told(seconds: float) -> str:
    """Return a duration in words, such as "1 h 05 min"."""
    if seconds != seconds:
        return "an unknown time"
    hours, minutes = divmod(max(round(seconds / 60), 1), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def heading(number: int, total: int, title: str, left: float | None = None) -> str:
    """Return the line that announces a run of a study, with the seconds left if they are given."""
    return f"{number} of {total}: {title}{'' if left is None else f'; {told(left)} left'}"
