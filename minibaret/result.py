"""What an edit gives back."""

from dataclasses import dataclass

from PIL import Image

from .baret import Record
from .images import psnr
from .maps import AttentionMaps
from .memory import Savings
from .settings import Settings


@dataclass(frozen=True)
class Result:
    """An edit and how it came about."""

    image: Image.Image
    input: Image.Image  # as the model saw it, at its size
    reconstruction: Image.Image  # where target-text inversion leads: the input, if it went well
    transition: Image.Image | None  # None where it was not asked for
    record: Record
    settings: Settings
    seconds: dict[str, float]  # wall time by stage
    savings: Savings  # of memory
    peak_memory: int | None  # bytes, of the whole process so far, see `memory.peak_memory`
    memory_estimate: int  # bytes, what the edit was expected to take

    @property
    def maps(self) -> AttentionMaps | None:
        """The attention maps that were asked for."""
        return self.record.maps

    @property
    def reconstruction_psnr(self) -> float:
        """dB, of the reconstruction against the input."""
        return psnr(self.reconstruction, self.input)

    def summary(self) -> dict:
        """The figures of the run, as plain numbers."""
        steps, inner = self.settings.steps, self.settings.inner_steps
        return {
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "inner_iterations": sum(self.record.iterations),
            "inner_iterations_allowed": steps * inner,
            "reconstruction_psnr": round(self.reconstruction_psnr, 2),
            "peak_memory": self.peak_memory,
            "memory_estimate": self.memory_estimate,
            "savings": str(self.savings),
        }
