"""Networks on demand, streamed weights and gradient checkpointing leave the edit as it was."""

from itertools import groupby, zip_longest

import pytest
import torch
from runs import BRIEF, PROMPT

import minibaret
from minibaret import InputError, Savings
from minibaret.images import to_pixels
from minibaret.models.unet import UNet
from minibaret.weights import MINIATURE_FOLDER, OnDemandModel, convert

# Networks on demand


def test_networks_are_read_when_used_and_freed():
    model = OnDemandModel(MINIATURE_FOLDER)
    assert there(model) == set()
    vae = model.network("vae")
    before = vae.decoder.conv_in.weight.clone()
    assert model.network("unet").conv_in.weight.dtype == torch.float32 and there(model) == {"unet", "vae"}
    assert model.free_all_but("text_encoder", torch.float32, False) and vae.decoder.conv_in.weight.is_meta
    assert there(model) == set() and not model.free_all_but("text_encoder", torch.float32, False)
    assert torch.equal(model.network("vae").decoder.conv_in.weight, before) and there(model) == {"vae"}
    half, whole = model.network("unet", torch.bfloat16), model.network("unet")
    assert half.conv_in.weight.dtype == torch.bfloat16 and whole.conv_in.weight.dtype == torch.float32
    assert not any(weight.requires_grad for weight in half.parameters())


def there(model: OnDemandModel) -> set[str]:
    return {part for part, *_ in model._here}


def test_savings_leave_the_edit_as_it_was(editor, picture):
    plain = editor.edit(picture, PROMPT, **BRIEF)
    saving = minibaret.load(savings=Savings(on_demand=True, tiled_vae=True, checkpointing=True))
    for _ in range(2):  # the second finds everything freed
        result = saving.edit(picture, PROMPT, **BRIEF)
        assert (to_pixels(result.image) - to_pixels(plain.image)).abs().max() * 127.5 <= 1
        assert there(saving.model) == {"vae"}
    assert str(result.savings) == "networks on demand, tiled VAE, gradient checkpointing"


@pytest.mark.parametrize("work", ["edit", "invert"])
def test_every_network_is_read_once(work, picture, monkeypatch):
    """Null-text inversion asks for the empty prompt after the UNet has run."""
    editor, order, network = minibaret.load(savings=Savings(on_demand=True)), [], OnDemandModel.network
    monkeypatch.setattr(OnDemandModel, "network", lambda model, *form: order.append(form[0]) or network(model, *form))
    getattr(editor, work)(picture, PROMPT, "null-text", source_prompt="a dog", steps=1)
    found = [part for part, _ in groupby(order)]
    assert found[:3] == ["text_encoder", "vae", "unet"] and found[3:] in ([], ["vae"])


def test_a_preview_between_two_steps_leaves_the_edit_as_it_was(editor, picture):
    plain = editor.edit(picture, PROMPT, **BRIEF)
    saving, previews = minibaret.load(savings=Savings(on_demand=True)), []

    def preview(step) -> None:
        previews.append(saving.sd.decode(step.latents))

    whole = saving.edit(picture, PROMPT, watch=preview, **BRIEF)
    assert len(previews) == 6 and whole.image.tobytes() == plain.image.tobytes() == previews[-1].tobytes()
    inversion = saving.invert(picture, PROMPT, watch=preview, **BRIEF)
    assert len(inversion.items("target embeddings")) == 2 and len(previews) == 10


def test_a_dtype_of_the_unet_alone_takes_effect_without_a_limit(picture):
    with pytest.raises(InputError, match="float16 or bfloat16, got 'bfloat16'"):
        Savings(unet_dtype="bfloat16")
    editor = minibaret.load(savings=Savings(unet_dtype=torch.bfloat16))
    result = editor.edit(picture, PROMPT, steps=1, inner_steps=0)
    assert str(result.savings) == "UNet in bfloat16" and editor.sd.unet.dtype == torch.bfloat16
    assert editor.model.network("vae").quant_conv.weight.dtype == torch.float32


# Gradient checkpointing and streamed weights


