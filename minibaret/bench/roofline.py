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
    "a100": GPU("A100 SXM 80 GB", 312e12, 108 * 16 * 1.41e9, 2.04e12),
}


@dataclass(frozen=True)
class Work:
    flops: float
    exponentials: float
    bytes: float

    def seconds(self, gpu: GPU) -> tuple[float, float]:
        """At best: everything overlaps, and nothing does."""
        parts = self.flops / gpu.flops, self.exponentials / gpu.exponentials, self.bytes / gpu.bandwidth
        return max(parts), sum(parts)


@dataclass(frozen=True)
class Shape:
    """B rows whose maps come from G rows of queries and keys; N queries, M keys, H heads of D features."""

    rows: int  # B
    sources: int  # G
    queries: int
    keys: int
    heads: int
    features: int

    @property
    def takers(self) -> int:
        return self.rows - self.sources


def work(way: str, shape: Shape, element: int = 2) -> Work:
    """Useful work, nothing padded. element: bytes of a number.

    way: "plain" (every row its own map), "materialised" (every row's map written, the takers' replaced, read again),
    "gathered" (queries and keys copied to every row), "injected" or "concatenated" (a shared map
    computed once, by the one or the other implementation).
    """
    scores = shape.heads * shape.queries * shape.keys  # of one row
    q, k = (shape.heads * shape.features * tokens for tokens in (shape.queries, shape.keys))  # elements of one row
    mapped = shape.sources if way in ("injected", "concatenated") else shape.rows
    flops = 2.0 * scores * shape.features * (mapped + shape.rows)
    moved = mapped * (q + k) + shape.rows * (k + q)  # q and k read, v read, out written
    if way == "materialised":  # scores written; read and written by the softmax; replaced; read for the values
        moved += 4 * shape.rows * scores + 2 * shape.takers * scores
    if way == "gathered":
        moved += (shape.sources + shape.rows) * (q + k)
    return Work(flops, float(mapped * scores), float(element * moved))
