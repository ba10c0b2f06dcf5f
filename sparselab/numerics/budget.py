"""How to spend a number of zeros among things that each lose something by them."""

from collections.abc import Hashable, Sequence
from itertools import pairwise

Point = tuple[float, float]  # zeros, and the loss that they cost


def allocate_budget(curves: dict[Hashable, list[Point]], budget: float) -> dict[Hashable, float]:
    """Zeros of each, `budget` in all, of least total loss; curves: (zeros, loss) by key, zeros
    increasing.

    Each curve is replaced by its lower convex hull. On hulls the best choice takes segments in the
    order of their slopes, the price of one more zero, whatever they belong to; the last one in
    part. That price is the Lagrange multiplier.
    """
    zeros = {key: points[0][0] for key, points in curves.items()}
    left = budget - sum(zeros.values())
    segments = []
    for place, (key, points) in enumerate(curves.items()):
        for low, high in pairwise(lower_hull(points)):
            segments.append((slope(low, high), low[0], place, high[0] - low[0], key))
    for *_, width, key in sorted(segments, key=lambda one: one[:3]):
        zeros[key] += (part := min(width, left))
        left -= part
    return zeros


def lower_hull(points: Sequence[Point]) -> list[Point]:
    """The points (x, y), x increasing, that no line between two others passes below or through."""
    hull: list[Point] = []
    for point in points:
        while len(hull) > 1 and slope(hull[-2], hull[-1]) >= slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def slope(low: Point, high: Point) -> float:
    """Loss for a zero between two points."""
    return (high[1] - low[1]) / (high[0] - low[0])
