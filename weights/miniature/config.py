"""The miniature's sizes: Stable Diffusion 1.5's architecture, small."""

from minibaret.models.configs import ImageEncoderConfig, ModelConfig, TextEncoderConfig, UNetConfig, VAEConfig

WORDS = (  # of the drawn world's captions
    "a", "an", "on", "with",
    "dog", "cat", "giraffe", "bird",
    "standing", "sitting", "lying", "down", "jumping", "spreading", "wings", "flying",
    "brown", "black", "white", "orange", "grey", "red", "blue",
    "grass", "sand", "snow", "stone", "earth", "hat", "ball",
)  # fmt: skip

MINIATURE = ModelConfig(
    name="miniature",
    image_size=128,
    unet=UNetConfig(
        channels=(64, 128, 192),
        attention=(True, True, True),
        layers_per_block=1,
        heads=2,
        context_width=128,
        groups=16,
    ),
    text_encoder=TextEncoderConfig(vocabulary=597, width=128, layers=4, heads=4, mlp_width=512),
    vae=VAEConfig(channels=(16, 32, 64, 96), layers_per_block=1, groups=8, scaling_factor=1.0),
    image_encoder=ImageEncoderConfig(),
    words=WORDS,
)
