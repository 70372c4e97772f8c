"""What attention has to do at least: floating-point operations, exponentials and bytes, and how long known GPUs would
need for them. Nothing here is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """Peaks of the data sheet, dense half precision; exponentials: 16 a clock and multiprocessor."""

    name: str
    flops: float  # a second, on tensor cores
    exponentials: float  # a second
    bandwidth: float  # bytes a second


GPUS = {
    "h100": GPU("H100 SXM", 989e12, 132 * 16 * 1.83e9, 3.35e12),
    "h200": GPU("H200 SXM", 989e12, 132 * 16 * 1.83e9, 4.8e12),
    "a100": GPU("A100 SXM 80 GB", 312e12, 108 * 16 * 1.41e9, 2.04e12),
}


@dataclass(frozen=True)
class Work:
    flops: float
    exponentials: float
    bytes: float

    def parts(self, gpu: GPU) -> dict[str, float]:
        """Seconds, each on its own. At head dimension 40 an H100 is bound by the exponentials of the softmax, not by
        its tensor cores."""
        return {
            "tensor cores": self.flops / gpu.flops,
            "exponentials": self.exponentials / gpu.exponentials,
            "memory": self.bytes / gpu.bandwidth,
        }

    def seconds(self, gpu: GPU) -> tuple[float, float]:
        """At best: everything overlaps, and nothing does."""
        parts = self.parts(gpu).values()
        return max(parts), sum(parts)

    def bound(self, gpu: GPU) -> str:
        parts = self.parts(gpu)
        return max(parts, key=parts.__getitem__)


@dataclass(frozen=True)
class Shape:
    """B rows; of N queries, M keys, H heads of D features."""

    rows: int
    maps: int  # different pairs of queries and keys
    terms: int  # products of a map and values, summed to the rows
    queries: int
    keys: int
    heads: int
    features: int


def work(way: str, shape: Shape, element: int = 2) -> Work:
    """Useful work, nothing padded. element: bytes of a number.

    way: "plain" (every row its own map), "materialised" (every row's map written, those of other rows put in its place,
    read again), "gathered" (queries, keys and values copied to a row for each term), "injected" or "concatenated" (each
    map computed once, by the one or the other implementation).
    """
    scores = shape.heads * shape.queries * shape.keys  # of one row
    q, k = (shape.heads * shape.features * tokens for tokens in (shape.queries, shape.keys))  # elements of one row
    maps, terms = {
        "plain": (shape.rows, shape.rows),
        "materialised": (shape.rows, shape.rows),
        "gathered": (shape.terms, shape.terms),
    }.get(way, (shape.maps, shape.terms))
    moved = maps * (q + k) + terms * k + shape.rows * q  # q and k read, v read, out written
    if way == "materialised":  # scores written; read and written by the softmax; replaced; read for the values
        moved += 4 * shape.rows * scores + 2 * (shape.rows - min(shape.maps, shape.rows)) * scores
    if way == "gathered":
        moved += 2 * shape.terms * (q + 2 * k)
    return Work(2.0 * scores * shape.features * (maps + terms), float(maps * scores), float(element * moved))
