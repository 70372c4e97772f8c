"""Metrics: by hand, and against the libraries that defined them, on random weights."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from checkpoints import vocabulary
from PIL import Image
from safetensors.torch import save_file

from minibaret.errors import InputError
from minibaret.evaluation.cases import Case, folder_cases, named, pie_cases
from minibaret.evaluation.metrics import METRICS, background, ssim
from minibaret.evaluation.networks import Missing, Networks, library
from minibaret.images import to_pixels
from minibaret.weights.folder import load_image_encoder

transformers = pytest.importorskip("transformers")


def picture(seed: int, side: int = 64) -> Image.Image:
    """Noise that is smooth enough for its structure to count."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255


@pytest.fixture
def case() -> Case:
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 5:30] = 255
    return Case(picture(1), "a dog", "a cat", mask=Image.fromarray(mask))


def test_background_metrics_are_pie_benchs(case):
    """As its evaluation has them: both pictures times 1 − mask, then torchmetrics over the whole frame."""
    metrics = pytest.importorskip("torchmetrics")
    keep = torch.from_numpy(1 - np.asarray(case.mask) / 255).float()
    before, after = ((pixels(each).double() * keep).contiguous() for each in (case.image, picture(2)))
    wanted = {
        "background_psnr": metrics.image.PeakSignalNoiseRatio(data_range=1.0)(after, before),
        "background_mse": 1e4 * metrics.MeanSquaredError()(after, before),
    }
    for name, value in wanted.items():
        assert METRICS[name].of(case, picture(2), Networks()) == pytest.approx(value.item(), rel=1e-5)


def test_ssim_is_its_formula():
    pytest.importorskip("torchmetrics")
    a, b = ((to_pixels(picture(seed)).double() + 1) / 2 for seed in (1, 2))
    window = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (window[:, None] * window / window.sum() ** 2).expand(3, 1, 11, 11)

    def mean(x):
        return torch.nn.functional.conv2d(x, window, groups=3)

    c1, c2 = 0.01**2, 0.03**2
    var_a, var_b, both = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2, mean(a * b) - mean(a) * mean(b)
    values = (2 * mean(a) * mean(b) + c1) * (2 * both + c2)
    values /= (mean(a) ** 2 + mean(b) ** 2 + c1) * (var_a + var_b + c2)
    assert ssim(picture(1), picture(2)) == pytest.approx(values.mean().item(), abs=1e-5)  # float32
    assert ssim(picture(1), picture(1)) == pytest.approx(1)


def test_metrics_that_need_no_network_by_hand():
    """Two grey pixels and a white one that becomes black: the picture misses by 10, 20 and 30 of 255."""
    before, after, other = (
        Image.fromarray(np.uint8([[[v] * 3 for v in row]])) for row in ([9, 9, 255], [9, 9, 0], [9, 9, 70])
    )
    edited = Image.fromarray(np.uint8([[[v] * 3 for v in (19, 29, 30)]]))
    case = Case(before, "black", "white", {"white": before, "black": after, "grey": other})
    found = {name: METRICS[name].of(case, edited, Networks()) for name in ("success", "answer_psnr", "earned")}
    right = 10 * math.log10(255**2 / ((10**2 + 20**2 + 30**2) / 3))
    assert found == {"success": True, "answer_psnr": pytest.approx(right), "earned": pytest.approx(right)}
    kept = METRICS["background_psnr"].of(case, edited, Networks())
    assert kept == pytest.approx(10 * math.log10(255**2 / ((10**2 + 20**2) / 3)))
    grey = Image.fromarray(np.uint8([[[v] * 3 for v in (9, 9, 60)]]))
    assert METRICS["success"].of(case, grey, Networks()) is False and METRICS["earned"].of(case, grey, Networks()) == 0


def test_what_a_case_does_not_have_is_not_scored():
    bare = Case(picture(1), "a dog")
    everywhere = dataclasses.replace(bare, mask=Image.new("L", (64, 64), 255))
    names = [name for name in METRICS if name.startswith(("background", "answer", "success", "earned"))]
    assert all(METRICS[name].of(bare, picture(2), Networks()) is None for name in names)
    assert background(everywhere, picture(2)) is None and bare.changing is None


def test_a_network_that_is_not_there_is_named(case):
    for name, needs in {
        "clip": "clip", "clip_edited": "clip", "clip_score": "clip", "structure": "dino",
        "background_lpips": "squeezenet1_1.safetensors", "one_minus_lpips": "alexnet.safetensors",
    }.items():  # fmt: skip
        with pytest.raises(Missing, match=f"^needs {needs}$"):
            METRICS[name].of(case, picture(2), Networks())
    with pytest.raises(Missing, match=r"^needs minibaret\[eval\]$"):
        library("no_such_library")


