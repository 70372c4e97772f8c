"""What attention has to do at least, and how long known GPUs would need for it. Nothing here is measured."""

from typing import NamedTuple


class GPU(NamedTuple):
    """Peaks a second of the data sheet, dense half precision; exponentials: 16 a clock and multiprocessor."""

    name: str
    flops: float
    exponentials: float
    bytes: float


GPUS = {
    "h100": GPU("H100 SXM", 989e12, 132 * 16 * 1.83e9, 3.35e12),
    "h200": GPU("H200 SXM", 989e12, 132 * 16 * 1.83e9, 4.8e12),
    "a100": GPU("A100 SXM 80 GB", 312e12, 108 * 16 * 1.41e9, 2.04e12),
}


class Work(NamedTuple):
    flops: float
    exponentials: float
    bytes: float

    def parts(self, gpu: GPU) -> dict[str, float]:
        """Seconds, each on its own. At head dimension 40 an H100 is bound by the exponentials of the softmax, not by
        its tensor cores."""
        names = ("tensor cores", "exponentials", "memory")
        return {name: need / peak for name, need, peak in zip(names, self, gpu[1:])}

    def seconds(self, gpu: GPU) -> tuple[float, float]:
        """At best: everything overlaps, and nothing does."""
        parts = self.parts(gpu).values()
        return max(parts), sum(parts)

    def bound(self, gpu: GPU) -> str:
        parts = self.parts(gpu)
        return max(parts, key=parts.__getitem__)


class Shape(NamedTuple):
    rows: int
    maps: int  # different pairs of queries and keys
    terms: int  # products of a map and values, summed to the rows
    queries: int
    keys: int
    heads: int
    features: int


def work(way: str, shape: Shape, element: int = 2) -> Work:
    """Useful work of a way of `attention.ways`, nothing padded. element: bytes of a number."""
    scores = shape.heads * shape.queries * shape.keys  # of one row
    q, k = (shape.heads * shape.features * tokens for tokens in (shape.queries, shape.keys))  # elements of one row
    own, each = (shape.rows, shape.rows), (shape.terms, shape.terms)
    shared = (shape.maps, shape.terms)
    maps, terms = {"plain": own, "materialised": own, "gathered": each}.get(way, shared)
    moved = maps * (q + k) + terms * k + shape.rows * q  # q and k read, v read, out written
    if way == "materialised":  # scores written; read and written by the softmax; replaced; read for the values
        moved += 4 * shape.rows * scores + 2 * (shape.rows - shape.maps) * scores
    if way == "gathered":
        moved += 2 * shape.terms * (q + 2 * k)
    return Work(2.0 * scores * shape.features * (maps + terms), float(maps * scores), float(element * moved))
