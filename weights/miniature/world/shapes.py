"""The two shapes that everything alive is built of: blobs (ellipses) and limbs (chains of capsules).

Body units: the origin lies between the feet, x runs forward, y runs up, and a dog is about 1 unit long.
Every shape comes three times: as it is; grown by `RIM`, which is painted first and leaves an outline; and
its lit core, narrower and a little higher, which gives a body its roundness.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

RIM = 0.032
_CORE, _LIFT = 0.74, 0.16  # the lit core's size and how far it is raised, as shares of the radius
_FULL_TURN = np.linspace(0.0, 2 * np.pi, 24, endpoint=False)
_HALF_TURN = np.linspace(-np.pi / 2, np.pi / 2, 8)


@dataclass(frozen=True)
class Part:
    """A shape in one tone, as polygons of shape (points, 2) in body units."""

    tone: str
    polygons: tuple[np.ndarray, ...]
    grown: tuple[np.ndarray, ...]
    core: tuple[np.ndarray, ...]


def blob(tone: str, x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> Part:
    """An ellipse around (x, y) with half-axes rx and ry, tilted by `tilt` degrees towards up."""

    def ellipse(rx: float, ry: float, lift: float = 0.0) -> tuple[np.ndarray, ...]:
        outline = np.stack([rx * np.cos(_FULL_TURN), ry * np.sin(_FULL_TURN)], axis=1)
        return (placed(outline, x, y + lift, tilt),)

    core = ellipse(_CORE * rx, _CORE * ry, lift=_LIFT * min(rx, ry))
    return Part(tone, ellipse(rx, ry), ellipse(rx + RIM, ry + RIM), core)


def limb(tone: str, *joints: tuple[float, float, float]) -> Part:
    """A rounded limb through the joints (x, y, radius), bent smoothly where there are three or more."""
    chain = _smooth(np.array(joints, dtype=float))
    grown, core = chain.copy(), chain.copy()
    grown[:, 2] += RIM
    core[:, 1] += _LIFT * chain[:, 2]
    core[:, 2] *= _CORE
    return Part(tone, _capsules(chain), _capsules(grown), _capsules(core))


def placed(points: np.ndarray, x: float, y: float, tilt: float) -> np.ndarray:
    """The points (n, 2), turned by `tilt` degrees about the origin and then moved by (x, y)."""
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    return points @ np.array([[c, s], [-s, c]]) + (x, y)


def part_at(part: Part, x: float, y: float, tilt: float) -> Part:
    """The part, turned and moved: how a head is put on its neck."""
    outlines = (part.polygons, part.grown, part.core)
    return Part(part.tone, *(tuple(placed(polygon, x, y, tilt) for polygon in each) for each in outlines))


def _smooth(joints: np.ndarray, steps: int = 4) -> np.ndarray:
    """A Catmull-Rom curve through the joints, (n, 3) to (steps * (n - 1) + 1, 3); two joints stay a line."""
    if len(joints) < 3:
        return joints
    p = np.concatenate([joints[:1], joints, joints[-1:]])
    t = (np.arange(steps) / steps)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True)
    ]
    return np.concatenate([*pieces, joints[-1:]])


def _capsules(chain: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(_capsule(a, b) for a, b in pairwise(chain))


def _capsule(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The outline around two discs (x, y, radius): half a circle behind a, half a circle ahead of b."""
    direction = np.arctan2(b[1] - a[1], b[0] - a[0])
    ends = [(a, direction + np.pi + _HALF_TURN), (b, direction + _HALF_TURN)]
    return np.concatenate([r * np.stack([np.cos(t), np.sin(t)], axis=1) + (x, y) for (x, y, r), t in ends])
