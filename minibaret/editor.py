"""`Editor`: a model and what stands around it, from a picture and a sentence to the edited picture."""

import dataclasses
from collections.abc import Callable, Collection, Generator
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from . import balanced_attention as bam
from . import baret
from .errors import InputError
from .files import check_place
from .images import FITS, fit_image, read_image, to_image, to_pixels, to_rgb
from .inversion_file import Inversion, check_name, keep, resume
from .maps import MapCollector, MapRequest, check_request, find_words
from .memory import NO_SAVINGS, Savings, Work, estimate, peak_memory, plan, trim
from .models import tiled_vae
from .models.tokenizer import TextTooLong, is_unicode
from .origin import TUNING_SETTINGS, Origin
from .progress import Clock, relay, run_to_end
from .result import Result
from .settings import Settings
from .weights import Model, OnDemandModel


class Editor:
    def __init__(
        self,
        model: Model | OnDemandModel,
        savings: Savings = NO_SAVINGS,
        memory_limit: int | None = None,
        dtype_is_fixed: bool = False,
    ):
        """savings: of memory, on_demand and unet_dtype only with an OnDemandModel. memory_limit: bytes, with an
        OnDemandModel: every edit adds the savings that it needs; the UNet's dtype is among them unless
        `dtype_is_fixed`."""
        self.model = model
        self.config = model.config
        self.device = model.device
        self.savings = self._asked = savings
        self.memory_limit, self._dtype_is_fixed = memory_limit, dtype_is_fixed

    def settings(self, **changes) -> Settings:
        """The paper's defaults, overridden by the model's own, then by the changes."""
        return dataclasses.replace(Settings(**self.config.defaults), **changes)

    def edit(
        self,
        image: Image.Image | str | Path,
        text: str,
        settings: Settings | None = None,
        *,
        size: tuple[int, int] | None = None,
        fit: str | None = None,
        pictures: Collection[str] = ("transition",),
        maps: MapRequest | None = None,
        inversion: Inversion | None = None,
        watch: Callable[[baret.Step], None] | None = None,
    ) -> Result:
        """Edits a picture towards the text. See `steps` for the arguments.

        watch: called after every step of every stage; what it raises stops the work and reaches the caller.
        """
        options = {"size": size, "fit": fit, "pictures": pictures, "maps": maps, "inversion": inversion}
        return run_to_end(self.steps(image, text, settings, **options), watch)

    def steps(
        self,
        image: Image.Image | str | Path,
        text: str,
        settings: Settings | None = None,
        *,
        size: tuple[int, int] | None = None,
        fit: str | None = None,
        pictures: Collection[str] = ("transition",),
        maps: MapRequest | None = None,
        inversion: Inversion | None = None,
    ) -> Generator[baret.Step, None, Result]:
        """The same work as a generator of steps, which returns the Result; closing it stops the work.

        image: a picture or a file; settings: `self.settings()` if None; size: (width, height) in pixels, the model's
        if None; fit: "crop", "pad" or "stretch", the first if None; pictures: ("transition",) to have that picture
        too, which costs two more rows; maps: attention maps to keep, in the result's `maps`. inversion: an earlier
        one of the same picture, text, model and settings, whose steps are not done again; settings, size and fit that
        are None are then the inversion's. If its trajectory was inverted with the empty text, it serves another text
        too, and only target-text inversion runs. A step's latents are the run's own; what is written to them changes
        it. Raises InputError, when the first step is asked for, for a picture that cannot be read, a text that is empty
        or too long, sizes, pictures or maps that do not fit, and an inversion that belongs to something else; later,
        where the loss of target-text inversion, or a number of the picture, is not finite any more.
        """
        if any(name not in bam.PROCESSES for name in pictures):
            raise InputError(f"pictures must be a tuple with names of {', '.join(bam.PROCESSES)}, got {pictures!r}")
        pictures = tuple({*pictures} & {bam.TRANSITION})  # the others are always there, and need no row for it
        picture, fit, settings = self._prepare(image, settings, size, fit, inversion)
        expected = self._save_memory(picture.size, text, settings, inversion, bam.PROCESSES if maps else pictures)
        target, null = self.embed(text), self.embed("", allow_empty=True)
        collector = self._collector(maps, text, picture.size, settings) if maps else None
        clock = Clock(self.device)
        if inversion:
            origin = self._origin(picture, fit, text, settings)
            start = inversion.record_for(origin, self.device, may_differ=("text",))
            clock.lap("check inversion")
        else:
            start = self.encode(picture)
            clock.lap("encode")
        unet = self._network("unet")
        work = baret.run(unet, start, target, null, settings, pictures, collector, self.savings.max_rows)
        found = yield from relay(clock.timed(work), None, self._reload_unet)
        final = {"edit": found.latents[bam.EDIT], "reconstruction": found.tuned[-1].latents}
        if bam.TRANSITION in pictures:
            final["transition"] = final["reconstruction"] if settings.rigid else found.latents[bam.TRANSITION]
        images = {name: self.decode(value) for name, value in final.items()}
        clock.lap("decode")
        return Result(
            image=images["edit"],
            input=picture,
            reconstruction=images["reconstruction"],
            transition=images.get("transition"),
            record=found,
            settings=settings,
            seconds=clock.seconds,
            savings=self.savings,
            peak_memory=peak_memory(self.device),
            memory_estimate=expected,
        )

    def invert(
        self,
        image: Image.Image | str | Path,
        text: str,
        settings: Settings | None = None,
        *,
        size: tuple[int, int] | None = None,
        fit: str | None = None,
        inversion: Inversion | None = None,
        file: str | Path | None = None,
        restart: bool = False,
        watch: Callable[[baret.Step], None] | None = None,
    ) -> Inversion:
        """DDIM inversion and target-text inversion of a picture, to edit from. See `inversion_steps`.

        watch: called after every step of both stages; what it raises stops the work and reaches the caller.
        """
        options = {"size": size, "fit": fit, "inversion": inversion, "file": file, "restart": restart}
        return run_to_end(self.inversion_steps(image, text, settings, **options), watch)

    def inversion_steps(
        self,
        image: Image.Image | str | Path,
        text: str,
        settings: Settings | None = None,
        *,
        size: tuple[int, int] | None = None,
        fit: str | None = None,
        inversion: Inversion | None = None,
        file: str | Path | None = None,
        restart: bool = False,
    ) -> Generator[baret.Step, None, Inversion]:
        """The same work as a generator of steps, which returns the Inversion.

        image, text, settings, size, fit: as for `steps`. inversion: one whose trajectory is taken where the text (if it
        was inverted with the empty text) or the settings of target-text inversion differ, and which is taken whole
        where nothing differs. file: where to save the inversion; while it is unfinished it is kept beside it, with
        .part after the name, and a run that was stopped goes on after its last step when it is started again. restart:
        begin anew where such an unfinished file belongs to something else or is damaged, instead of refusing. A
        finished file is overwritten at the end.
        """
        if file:
            check_name(Path(file))
            check_place(Path(file), force=True)
        picture, fit, settings = self._prepare(image, settings, size, fit, inversion)
        self._save_memory(picture.size, text, settings, inversion)
        target, null = self.embed(text), self.embed("", allow_empty=True)
        origin = self._origin(picture, fit, text, settings)
        record = resume(Path(file), origin, self.device, restart) if file else None
        if inversion and not record:
            record = inversion.record_for(origin, self.device, may_differ=("text", *TUNING_SETTINGS))
        record = record or baret.Record([self.encode(picture)])
        work = baret.invert_and_tune(self._network("unet"), record, target, null, settings)
        work = relay(work, None, self._reload_unet)
        yield from keep(work, Path(file), origin, record) if file else work
        return Inversion(origin, tuple(record.trajectory), tuple(record.tuned))

    @torch.no_grad()
    def embed(self, text: str, allow_empty: bool = False) -> Tensor:
        """The text's embeddings (1, 77, width), float32. Raises InputError for a text that is too long, not Unicode or,
        unless `allow_empty`, blank."""
        ids = self._tokens(text, allow_empty)
        return self._network("text_encoder")(torch.tensor([ids], device=self.device)).float()

    @torch.no_grad()
    def encode(self, picture: Image.Image) -> Tensor:
        """RGB picture → scaled latents (1, 4, H/8, W/8), float32."""
        vae = self._network("vae")
        weight, encode = vae.quant_conv.weight, partial(tiled_vae.encode, vae) if self.savings.tiled_vae else vae.encode
        return encode(to_pixels(picture).to(weight.device, weight.dtype)).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Image.Image:
        """Scaled latents (1, 4, h, w) → RGB picture, 8 times as large. Raises InputError where numbers overflow, as a
        network's may in float16."""
        vae = self._network("vae")
        decode = partial(tiled_vae.decode, vae) if self.savings.tiled_vae else vae.decode
        pixels = decode(latents.to(vae.quant_conv.weight.dtype))
        if not pixels.isfinite().all():
            kind = str(pixels.dtype).removeprefix("torch.")
            raise InputError(f"the picture must be of finite numbers, but they overflow in {kind}: try another dtype")
        return to_image(pixels)

    def _tokens(self, text: str, allow_empty: bool = False) -> list[int]:
        if not text.strip() and not allow_empty:
            raise InputError("a text that says what the picture should show was wanted, got an empty one")
        if not is_unicode(text):
            raise InputError(f"the text must be valid UTF-8, got {text!r}")
        try:
            return self.model.tokenizer(text)
        except TextTooLong as error:
            raise InputError(str(error)) from None

    def _save_memory(
        self,
        size: tuple[int, int],
        text: str,
        settings: Settings,
        inversion: Inversion | None,
        pictures: Collection[str] | None = None,
    ) -> int:
        """Decides on the savings of an edit, or of an inversion alone where `pictures` is None; the estimate of what it
        then takes, in bytes. Raises InputError where the limit cannot be kept, or for a text that cannot be used."""
        tokens = self._tokens(text)
        plans = [] if pictures is None else [bam.rows_at(step, settings, pictures) for step in range(settings.steps)]
        work = Work(
            config=self.config,
            parameters=self.model.parameter_counts(),
            size=size,
            rows=max(map(len, plans), default=1),
            tuning=settings.inner_steps > 0 and not (inversion and inversion.serves(tokens, settings)),
            dtype=self.model.dtype,
            device=self.device,
        )
        if self.memory_limit is not None:
            asked, free = self._asked, not self._dtype_is_fixed
            if inversion and free and not asked.unet_dtype:
                # An inversion belongs to one dtype of the UNet; of others than the model's a plan knows only bfloat16.
                half = inversion.origin.dtype == "bfloat16" and work.dtype == torch.float32
                asked, free = dataclasses.replace(asked, unet_dtype=torch.bfloat16 if half else None), False
            self.savings = plan(self.memory_limit, work, asked, free)
        if isinstance(self.model, OnDemandModel):
            self.model.set_dtype("unet", self.savings.unet_dtype or self.model.dtype)
        return estimate(work, self.savings)

    def _network(self, part: str) -> nn.Module:
        """The network of that name, ready to run. Where networks are on demand, the others are freed first."""
        if self.savings.on_demand:
            self.model.free_all_but(part)
        trim()
        network = getattr(self.model, part)
        if part == "unet":
            network.set_checkpointing(self.savings.checkpointing)
        return network

    def _reload_unet(self) -> None:
        """Where networks are on demand, the caller of a generator may have used another one between two steps."""
        if self.savings.on_demand:
            self.model.free_all_but("unet")
            _ = self.model.unet

    def _prepare(
        self,
        image: Image.Image | str | Path,
        settings: Settings | None,
        size: tuple[int, int] | None,
        fit: str | None,
        inversion: Inversion | None,
    ) -> tuple[Image.Image, str, Settings]:
        """The fitted RGB picture, how it was fitted, the settings: where None, the inversion's, else the model's."""
        if inversion:
            origin = inversion.origin
            settings, size, fit = settings or self.settings(**origin.settings), size or origin.size, fit or origin.fit
        fit = fit or FITS[0]
        picture = to_rgb(image) if isinstance(image, Image.Image) else read_image(image)
        return fit_image(picture, self._size(size), fit), fit, settings or self.settings()

    def _origin(self, picture: Image.Image, fit: str, text: str, settings: Settings) -> Origin:
        return Origin.of(self._network, self.model.tokenizer, picture, fit, text, settings)

    def _collector(self, request: MapRequest, text: str, size: tuple[int, int], settings: Settings) -> MapCollector:
        check_request(request, size, settings.steps, len(self.config.unet.channels))
        words = find_words(request.words, text, self.model.tokenizer)
        factor = self.config.latent_factor
        return MapCollector(request, words, (size[1] // factor, size[0] // factor), factor)

    def _size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        side, multiple = self.config.image_size, self.config.size_multiple
        width, height = size or (side, side)
        if width < multiple or height < multiple or width % multiple or height % multiple:
            raise InputError(f"width and height must be multiples of {multiple} pixels, got {width}×{height}")
        return width, height
