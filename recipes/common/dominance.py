"""Which points another point beats: less cost and a better score."""

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A network with what it costs and how well it does; a lower cost and a higher score are better."""

    name: str
    cost: float
    score: float


def beaten_by(point: Point, others: Sequence[Point]) -> list[Point]:
    """Return the points that cost no more and score at least as well, and are better in one of the two."""
    return [
        other for other in others if other.cost <= point.cost and other.score >= point.score and other[1:] != point[1:]
    ]


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point beats, by rising cost."""
    return sorted((point for point in points if not beaten_by(point, points)), key=lambda point: point.cost)


def best_beater(point: Point, others: Sequence[Point]) -> Point | None:
    """Return, of those that beat a point, the one with the best score; None if there is none."""
    return max(beaten_by(point, others), key=lambda other: (other.score, -other.cost), default=None)


def count_beaten(curve: Sequence[Point], rival: Sequence[Point]) -> int:
    """Return how many points of a curve another curve beats with one of its own."""
    return sum(bool(beaten_by(point, rival)) for point in curve)
