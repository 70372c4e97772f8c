"""What half precision would lose, and does not."""

import torch

from minibaret.pipeline import Counts
from minibaret.sampler import Schedule
from minibaret.tuning import adam, tune


class HalfNetwork:
    """A network of one float16 product, through which gradients become a thousandth."""

    def __init__(self):
        self.counts, self.weights = Counts(), 1e-3 * torch.randn(24, 4)

    def eps(self, latents, timestep, context):
        noise = context.half() @ self.weights.half()  # [1, 77, 4]
        return noise.float().mT[:, :, :64].reshape(1, 4, 8, 8)


def test_a_small_loss_still_moves_every_number_of_the_embedding():
    """Adam's first step is the learning rate times the gradient's sign, whatever its size; where that vanished it is
    nothing. The loss is what a tuning has near its end, 10⁻⁸ to 10⁻⁶."""
    network, schedule = HalfNetwork(), Schedule(1)
    fixed, embedding = torch.zeros(1, 77, 24), torch.randn(1, 77, 24)
    latents = torch.randn(1, 4, 8, 8)
    for size in (1e-4, 1e-3):
        timestep = schedule.timesteps[0]
        there = schedule.step(latents, 7.5 * network.eps(latents, timestep, embedding), timestep)
        goal = there + size * torch.randn_like(there)
        tuned = []
        list(
            tune(
                network, tuned, [goal, latents], embedding, fixed, schedule, 7.5,
                inner_steps=1, solver=adam(lambda i: 1e-3), threshold=lambda i: 0.0,
            )
        )  # fmt: skip
        alpha_from, alpha_to = schedule.alphas(timestep)
        slope = (1 - alpha_to) ** 0.5 - (alpha_to * (1 - alpha_from) / alpha_from) ** 0.5
        wanted = slope * (there - goal).view(1, 4, 64).mT @ network.weights.T  # [1, 64, 24], but for a positive factor
        moved = (tuned[0].embedding - embedding)[:, :64]
        assert (moved.sign() == -wanted.sign()).float().mean() > 0.99
