import pytest
import torch

from minibaret.schedule import Schedule, cumulative_alphas

ANCHORS = {
    0: 0.9991500000, 1: 0.9982960278, 21: 0.9803807481, 481: 0.3022956610,
    501: 0.2749990669, 961: 0.0072817271, 981: 0.0057755001, 999: 0.0046600985,
}  # fmt: skip


def test_cumulative_alphas_are_stable_diffusions():
    alphas = cumulative_alphas()
    assert alphas.dtype == torch.float32 and len(alphas) == 1000
    for timestep, value in ANCHORS.items():
        assert alphas[timestep].item() == pytest.approx(value, rel=2.1e-6)


def test_timesteps_lead_by_one_and_the_last_step_ends_at_the_first_alpha():
    schedule = Schedule(50)
    assert schedule.timesteps == list(range(981, 0, -20))
    assert Schedule(30).timesteps[0] == 29 * 33 + 1 and len(Schedule(30).timesteps) == 30
    assert schedule.alphas(1) == pytest.approx((ANCHORS[1], ANCHORS[0]), rel=2.1e-6)
    assert schedule.alphas(481) == pytest.approx((ANCHORS[481], cumulative_alphas()[461].item()), rel=2.1e-6)


def test_the_noise_term_is_kept_at_the_last_step():
    latents, noise = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    a, b = ANCHORS[1], ANCHORS[0]
    wanted = -((b * (1 - a) / a) ** 0.5) + (1 - b) ** 0.5
    assert torch.allclose(Schedule(50).step(latents, noise, 1), torch.full_like(latents, wanted), atol=1e-6)


@pytest.mark.parametrize("steps", [50, 30, 7])
def test_forward_and_inverse_undo_each_other_on_a_linear_noise(steps):
    schedule = Schedule(steps)
    start = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    latents = start
    noises = []
    for timestep in reversed(schedule.timesteps):
        noises.append(0.3 * latents + 0.01 * timestep / 1000)
        latents = schedule.inverse_step(latents, noises[-1], timestep)
    for timestep in schedule.timesteps:
        latents = schedule.step(latents, noises.pop(), timestep)
    assert torch.allclose(latents, start, atol=1e-9)


@pytest.mark.parametrize("steps", [0, 1000, -3])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and 999"):
        Schedule(steps)
