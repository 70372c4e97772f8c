"""diffusers' and transformers' networks and schedulers, and the loops that papers' formulas make of them.

Nothing of minibaret is used here.
"""

import diffusers
import torch
import torch.nn.functional as F
import transformers
from eager import SCHEDULER

STEPS, GUIDANCE = 6, 5.0


class Theirs:
    """With the weights of a folder."""

    def __init__(self, folder):
        self.unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False).eval()
        self.text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").requires_grad_(False).eval()
        self.vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval()
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.ddim, self.inverse = diffusers.DDIMScheduler(**SCHEDULER), diffusers.DDIMInverseScheduler(**SCHEDULER)
        self.ddim.set_timesteps(STEPS)
        self.inverse.set_timesteps(STEPS)

    def ids(self, prompt):
        return self.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids

    def embed(self, prompt):
        return self.text(self.ids(prompt)).last_hidden_state

    def eps(self, z, t, e):
        return self.unet(z, t, e).sample

    def guided(self, z, t, e):
        null = self.eps(z, t, self.embed(""))
        return null + GUIDANCE * (self.eps(z, t, e) - null)

    def invert(self, z, count=STEPS):
        """z*[0] … z*[count], with the empty prompt."""
        found = [z]
        for t in self.inverse.timesteps[:count]:
            found.append(self.inverse.step(self.eps(found[-1], t, self.embed("")), t, found[-1]).prev_sample)
        return found

    def decode(self, z, e, count=STEPS, after=lambda i, z: z, eps=None):
        """The last `count` steps of guided sampling; e: an embedding, or one for each step."""
        for i, t in list(enumerate(self.ddim.timesteps))[STEPS - count :]:
            noise = (eps or self.guided)(z, t, e[i] if isinstance(e, list) else e)
            z = after(i, self.ddim.step(noise, t, z).prev_sample)
        return z

    def pipeline(self, kind, **others):
        parts = {"vae": self.vae, "text_encoder": self.text, "tokenizer": self.tokenizer, "unet": self.unet}
        parts |= {"scheduler": self.ddim, "safety_checker": None, "feature_extractor": None, **others}
        pipeline = kind(**parts, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def tune(self, unet, z0, context, parameters, steps, rate, numbers):
        """Adam on the loss that diffusion models are trained with."""
        adam = torch.optim.Adam(parameters, lr=rate)
        for _ in range(steps):
            t = torch.randint(1000, (1,), generator=numbers)
            noise = torch.randn(z0.shape, generator=numbers)
            adam.zero_grad()
            F.mse_loss(unet(self.ddim.add_noise(z0, noise, t), t, context()).sample, noise).backward()
            adam.step()
