"""What an edit gives back."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .images import psnr
from .inversion import Inversion
from .maps import AttentionMaps
from .memory import Savings
from .methods import Knobs, Method
from .pipeline import Counts
from .tuning import Tuned


@dataclass(frozen=True)
class Result:
    """An edit and how it came about."""

    input: Image.Image  # as the model saw it, at its size
    images: dict[str, Image.Image]  # by branch: "edit", and those that were asked for and that the method has
    latents: dict[str, Tensor]  # by branch, at the end or where it left the batch
    method: Method
    knobs: Knobs
    kept: Inversion  # what the run found on its way: trajectory, tuned embeddings
    counts: Counts  # of the UNet's forwards and gradients
    seconds: dict[str, float]  # wall time by stage
    savings: Savings  # of memory
    peak_memory: int | None  # bytes: on CUDA of this edit, else of the process so far, see `memory.peak_memory`
    memory_estimate: int  # bytes, what the edit was expected to take
    maps: AttentionMaps | None = None  # where they were asked for

    @property
    def image(self) -> Image.Image:
        return self.images["edit"]

    @property
    def trajectory(self) -> list[Tensor]:
        """z*[0] … z*[T] of the DDIM inversion."""
        return [latents for (latents,) in self.kept.items("trajectory")]

    @property
    def tuned(self) -> list[Tuned]:
        """What was tuned for each time step, noisiest first; empty where the method tunes none."""
        return next(
            (entry.items for entry in reversed(self.kept.entries) if entry.items and type(entry.items[0]) is Tuned), []
        )

    @property
    def reconstruction_psnr(self) -> float | None:
        """dB, of the reconstruction against the input; None where there is none."""
        return psnr(self.images["reconstruction"], self.input) if "reconstruction" in self.images else None

    def summary(self) -> dict:
        """The figures of the run, as plain numbers."""
        found = {
            "method": self.method.name,
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "row_forwards": self.counts.row_forwards,
            "gradient_passes": self.counts.gradient_passes,
        }
        if self.tuned:
            found["inner_iterations"] = sum(step.iterations for step in self.tuned)
        if "reconstruction" in self.images:
            found["reconstruction_psnr"] = round(self.reconstruction_psnr, 2)
        found |= self.input.info  # "colours", where the picture's profile was another than sRGB
        found["peak_memory"] = self.peak_memory
        return found | {"memory_estimate": self.memory_estimate, "savings": str(self.savings)}
