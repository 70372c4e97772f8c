"""How the shipped weights are made: the stages clip, vae and unet, and the loop they share."""
