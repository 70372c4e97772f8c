"""Files and folders that are no weights of Stable Diffusion 1.5, and what is to be said of each."""

import json
import os

import torch
from checkpoints import TINY, ldm_tensors, write_hugging_face, write_minibaret, write_single

ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def stable_diffusion_2(folder, weights):
    tensors = {ATTENTION: torch.zeros(16, 1024), "cond_stage_model.model.positional_embedding": torch.zeros(77, 1024)}
    return write_single(folder / "v2-1_768-ema-pruned.safetensors", tensors)


def stable_diffusion_2_folder(folder, weights):
    unet = {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.zeros(16, 1024)}
    return write_hugging_face(folder, {**weights, "unet": unet})


def sdxl(folder, weights):
    tensors = {ATTENTION.replace("1.1", "4.1"): torch.zeros(16, 2048), "conditioner.embedders.0.x": torch.zeros(1)}
    return write_single(folder / "sd_xl_base_1.0.safetensors", tensors)


def sdxl_folder(folder, weights):
    (folder / "text_encoder_2").mkdir()
    return write_hugging_face(folder, weights)


def inpainting(folder, weights):
    tensors = {
        ATTENTION: torch.zeros(16, 768),
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(16, 9, 3, 3),
    }
    return write_single(folder / "sd-v1-5-inpainting.safetensors", tensors)


def lora(folder, weights):
    name = "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"
    return write_single(folder / "style.safetensors", {name: torch.zeros(4, 2)})


def lora_of_diffusers(folder, weights):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    return write_single(folder / "pytorch_lora_weights.safetensors", {name: torch.zeros(4, 2)})


def controlnet(folder, weights):
    return write_single(folder / "control.safetensors", {"control_model.time_embed.0.weight": torch.zeros(2)})


def pickle(folder, weights):
    path = folder / "v1-5-pruned-emaonly.ckpt"
    torch.save({"state_dict": {}}, path)
    return path


def pickle_in_disguise(folder, weights):
    return pickle(folder, weights).rename(folder / "model.safetensors")


def folder_of_pickles(folder, weights):
    pickle(folder, weights)
    return folder


def pickle_in_hugging_face_folder(folder, weights):
    write_hugging_face(folder, weights)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    return folder


def cut_short(folder, weights):
    path = write_single(folder / "model.safetensors", ldm_tensors(weights))
    os.truncate(path, 3_000_000)
    return path


def cut_in_the_header(folder, weights):
    path = write_single(folder / "model.safetensors", ldm_tensors(weights))
    os.truncate(path, 5000)
    return path


def too_long(folder, weights):
    path = write_single(folder / "model.safetensors", ldm_tensors(weights))
    path.write_bytes(path.read_bytes() + b"123")
    return path


def wrong_places(folder, weights):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    return path


def no_json(folder, weights):
    path = folder / "model.safetensors"
    path.write_bytes((9).to_bytes(8, "little") + b"{nothing}")
    return path


def text(folder, weights):
    path = folder / "model.safetensors"
    path.write_text("<!DOCTYPE html><html>404: not found</html>")
    return path


def nothing_in_it(folder, weights):
    (folder / "model.safetensors").touch()
    return folder / "model.safetensors"


def a_picture(folder, weights):
    path = folder / "dog.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    return path


def empty_folder(folder, weights):
    return folder


def folder_of_something(folder, weights):
    (folder / "readme.txt").touch()
    return folder


def folder_with_a_single_file(folder, weights):
    write_single(folder / "v1-5-pruned-emaonly.safetensors", {"x": torch.zeros(1)})
    return folder


def missing(folder, weights):
    return folder / "nothing"


def other_widths(folder, weights):
    return write_single(folder / "model.safetensors", ldm_tensors(weights))


def no_shard(folder, weights):
    write_hugging_face(folder, weights, shards=2)
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    return folder


def shards_without_their_list(folder, weights):
    write_hugging_face(folder, weights, shards=2)
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").unlink()
    return folder


def shard_elsewhere(folder, weights):
    write_hugging_face(folder, weights, shards=1)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../vae/other.safetensors"}}))
    return folder


def only_a_variant(folder, weights):
    return write_hugging_face(folder, weights, variant="fp16")


def velocity(folder, weights):
    write_hugging_face(folder, weights)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    return folder


def broken_config(folder, weights):
    write_minibaret(folder, weights, TINY)
    (folder / "config.json").write_text('{"name": "tiny"}')
    return folder


BAD = [
    (stable_diffusion_2, "is a Stable Diffusion 2.x model (its UNet reads text of width 1024, not 768)"),
    (stable_diffusion_2_folder, "is a Stable Diffusion 2.x model"),
    (sdxl, "is a Stable Diffusion XL model"),
    (sdxl_folder, "is a Stable Diffusion XL model"),
    (inpainting, "is an inpainting model (its UNet has 9 input channels, not 4)"),
    (lora, "is a LoRA file"),
    (lora_of_diffusers, "is a LoRA file"),
    (controlnet, "is no Stable Diffusion checkpoint"),
    (pickle, "is a pickle (.ckpt)"),
    (pickle_in_disguise, "it is a PyTorch pickle under another name"),
    (folder_of_pickles, "holds only pickles (v1-5-pruned-emaonly.ckpt)"),
    (pickle_in_hugging_face_folder, "there is only diffusion_pytorch_model.bin, a pickle"),
    (cut_short, "is cut short: its header wants"),
    (cut_in_the_header, "is cut short: its header alone wants"),
    (too_long, "is damaged: its header wants"),
    (wrong_places, "is damaged: tensor a begins at byte"),
    (no_json, "its header does not parse"),
    (text, "it is a web page"),
    (nothing_in_it, "is not a safetensors file: it has 0 bytes"),
    (a_picture, "is not a safetensors file: it begins with"),
    (empty_folder, "is an empty folder"),
    (folder_of_something, "holds no weights"),
    (folder_with_a_single_file, "holds v1-5-pruned-emaonly.safetensors: name the file itself"),
    (missing, "there is no file or folder"),
    (other_widths, "has shape [16], wanted [320]"),
    (no_shard, "lists the shard diffusion_pytorch_model-00002-of-00002.safetensors, which is not beside it"),
    (shards_without_their_list, "one piece of several, without the diffusion_pytorch_model.safetensors.index.json"),
    (shard_elsewhere, "lists the shard ../vae/other.safetensors, which is not beside it"),
    (only_a_variant, "which --variant fp16 chooses"),
    (velocity, "says prediction_type is 'v_prediction'"),
    (broken_config, "config.json is not a minibaret config"),
]
