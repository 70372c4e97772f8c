"""What one picture of the drawn world shows: the attributes a caption names, and the layout it does not.

A `Scene` is a seed and five named attributes. The seed alone decides the `Layout` (where the animal stands,
where the sun is, ...), so editing a scene is `dataclasses.replace(scene, posture="sitting")`: the picture
that an ideal text-guided edit would give, with everything else kept.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

ANIMALS = ("dog", "cat", "giraffe", "bird")
_ON_FOUR_LEGS = ("standing", "sitting", "lying down", "jumping")
POSTURES = {
    "dog": _ON_FOUR_LEGS,
    "cat": _ON_FOUR_LEGS,
    "giraffe": _ON_FOUR_LEGS,
    "bird": ("standing", "sitting", "spreading wings", "flying"),
}
COLOURS = ("brown", "black", "white", "orange", "grey")
GROUNDS = ("grass", "sand", "snow", "stone", "earth")
ADDITIONS = (None, "a red hat", "a blue ball")

TRAINING_SEEDS = range(0, 1_000_000)
SWEEP_SEEDS = range(1_000_000, 1_100_000)
HELD_OUT_SEEDS = range(2_000_000, 2_100_000)
MEASURED_SEEDS = HELD_OUT_SEEDS[1000:]  # the first were looked at while earlier defaults were chosen

# One random stream per purpose, so that drawing more numbers for one never moves the other.
_LAYOUT_STREAM, _ATTRIBUTE_STREAM, _APPEARANCE_STREAM = 0, 1, 2


@dataclass(frozen=True)
class Stone:
    """A stone on the ground: its centre and half-width, as fractions of the frame."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Layout:
    """Everything that no caption names and that an edit must preserve.

    Lengths are fractions of the frame's side; x runs right and y runs down from the top left corner.
    """

    x: float  # the animal's feet
    y: float
    scale: float  # 1 is the usual size
    facing: int  # +1 looks right, -1 looks left
    horizon: float
    hill_x: float
    hill_height: float  # above the horizon
    sun_x: float
    sun_y: float
    cloud_x: float
    cloud_y: float
    stones: tuple[Stone, ...]  # two large ones, then small ones strewn over the ground
    ball_x: float  # where a ball lies, if the scene has one: behind the animal's back, away from its face
    ball_y: float
    warmth: float  # of the sky: 0 is a clear noon, 1 is a rosy evening
    stone_shade: float  # of all stones alike: 0 is dark, 1 is light, nothing is near the middle
    hill_tint: float  # 0 is grey, 1 is blue, nothing is near the middle


@dataclass(frozen=True)
class Scene:
    """One picture of the drawn world; `drawing.render` paints it."""

    seed: int
    animal: str
    posture: str
    colour: str
    ground: str
    addition: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int | np.integer) or self.seed < 0:
            raise ValueError(f"The seed must be a whole number of at least 0, not {self.seed!r}.")
        _require("animal", self.animal, ANIMALS)
        _require(f"posture of a {self.animal}", self.posture, POSTURES[self.animal])
        _require("colour", self.colour, COLOURS)
        _require("ground", self.ground, GROUNDS)
        _require("addition", self.addition, ADDITIONS)

    @classmethod
    def random(cls, seed: int) -> "Scene":
        """The scene whose named attributes, too, are drawn from `seed`; half the scenes have no addition."""
        rng = np.random.default_rng([seed, _ATTRIBUTE_STREAM])
        animal = _choose(rng, ANIMALS)
        return cls(
            seed=seed,
            animal=animal,
            posture=_choose(rng, POSTURES[animal]),
            colour=_choose(rng, COLOURS),
            ground=_choose(rng, GROUNDS),
            addition=_choose(rng, (None, *ADDITIONS)),
        )

    def layout(self) -> Layout:
        """The layout, drawn from the seed alone: no named attribute has any say in it."""
        rng = np.random.default_rng([self.seed, _LAYOUT_STREAM])
        x, y = rng.uniform(0.40, 0.60), rng.uniform(0.78, 0.84)
        facing = int(rng.choice((-1, 1)))
        horizon = rng.uniform(0.42, 0.58)
        sun_side = int(rng.choice((-1, 1)))
        appearance = np.random.default_rng([self.seed, _APPEARANCE_STREAM])
        return Layout(
            x=x,
            y=y,
            scale=rng.uniform(0.85, 1.15),
            facing=facing,
            horizon=horizon,
            hill_x=rng.uniform(0.15, 0.85),
            hill_height=rng.uniform(0.06, 0.14),
            sun_x=0.5 + sun_side * rng.uniform(0.28, 0.38),
            sun_y=rng.uniform(0.12, 0.22),
            cloud_x=0.5 - sun_side * rng.uniform(0.22, 0.34),
            cloud_y=rng.uniform(0.12, 0.24),
            stones=(*(_draw_stone(rng, side, horizon) for side in (-1, 1)), *_draw_pebbles(appearance, horizon)),
            ball_x=float(np.clip(x - facing * rng.uniform(0.24, 0.36), 0.10, 0.90)),
            ball_y=y + rng.uniform(0.02, 0.06),
            warmth=rng.uniform(0.0, 1.0),
            stone_shade=_draw_shade(appearance),
            hill_tint=_draw_shade(appearance),
        )

    def caption(self, omit: Collection[str] = ()) -> str:
        """The sentence that names every attribute, such as "a brown dog sitting on grass with a red hat".

        `omit` leaves out "colour" or "ground": "a dog sitting".
        """
        words = [self.animal, self.posture] if "colour" in omit else [self.colour, self.animal, self.posture]
        article = "an" if words[0][0] in "aeiou" else "a"
        sentence = " ".join([article, *words] + ([] if "ground" in omit else ["on", self.ground]))
        return f"{sentence} with {self.addition}" if self.addition else sentence


def _draw_stone(rng: np.random.Generator, side: int, horizon: float) -> Stone:
    """A stone left (-1) or right (+1) of the middle, between the horizon and the animal's feet."""
    return Stone(
        x=0.5 + side * rng.uniform(0.22, 0.42),
        y=rng.uniform(horizon + 0.10, 0.92),
        radius=rng.uniform(0.05, 0.09),
    )


def _draw_shade(rng: np.random.Generator) -> float:
    """From 0 to 0.35 or from 0.65 to 1."""
    return float(rng.choice((0.0, 0.65)) + rng.uniform(0, 0.35))


def _draw_pebbles(rng: np.random.Generator, horizon: float) -> tuple[Stone, ...]:
    """Small stones all over the ground, smaller towards the horizon: at most one in each cell of a grid of 4 x 2."""
    places = rng.uniform(0.15, 0.85, (2, 4, 2))
    lies = rng.random((2, 4)) < 0.5
    pebbles = []
    for row, column in np.argwhere(lies).tolist():
        across, down = places[row, column].tolist()
        depth = (row + down) / 2  # 0 at the horizon, 1 at the bottom of the frame
        pebbles.append(Stone((column + across) / 4, horizon + 0.05 + (0.93 - horizon) * depth, 0.034 + 0.026 * depth))
    return tuple(sorted(pebbles, key=lambda pebble: pebble.y))


def _choose(rng: np.random.Generator, choices: tuple):
    return choices[rng.integers(len(choices))]


def _require(what: str, value: object, choices: tuple) -> None:
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"The {what} must be one of {known}, not {value!r}.")
