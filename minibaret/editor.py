"""`Editor`: weights and what stands around them, from a picture and a prompt to the edited picture."""

import dataclasses
import operator
from collections.abc import Callable, Collection, Generator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .errors import InputError
from .files import as_path, check_place
from .images import FITS, Picture, fit_image, read_image
from .inversion import Inversion, Mismatch, check_name, discard, keep, resume
from .maps import BRANCHES, MapCollector, MapRequest, check_request, find_words, word_tokens
from .memory import NO_SAVINGS, Savings, Work, estimate, forget_peak, hold, peak_memory, plan, resident
from .methods import Job, Knobs, Method, find, prompt_to_prompt
from .models.configs import ModelConfig
from .origin import Origin
from .pipeline import StableDiffusion
from .progress import Clock, outside_inference_mode, run_to_end
from .result import Result
from .sampler import Step
from .weights import Model, OnDemandModel
from .weights.folder import tuples

ALL = "all"  # pictures: of every branch that a method has
LARGEST_SIDE = 8192  # pixels; where memory ends, an edit ends long before

AnyMethod = str | Method | Knobs | Callable  # a name, knobs in its place, or a function of one's own


class Editor:
    def __init__(
        self,
        model: Model | OnDemandModel,
        savings: Savings = NO_SAVINGS,
        memory_limit: int | None = None,
        dtype_is_fixed: bool = False,
        process: int | None = None,
    ):
        """savings: of memory, on_demand and unet_dtype only with an OnDemandModel. memory_limit: bytes, with an
        OnDemandModel: every edit adds the savings that it needs; the UNet's dtype is among them unless
        `dtype_is_fixed`. process: bytes that the process took before the model was read; if None, what
        it takes now."""
        self.model, self.config, self.device = model, model.config, model.device
        self.savings, self.memory_limit, self._dtype_is_fixed = savings, memory_limit, dtype_is_fixed
        if memory_limit is not None:
            hold(memory_limit, self.device)
        self._process = resident() if process is None else process
        self.sd = StableDiffusion(model, savings)  # to embed, encode and decode with

    def settings(self, method: AnyMethod = "baret", preset: str | None = None, **changes) -> Knobs:
        """A method's knobs with values: its defaults, overridden by the model's own (unless preset is "paper"), by the
        preset's, then by the changes. `edit` takes them in a method's place. Raises InputError for a knob that the
        method does not have, or a value that it cannot have, or that does nothing beside the others."""
        method, changes = _with_knobs(method, changes)
        return self._settled(method, preset, {}, changes)

    def _settled(self, method: Method, preset: str | None, stored: dict, changes: dict) -> Knobs:
        """stored: what an inversion was made with."""
        values = {} if preset == "paper" else defaults_of(self.config, method)
        return method.knobs_from({**values, **stored, **method.preset(preset)}, changes)

    def edit(
        self,
        image: Picture,
        prompt: str,
        method: AnyMethod = "baret",
        *,
        watch: Callable[[Step], object] | None = None,
        **options,
    ) -> Result:
        """Edits a picture towards the prompt. See `steps` for the options.

        watch: called after every step of every stage; what it raises stops the work and reaches the caller.
        """
        return run_to_end(self.steps(image, prompt, method, **options), watch)

    @outside_inference_mode
    def steps(
        self,
        image: Picture,
        prompt: str,
        method: AnyMethod = "baret",
        *,
        source_prompt: str | None = None,
        size: tuple[int, int] | None = None,
        fit: str | None = None,
        pictures: Collection[str] | str = ("reconstruction",),
        maps: MapRequest | None = None,
        inversion: Inversion | None = None,
        preset: str | None = None,
        **knobs,
    ) -> Generator[Step, None, Result]:
        """The same work as a generator of steps, which returns the Result; closing it stops the work.

        image: a picture, as `images.read_image` takes it; prompt: what the edited picture should show; method: a name
        of `METHODS`, its knobs as `settings` gives them, or a function edit(sd, job, knobs) of your own; source_prompt:
        what the picture shows, which some methods need; size: (width, height) in pixels, the model's if None; fit:
        "crop", "pad" or "stretch", the first if None; pictures: branches whose pictures are wanted beside the edit's,
        such as "transition", or "all"; maps: attention maps to keep. inversion: an earlier one of the same picture,
        model and knobs, whose work is not done again; size, fit and knobs that are not given are then the inversion's.
        preset: "paper" for the paper's values, whatever the model's config says; "fast" for fewer steps. knobs: the
        method's, by name.

        A step's latents are the run's own; what is written to them changes it. Raises InputError, when the first step
        is asked for, for a picture that cannot be read, a prompt that is empty or too long, or anything that does not
        fit; later, where a loss or a number of the picture is not finite.
        """
        method, knobs = _with_knobs(method, knobs)
        pictures = _branches(pictures)
        if maps is not None and not isinstance(maps, MapRequest):
            raise InputError(f"maps must be a MapRequest, got {type(maps).__name__}")
        prompts = prompt, source_prompt
        knobs, sd, expected, picture, fit = self._prepared(image, prompts, method, size, fit, inversion, preset, knobs)
        forget_peak(self.device)
        kept, clock = Inversion(), Clock(self.device)
        sd.embed_all(*prompts)
        collector = self._collector(maps, prompts, picture.size, knobs) if maps else None
        if inversion:
            if inversion.origin:
                inversion.belongs_to(Origin.of(sd, picture, fit))
            kept = inversion.to(self.device)
            clock.lap("check inversion")
        kept.used_for(picture)
        latents = self._start(sd, picture, kept)
        if kept.start is None:
            clock.lap("encode")
        if sd.warm_up(latents.shape):
            clock.lap("warm-up")
        recorders = (collector,) if collector else ()
        job = Job(latents, prompt, source_prompt, kept, BRANCHES if collector else pictures, recorders)
        work = method.edit(sd, job, knobs)
        if not isinstance(work, Generator):
            raise InputError(f"{method.name} must yield its steps and return latents, but it is no generator")
        found = _latents_of(method, (yield from clock.timed(work)), latents)
        images = {name: sd.decode(value) for name, value in found.items() if name in pictures}
        clock.lap("decode")
        return Result(
            input=picture,
            images=images,
            latents=found,
            method=method,
            knobs=knobs,
            kept=kept,
            counts=sd.counts,
            seconds=clock.seconds,
            savings=sd.savings,
            peak_memory=peak_memory(self.device),
            memory_estimate=expected,
            maps=collector.maps if collector else None,
        )

    def generate(
        self,
        prompt: str,
        source_prompt: str | None = None,
        *,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        preset: str | None = None,
        watch: Callable[[Step], object] | None = None,
        **knobs,
    ) -> dict[str, Image.Image]:
        """A picture of the prompt, "edit", from noise; with a source prompt its picture too, "source", from the same
        noise, whose attention the first takes (prompt-to-prompt, whose knobs these are). Raises InputError as `steps`.
        """
        method, size = find("prompt-to-prompt"), self.check_size(size)
        words = [name.replace("_", "-") for name in knobs if name not in ("steps", "guidance")]
        if source_prompt is None and words:
            raise InputError(f"a source prompt is needed for {', '.join(words)}, got none")
        knobs = self.settings(method, preset, **knobs)
        self.check_prompts(method, prompt, prompt if source_prompt is None else source_prompt)
        sd, _ = self._plan(method, knobs, size, None, (prompt, source_prompt or ""))
        sd.embed_all(prompt, source_prompt)
        shape = self._latent_shape(size)
        sd.warm_up(shape)
        found = run_to_end(prompt_to_prompt.generate(sd, source_prompt, prompt, knobs, shape, seed), watch)
        return {name: sd.decode(latents) for name, latents in found.items()}

    def invert(self, *arguments, watch: Callable[[Step], object] | None = None, **options) -> Inversion:
        """The slow part of an edit, to edit from. See `inversion_steps`.

        watch: called after every step; what it raises stops the work and reaches the caller.
        """
        return run_to_end(self.inversion_steps(*arguments, **options), watch)

    @outside_inference_mode
    def inversion_steps(
        self,
        image: Picture,
        prompt: str,
        method: str | Method | Knobs = "baret",
        *,
        source_prompt: str | None = None,
        size: tuple[int, int] | None = None,
        fit: str | None = None,
        inversion: Inversion | None = None,
        preset: str | None = None,
        file: str | Path | None = None,
        restart: bool = False,
        overwrite: bool = True,
        **knobs,
    ) -> Generator[Step, None, Inversion]:
        """The same work as a generator of steps, which returns the Inversion.

        The arguments are those of `steps`. inversion: one whose trajectory is taken, and what else it has that was made
        with the same knobs; the rest is made anew. file: where to save the inversion; while it is unfinished it is
        kept beside it, with .part after the name, and a run that was stopped goes on after its last step when it is
        started again. restart: begin anew where such an unfinished file belongs to something else or is damaged,
        instead of refusing. overwrite: a finished file, at the end; without it one that is there, or came to be
        meanwhile, is kept and the unfinished one with it.
        """
        method, knobs = _with_knobs(method, knobs)
        if method.invert is None:
            raise InputError(f"{method.name} has no slow part that could be kept")
        if file is not None:
            file = as_path(file, "file")
            check_name(file)
            check_place(file, overwrite)
        prompts = prompt, source_prompt
        knobs, sd, _, picture, fit = self._prepared(image, prompts, method, size, fit, inversion, preset, knobs)
        origin = Origin.of(sd, picture, fit)

        def work() -> Generator[Step, None, Inversion]:
            kept = resume(file, origin, restart) if file else None
            if kept is None and inversion:
                kept = inversion.belongs_to(origin) if inversion.origin else inversion
            kept = kept.to(self.device) if kept else Inversion()
            kept.origin, kept.anew = origin, inversion is not None
            sd.embed_all(*prompts)
            job = Job(self._start(sd, picture, kept), *prompts, kept)
            sd.warm_up(job.latents.shape)
            found = method.invert(sd, job, knobs)
            yield from keep(found, file, kept, overwrite) if file else found
            return kept

        try:
            return (yield from work())
        except Mismatch as error:
            if not (file and discard(file, restart, error)):
                raise
        return (yield from work())

    def _prepared(
        self,
        image: Picture,
        prompts: tuple[str, str | None],
        method: Method,
        size: tuple[int, int] | None,
        fit: str | None,
        inversion: Inversion | None,
        preset: str | None,
        changes: dict,
    ) -> tuple[Knobs, StableDiffusion, int, Image.Image, str]:
        """Of what `steps` was asked for, checked: the knobs, the networks with the savings that the work needs, the
        estimate of its memory, the fitted picture, and how it was fitted."""
        size, fit = self._frame(size, fit, inversion)
        knobs = self._chosen(method, preset, inversion, changes)
        self.check_prompts(method, *prompts)
        sd, expected = self._plan(method, knobs, size, inversion, (prompts[0], prompts[1] or ""))
        return knobs, sd, expected, fit_image(read_image(image), size, fit), fit

    def _chosen(self, method: Method, preset: str | None, inversion: Inversion | None, knobs: dict) -> Knobs:
        names = {entry.name for entry in dataclasses.fields(method.knobs)}
        stored = inversion.knobs(method.keeps) if inversion and inversion.origin else {}
        stored = {name: value for name, value in stored.items() if name in names}
        return self._settled(method, preset, stored, knobs)

    def check_prompts(self, method: str | Method | Callable, prompt: str, source_prompt: str | None) -> None:
        """Raises InputError for prompts that the method could not use."""
        method = find(method)
        self.sd.tokens(prompt)
        if not prompt.strip():
            raise InputError("a prompt that says what the picture should show was wanted, got an empty one")
        if method.needs_source and not (source_prompt or "").strip():
            got = "none" if source_prompt is None else "an empty one"
            raise InputError(f"{method.name} needs a source prompt that says what the picture shows, got {got}")
        self.sd.tokens(source_prompt or "")

    def check_memory(
        self, method: AnyMethod, size: tuple[int, int] | None = None, preset: str | None = None, **knobs
    ) -> None:
        """Raises InputError where an edit so would not keep the memory limit, or has a knob that the method has not."""
        self._plan(find(method), self.settings(method, preset, **knobs), self.check_size(size), None, ())

    def _plan(
        self, method: Method, knobs: Knobs, size: tuple[int, int], inversion: Inversion | None, prompts: Collection[str]
    ) -> tuple[StableDiffusion, int]:
        """The networks, with the savings of memory that the work needs; the estimate of what it then takes, in bytes.
        Raises InputError where the limit cannot be kept."""
        file = inversion is not None and inversion.origin is not None
        done = file and inversion.holds_tuning(dataclasses.asdict(knobs), [self.sd.tokens(text) for text in prompts])
        parameters = self.model.parameter_counts()
        work = Work(
            config=self.config,
            parameters=parameters,
            size=size,
            rows=method.batch,
            tuning=bool(method.copies or (method.tunes and getattr(knobs, "inner_steps", 1) > 0 and not done)),
            dtype=self.model.dtype,
            device=self.device,
            stored=self.model.stored("unet") if isinstance(self.model, OnDemandModel) else None,
            process=self._process,
            copies=sum(parameters[part] for part in method.copies),
        )
        savings = self.savings
        if self.memory_limit is not None:
            free = not self._dtype_is_fixed
            if file and free:
                # An inversion belongs to one dtype of the UNet; of others than the model's a plan knows only bfloat16.
                half = inversion.origin.dtype == "bfloat16" and work.dtype == torch.float32
                savings, free = dataclasses.replace(savings, unet_dtype=torch.bfloat16 if half else None), False
            savings = plan(self.memory_limit, work, savings, free)
        if savings.streamed and method.copies:
            raise InputError(f"{method.name} tunes copies of networks, which cannot be made of streamed weights")
        return StableDiffusion(self.model, savings), estimate(work, savings)

    def _frame(
        self, size: tuple[int, int] | None, fit: str | None, inversion: Inversion | None
    ) -> tuple[tuple[int, int], str]:
        """Size and fit of the picture: where None, the inversion's. Raises InputError before the picture is read."""
        if inversion is not None and not isinstance(inversion, Inversion):
            got = type(inversion).__name__
            raise InputError(f"an Inversion was wanted, such as load_inversion(path) gives, got {got}")
        if inversion and inversion.origin:
            size, fit = size or inversion.origin.size, fit or inversion.origin.fit
        if fit is not None and fit not in FITS:
            raise InputError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
        return self.check_size(size), fit or FITS[0]

    def _start(self, sd: StableDiffusion, picture: Image.Image, kept: Inversion) -> Tensor:
        """The picture's latents, or those that a kept trajectory begins with."""
        if kept.start is None:
            return sd.encode(picture)
        if kept.start.shape != self._latent_shape(picture.size):
            raise InputError(f"{kept.name} is damaged: its trajectory has other shapes than this picture and model")
        return kept.start

    def _latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Of a picture of (width, height) pixels: (1, 4, h, w)."""
        width, height = (side // self.config.latent_factor for side in size)
        return 1, self.config.unet.latent_channels, height, width

    def _collector(
        self, request: MapRequest, prompts: tuple[str, str | None], size: tuple[int, int], knobs: Knobs
    ) -> MapCollector:
        check_request(request, knobs.steps, len(self.config.unet.channels))
        tokens = dict.fromkeys(MapCollector.branches, find_words(request.words, prompts[0], self.model.tokenizer))
        tokens["source"] = [word_tokens(word, prompts[1] or "", self.model.tokenizer) for word in request.words]
        return MapCollector(request, tokens, self._latent_shape(size)[2:])

    def check_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """(width, height) in pixels, the model's if None. Raises InputError for one that the networks cannot take."""
        side, multiple = self.config.image_size, self.config.size_multiple
        try:
            width, height = map(operator.index, (side, side) if size is None else size)
        except (TypeError, ValueError):
            raise InputError(f"a size must be two whole numbers, (width, height), got {size!r}") from None
        if width < multiple or height < multiple or width % multiple or height % multiple:
            raise InputError(f"width and height must be multiples of {multiple} pixels, got {width}×{height}")
        if max(width, height) > LARGEST_SIDE:
            raise InputError(f"width and height must be at most {LARGEST_SIDE:,} pixels, got {width}×{height}")
        return width, height


