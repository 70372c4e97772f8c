"""The miniature: a drawn toy world, small enough that a tiny diffusion model can learn it.

`world/` draws it and asks for edits whose right answer is known; `training/` makes the weights; the files here measure
them (table.py says by what) and draw the card's pictures.
"""
