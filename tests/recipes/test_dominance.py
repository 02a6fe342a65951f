from hypothesis import given
from hypothesis import strategies as st

from recipes.common.dominance import Point, beaten_by, best_beater, count_beaten, front

points = st.lists(
    st.builds(Point, st.just("p"), st.integers(0, 5).map(float), st.integers(0, 5).map(float)), min_size=1, max_size=8
)


@given(points)
def test_every_point_is_on_the_front_or_beaten_by_a_point_of_it(some):
    best = front(some)
    assert best
    for point in some:
        assert point in best or beaten_by(point, best)
    scores = [point.score for point in best]
    assert scores == sorted(scores)


def test_equal_points_beat_each_other_in_nothing():
    one = Point("one", 1.0, 1.0)
    assert not beaten_by(one, [one, Point("same", 1.0, 1.0)])
    assert best_beater(one, [Point("worse", 2.0, 2.0)]) is None


def test_counts_are_by_curve():
    curve = [Point("a", 1.0, 1.0), Point("b", 2.0, 2.0)]
    assert count_beaten(curve, [Point("c", 1.0, 2.0)]) == 2
    assert count_beaten(curve, [Point("d", 3.0, 9.0)]) == 0