def _with_knobs(method: AnyMethod, knobs: dict) -> tuple[Method, dict]:
    """The method; and its knobs, where they came in its place, overridden by those named beside."""
    given = vars(method) if isinstance(method, Knobs) else {}
    return find(method), {**given, **knobs}


def defaults_of(config: ModelConfig, method: Method) -> dict:
    """A model's own defaults: those that hold for every method which has them, then the method's."""
    names = {entry.name for entry in dataclasses.fields(method.knobs)}
    common = {name: value for name, value in config.defaults.items() if name in names}
    return tuples({**common, **config.defaults.get(method.name, {})})


def _latents_of(method: Method, found: object, latents: Tensor) -> dict[str, Tensor]:
    """What a method gave back. Raises InputError where the edit's latents are not among it."""
    edit = found.get("edit") if isinstance(found, dict) else None
    if isinstance(edit, Tensor) and edit.shape == latents.shape:
        return found
    if not isinstance(found, dict):
        got = type(found).__name__
    elif edit is None:
        got = f"branches {list(found)}"
    else:
        got = str(tuple(edit.shape)) if isinstance(edit, Tensor) else type(edit).__name__
    wanted = f"return latents by branch, those of 'edit' with the shape {tuple(latents.shape)}"
    raise InputError(f"{method.name} must {wanted}, got {got}")


def _branches(pictures: Collection[str] | str) -> set[str]:
    """The branches whose pictures are wanted. Raises InputError where they are not named as they should be."""
    if pictures == ALL:
        return {"edit", *BRANCHES}
    listed = isinstance(pictures, Collection) and not isinstance(pictures, str)
    if not listed or not all(isinstance(name, str) for name in pictures):
        raise InputError(f'pictures must be a tuple of names of branches, or "{ALL}", got {pictures!r}')
    return {"edit", *pictures}
