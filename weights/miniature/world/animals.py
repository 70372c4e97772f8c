"""The four animals, put together: a head from the table below on a body from `poses`, and a hat that fits."""

from dataclasses import dataclass
from functools import cache

from .poses import POSES, Pose
from .shapes import Part, blob, limb, part_at


@dataclass(frozen=True)
class Layer:
    """Parts that share one outline, and details painted on top of them without any."""

    parts: tuple[Part, ...]
    details: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Head:
    """A head around its own origin, looking along x; `crown` is where a hat sits, `hat` its half-width."""

    back: tuple[Part, ...]
    parts: tuple[Part, ...]
    details: tuple[Part, ...]
    crown: tuple[float, float]
    hat: float


def _eye(x: float, y: float, radius: float = 0.042) -> tuple[Part, ...]:
    return (
        blob("eye", x, y, radius, radius * 1.15),
        blob("shine", x + 0.3 * radius, y + 0.4 * radius, 0.4 * radius, 0.4 * radius),
    )


HEADS = {
    "dog": Head(
        back=(),
        parts=(blob("fur", 0, 0, 0.20, 0.19), limb("fur", (0.08, -0.05, 0.12), (0.25, -0.07, 0.085))),
        details=(
            blob("pale", 0.21, -0.10, 0.12, 0.065),
            blob("eye", 0.325, -0.03, 0.05, 0.043),
            *_eye(0.09, 0.06),
            blob("blush", 0.05, -0.08, 0.045, 0.03),
            limb("dark", (-0.09, 0.12, 0.06), (-0.16, -0.02, 0.085), (-0.15, -0.14, 0.07)),
        ),
        crown=(-0.03, 0.17),
        hat=0.19,
    ),
    "cat": Head(
        back=(),
        parts=(
            blob("fur", 0, 0, 0.22, 0.19),
            limb("fur", (-0.11, 0.08, 0.09), (-0.16, 0.24, 0.018)),
            limb("fur", (0.11, 0.08, 0.09), (0.17, 0.24, 0.018)),
        ),
        details=(
            limb("blush", (-0.125, 0.14, 0.04), (-0.15, 0.20, 0.012)),
            limb("blush", (0.13, 0.14, 0.04), (0.16, 0.20, 0.012)),
            blob("pale", 0.07, -0.09, 0.11, 0.07),
            *_eye(-0.03, 0.02),
            *_eye(0.14, 0.02),
            blob("nose", 0.07, -0.06, 0.03, 0.022),
        ),
        crown=(0.0, 0.17),
        hat=0.17,
    ),
    "giraffe": Head(
        back=(),
        parts=(
            limb("dark", (-0.05, 0.08, 0.022), (-0.07, 0.22, 0.04)),
            limb("dark", (0.03, 0.08, 0.022), (0.03, 0.22, 0.04)),
            limb("fur", (-0.10, 0.04, 0.05), (-0.20, 0.07, 0.03)),
            limb("fur", (0.0, 0.0, 0.135), (0.22, -0.08, 0.095)),
        ),
        details=(
            blob("pale", 0.23, -0.09, 0.085, 0.08),
            blob("eye", 0.27, -0.06, 0.018, 0.018),
            *_eye(0.06, 0.03),
            blob("blush", 0.09, -0.07, 0.04, 0.028),
        ),
        crown=(-0.04, 0.14),
        hat=0.16,
    ),
    "bird": Head(
        back=(limb("beak", (0.10, -0.02, 0.075), (0.27, -0.05, 0.015)),),
        parts=(blob("fur", 0, 0, 0.18, 0.175),),
        details=(*_eye(0.07, 0.04), blob("blush", 0.05, -0.07, 0.045, 0.03)),
        crown=(-0.05, 0.15),
        hat=0.17,
    ),
}

SIZES = {"dog": 0.42, "cat": 0.42, "giraffe": 0.40, "bird": 0.46}


@cache
def body(animal: str, posture: str) -> tuple[Layer, ...]:
    """The animal's layers in body units, in the order they are painted."""
    pose, head = POSES[animal][posture], HEADS[animal]
    return (
        Layer(pose.far),
        Layer(pose.near, pose.details),
        *((Layer(pose.front),) if pose.front else ()),
        Layer(_on_neck(head.back, pose)),
        Layer(_on_neck(head.parts, pose), _on_neck(head.details, pose)),
    )


@cache
def hat(animal: str, posture: str) -> tuple[Layer, ...]:
    """The red hat on the animal's crown, in the animal's body units."""
    head = HEADS[animal]
    x, y, w = *head.crown, head.hat
    parts = (
        limb("hat", (x - 0.10 * w, y + 0.55 * w, 0.55 * w), (x - 0.18 * w, y + 0.85 * w, 0.48 * w)),
        blob("hat", x, y + 0.05, 1.15 * w, 0.05),
    )
    band = (limb("band", (x - 0.7 * w, y + 0.115, 0.022), (x + 0.45 * w, y + 0.115, 0.022)),)
    pose = POSES[animal][posture]
    return (Layer(_on_neck(parts, pose), _on_neck(band, pose)),)


def _on_neck(parts: tuple[Part, ...], pose: Pose) -> tuple[Part, ...]:
    return tuple(part_at(part, *pose.head) for part in parts)
