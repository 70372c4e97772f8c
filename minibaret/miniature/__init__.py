"""The miniature: a drawn toy world, small enough that a tiny diffusion model can learn it."""