# Networks of random weights, where the real ones would be.


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Networks:
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    merges = [("d", "o"), ("do", "g</w>")]
    tokens = vocabulary(merges)
    text = {"vocab_size": len(tokens), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "eos_token_id": len(tokens) - 1, "bos_token_id": len(tokens) - 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**vision, "image_size": 224, "patch_size": 32}, projection_dim=16
    )
    transformers.CLIPModel(config).save_pretrained(folder / "clip")
    tokenizer = transformers.CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder / "clip")
    sizes = {**vision, "hidden_size": 48, "image_size": 224, "patch_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(folder / "dino")
    return Networks(folder)


def test_clip_similarity_is_transformers(networks, case):
    """Written out from its parts: the picture at 224×224, bicubic, normalised; projections; cosine."""
    model, tokenizer = networks._clip
    tokens = tokenizer([case.prompt], return_tensors="pt")
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (transformers.image_utils.OPENAI_CLIP_MEAN, transformers.image_utils.OPENAI_CLIP_STD)
    )

    @torch.no_grad()
    def similarity(image):
        x = (pixels(image.resize((224, 224), Image.Resampling.BICUBIC)) - mean) / std
        a = model.visual_projection(model.vision_model(x).pooler_output)[0]
        b = model.text_projection(model.text_model(**tokens).pooler_output)[0]
        return (a @ b / (a.norm() * b.norm())).item()

    edited = picture(2)
    images = transformers.CLIPImageProcessor()(edited, return_tensors="pt")  # resizes as torchvision where it is
    theirs = model(**images, **tokens).logits_per_image.item() / model.logit_scale.exp().item()
    assert METRICS["clip"].of(case, edited, networks) == pytest.approx(100 * theirs, abs=0.02)
    region = Image.fromarray(np.asarray(edited) * (np.asarray(case.mask)[..., None] // 255))
    whole = similarity(edited)
    assert abs(whole) > 0.01 and abs(similarity(region) - whole) > 1e-4
    assert METRICS["clip"].of(case, edited, networks) == pytest.approx(100 * whole, abs=1e-3)
    assert METRICS["clip_edited"].of(case, edited, networks) == pytest.approx(100 * similarity(region), abs=1e-3)
    assert METRICS["clip_score"].of(case, edited, networks) == pytest.approx(2.5 * max(whole, 0), abs=1e-4)


def test_structure_distance_is_the_published_one(networks, case):
    """Written out after PnPInversion: 0 … 255 to DINO, the keys of the last layer, cosines, mean squared error."""
    model = transformers.ViTModel.from_pretrained(networks.folder / "dino", add_pooling_layer=False).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    @torch.no_grad()
    def similarity(image):
        x = torch.nn.functional.interpolate(pixels(image) * 255, (224, 224), mode="bilinear")
        x = (x - mean[:, None, None]) / std[:, None, None]
        last = model.layers[-1]
        before = model(x, output_hidden_states=True).hidden_states[-2]
        keys = last.attention.k_proj(last.layernorm_before(before))[0]
        norms = keys.norm(dim=-1)
        return keys @ keys.T / (norms[:, None] * norms)

    wanted = 1e3 * (similarity(picture(2)) - similarity(case.image)).square().mean().item()
    assert wanted > 1 and METRICS["structure"].of(case, picture(2), networks) == pytest.approx(wanted, rel=1e-4)
    assert METRICS["structure"].of(case, case.image, networks) == 0


def test_lpips_is_torchmetrics(tmp_path):
    """lpips defined it, torchmetrics has its own; both want torchvision, and backbones: random ones here."""
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    pytest.importorskip("lpips")
    from torchmetrics.functional.image import lpips as theirs

    for name, backbone in {"squeeze": models.squeezenet1_1(), "alex": models.alexnet()}.items():
        file = {"squeeze": "squeezenet1_1", "alex": "alexnet"}[name]
        save_file({n: t.contiguous() for n, t in backbone.state_dict().items()}, tmp_path / f"{file}.safetensors")
        other = theirs._LPIPS(pnet_rand=True, net=name, eval_mode=True)
        values = [tensor for n, tensor in backbone.state_dict().items() if n.startswith("features.")]
        other.net.load_state_dict(dict(zip(other.net.state_dict(), values, strict=True)))
        wanted = other(to_pixels(picture(1)), to_pixels(picture(2))).item()
        found = Networks(tmp_path).lpips(name, picture(1), picture(2))
        assert wanted > 1e-3 and found == pytest.approx(wanted, rel=1e-4)
    (tmp_path / "alexnet.safetensors").write_bytes((tmp_path / "squeezenet1_1.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"alexnet.safetensors must have the tensors of torchvision's network"):
        Networks(tmp_path).lpips("alex", picture(1), picture(2))


def test_fid_is_the_frechet_distance_of_the_pairs_features():
    pytest.importorskip("torchmetrics")
    tower = load_image_encoder()
    sets = [[picture(seed, 128) for seed in range(first, first + 5)] for first in (0, 10)]
    with torch.no_grad():
        one, other = (np.stack([tower.image_encoder(to_pixels(p))[0].numpy() for p in each]) for each in sets)
    a, b = (np.cov(each.astype(np.float64), rowvar=False) for each in (one, other))
    roots = np.linalg.eigvals(a @ b).astype(complex) ** 0.5
    wanted = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * roots.real.sum()
    found = Networks(tower=tower).fid(*sets)
    assert wanted > 0.01 and found == pytest.approx(wanted, rel=1e-3)
    with pytest.raises(Missing, match=r"needs inception.safetensors"):
        Networks().fid(*sets)


def test_the_miniatures_own_pair_finds_the_right_caption(editor):
    from minibaret.weights.miniature.cases import drawn_case

    networks, case = Networks(None, editor.sd, load_image_encoder()), drawn_case("animal", 4, 128)
    found = {prompt: networks.similarity(case.answer, prompt) for prompt in case.answers}
    assert max(found, key=found.get) == case.prompt and 0.3 < found[case.prompt] <= 1


@pytest.mark.parametrize("part", ["clip", "dino"])
def test_a_folder_without_all_weights_is_refused(part, networks, case, tmp_path):
    from safetensors.torch import load_file

    (tmp_path / part).mkdir()
    for path in (networks.folder / part).iterdir():
        (tmp_path / part / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / part / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("k_proj.weight") or name.endswith("key.weight")))
    save_file(tensors, tmp_path / part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="must hold a whole"):
        METRICS[{"clip": "clip", "dino": "structure"}[part]].of(case, picture(2), Networks(tmp_path))
    (tmp_path / part / "model.safetensors").unlink()
    with pytest.raises(InputError, match="must hold a"):
        METRICS[{"clip": "clip", "dino": "structure"}[part]].of(case, picture(2), Networks(tmp_path))


# Folders of cases.

SIDE, FRAME = 512, 4 * 511
ENTRIES = {  # masks: a row of ten; two runs, the second of them on the frame; nothing but the frame; everything
    "000000000000": ("5", "a [brown] dog", "a [black] dog", [100 * SIDE + 50, 10]),
    "111000000001": ("1", "a dog", "a [cat]", [200 * SIDE + 500, 24, 0, 5]),
    "222000000002": ("5", "a dog standing", "a dog [sitting]", []),
    "333000000003": ("9", "a photo", "a [painting]", [0, SIDE * SIDE]),
}
COUNTS = [FRAME + 10, FRAME + 11 + 11, FRAME, SIDE * SIDE]  # row 200 from 500 to its end, 11 before the frame; then on


@pytest.fixture
def pie(tmp_path):
    (tmp_path / "annotation_images" / "0").mkdir(parents=True)
    values = {}
    for number, (key, (kind, source, prompt, mask)) in enumerate(ENTRIES.items()):
        image = f"0/{key}.png"
        Image.new("RGB", (SIDE, SIDE), (100, 100 + number, 100)).save(tmp_path / "annotation_images" / image)
        values[key] = {
            "image_path": image, "original_prompt": source, "editing_prompt": prompt, "editing_type_id": kind,
            "editing_instruction": "", "blended_word": "", "mask": mask,
        }  # fmt: skip
    (tmp_path / "mapping_file.json").write_text(json.dumps(values))
    return tmp_path


def test_a_pie_bench_folder_is_read(pie):
    sources = pie_cases(str(pie))
    assert [source.name[:-9] for source in sources] == [
        "pose/000000000000", "change-object/111000000001", "pose/222000000002", "style/333000000003",
    ]  # fmt: skip
    cases = [source.make() for source in sources]
    assert [int(case.changing.sum()) for case in cases] == COUNTS
    assert cases[0].changing[100, 50:60].all() and not cases[0].changing[100, [49, 60]].any()
    assert cases[1].changing[200, 500:].all() and cases[1].changing[201, :12].all() and not cases[1].changing[201, 12]
    assert (cases[0].source_prompt, cases[0].prompt) == ("a brown dog", "a black dog") and cases[0].answer is None
    assert [case.image.getpixel((9, 9))[1] for case in cases] == [100, 101, 102, 103]
    assert [source.name[:-8] for source in pie_cases(f"{pie}:pose")] == ["pose/000000000000-", "pose/222000000002-"]


def test_background_of_pie_bench_by_hand(pie):
    """An edit that is brighter by ten everywhere: the squared error of the pixels that the mask leaves."""
    for source, count in zip(pie_cases(str(pie)), COUNTS):
        case = source.make().fitted((SIDE, SIDE))
        edited = Image.fromarray(np.asarray(case.image) + np.uint8(10))
        found = METRICS["background_mse"].of(case, edited, Networks())
        if count == SIDE * SIDE:
            assert found is None
        else:
            wanted = (SIDE * SIDE - count) / (SIDE * SIDE) * (10 / 255) ** 2
            assert found == pytest.approx(1e4 * wanted)
            found = METRICS["background_psnr"].of(case, edited, Networks())
            assert found == pytest.approx(-10 * math.log10(wanted))


def test_a_damaged_pie_bench_folder_is_refused(pie):
    path = pie / "mapping_file.json"
    values = json.loads(path.read_text())
    first = next(iter(values))

    def broken(**changes):
        path.write_text(json.dumps({**values, first: {**values[first], **changes}}))
        return pie_cases(str(pie))

    ids = ({"editing_type_id": number} for number in ("12", "-1"))
    for changes in (*ids, *({"mask": mask} for mask in (["x"], 3, None, [float("inf"), 3]))):
        with pytest.raises(InputError, match=f"entry {first} of .* must have an editing_type_id of 0 to 9, image_path"):
            broken(**changes)
    with pytest.raises(InputError, match=r"a picture was wanted at .*gone.png, but there is none"):
        broken(image_path="gone.png")
    for mask in ([5], [SIDE * SIDE, 1], [0, SIDE * SIDE + 1], [-1, 5]):
        with pytest.raises(InputError, match="a mask must be pairs of start and length within 262144 pixels"):
            broken(mask=mask)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"mapping_file.json must be an object"):
        pie_cases(str(pie))


def test_a_folder_with_a_table_is_read(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    table = tmp_path / "list.csv"
    table.write_text('image,prompt,kind\na.png,"a dog, sitting",pose\na.png,a cat,\n')
    sources = folder_cases(str(tmp_path))
    assert [source.name[:-8] for source in sources] == ["pose/a-", f"{tmp_path.name}/a-"]
    assert named("../x", "a b/..", tmp_path / "a.png")[:-8] == "-x/a-b--"
    case = sources[0].make()
    assert (case.prompt, case.source_prompt, case.kind) == ("a dog, sitting", None, "pose")
    assert case.image.size == (30, 20) and case.changing is None
    table.write_text("image,prompt,source_prompt\na.png,a cat,a dog\n")
    other = folder_cases(str(tmp_path))[0]
    assert other.make().source_prompt == "a dog" and other.name.partition("/")[2] != sources[1].name.partition("/")[2]
    for text, said in (
        ("image,prompt\ngone.png,a cat\n", "a picture was wanted at .*gone.png, but there is none"),
        (
            "image,text\na.png,a cat\n",
            r"list.csv must name columns, image and prompt among them, got \['image', 'text'\]",
        ),
        ("", r"must name columns, image and prompt among them, got \(\)"),
        ("image,prompt\na.png,a cat, lying down\n", "line 2 of .*list.csv has more columns than the first"),
        ('image,prompt\na.png,"a cat\n', "must be a CSV file in UTF-8, but: unexpected end of data"),
        ("image,prompt\na.png,a c\udce4t\n", "must be a CSV file in UTF-8, but: .* can't decode byte 0xe4"),
        ("image,prompt\na.png,a cat\na.png,\n", "line 3 of .*list.csv must have"),
        ("image,prompt,source_prompt\na.png,a cat,a dog\na.png,a cat,\n", "a source_prompt in every line or in none"),
    ):
        table.write_text(text, errors="surrogateescape")
        with pytest.raises(InputError, match=said):
            folder_cases(str(tmp_path))
    (tmp_path / "other.csv").write_text("")
    with pytest.raises(InputError, match=r"a folder with one CSV file was wanted, but .* has 2"):
        folder_cases(str(tmp_path))