def test_checkpointing_leaves_every_bit_of_the_gradient(unet, one_thread):
    """Also of the weights, and where a tensor goes two ways."""
    found = []
    for on in (False, True):
        unet.set_checkpointing(on)
        context = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(2)).requires_grad_()
        unet.requires_grad_().zero_grad()
        unet(torch.ones(2, 4, 16, 16), torch.tensor(5), context).square().sum().backward()
        found.append([context.grad, *(weight.grad for weight in unet.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*found)) and found[0][0].abs().max() > 0


def noise_and_gradient(unet: UNet, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    unet.set_checkpointing(True)
    numbers = torch.Generator().manual_seed(1)
    latents, context = torch.randn(2, 4, 16, 16, generator=numbers), torch.randn(2, 77, 24, generator=numbers)
    context.requires_grad_()
    noise = unet(latents.to(dtype), torch.tensor(481), context.to(dtype)).float()
    return noise.detach(), torch.autograd.grad(noise.square().sum(), context)[0]


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_weights_give_the_same_bits(tiny, tmp_path, one_thread, stored, dtype):
    """Where they lie, and converted; forwards and backwards, and again."""
    folder = tiny
    if stored != "float32":
        convert(tiny, folder := tmp_path / stored, stored)
    model = OnDemandModel(folder, dtype=dtype)
    streamed = model.network("unet", streamed=True)
    for _ in range(2):
        found, wanted = noise_and_gradient(streamed, dtype), noise_and_gradient(model.network("unet"), dtype)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1]) and found[1].abs().max() > 0


def test_a_streamed_edit_is_the_same(tiny, picture, one_thread):
    found, plain = (
        minibaret.load(tiny, dtype="float32", savings=savings).edit(picture, PROMPT, steps=2, inner_steps=2)
        for savings in (Savings(streamed=True), Savings(checkpointing=True))
    )
    assert str(found.savings) == "streamed weights" and found.counts.gradient_passes == 4
    assert torch.equal(found.latents["edit"], plain.latents["edit"])


def test_streamed_weights_have_the_digest_of_the_others(tiny, picture):
    kept = minibaret.load(tiny).invert(picture, PROMPT, **BRIEF)
    streamed = minibaret.load(tiny, savings=Savings(streamed=True))
    assert streamed.edit(picture, PROMPT, inversion=kept, **BRIEF).counts.gradient_passes == 0


def test_what_tunes_copies_of_networks_refuses_streamed_weights(tiny, picture):
    editor = minibaret.load(tiny, savings=Savings(streamed=True))
    with pytest.raises(InputError, match="imagic tunes copies of networks, which cannot be made of streamed weights"):
        editor.edit(picture, PROMPT, "imagic", steps=1)


def test_looking_through_the_weights_does_not_undo_what_was_written_to_them(tiny):
    model = OnDemandModel(tiny)
    name, weight = next(model.network("text_encoder").named_parameters())
    before = weight.clone()
    weight.mul_(2)
    found = dict(model.weights("text_encoder", torch.float32))  # the file's, as an inversion's origin has them
    assert torch.equal(weight, 2 * before) and torch.equal(found[name], before)


def test_networks_read_on_demand_in_a_callers_inference_mode_let_gradients_pass(tiny, picture):
    editor = minibaret.Editor(OnDemandModel(tiny), Savings(on_demand=True))
    with torch.inference_mode():
        assert editor.generate("a dog", steps=1)["edit"].size
    assert editor.edit(picture, PROMPT, **BRIEF).counts.gradient_passes > 0


def test_interleaved_edits_of_one_editor_do_not_disturb_each_other(tiny, picture, one_thread):
    """Three at once, each with savings of its own, step by step in turn."""
    model, together = OnDemandModel(tiny), {}
    ways = [Savings(), Savings(on_demand=True, unet_dtype=torch.bfloat16), Savings(streamed=True)]

    def edit(way):
        together[way] = yield from minibaret.Editor(model, way).steps(picture, PROMPT, **BRIEF)

    for _ in zip_longest(*map(edit, ways)):
        pass
    for way in ways:
        alone = minibaret.Editor(OnDemandModel(tiny), way).edit(picture, PROMPT, **BRIEF)
        assert torch.equal(alone.latents["edit"], together[way].latents["edit"])
