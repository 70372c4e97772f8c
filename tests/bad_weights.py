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


def header(folder, content, length=None, data=bytes(4)):
    """A file with this header, which claims another length if one is given."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    path = folder / "model.safetensors"
    path.write_bytes((length or len(content)).to_bytes(8, "little") + content + data)
    return path


def one(name="a", **changes):
    return {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


def no_json(folder, weights):
    return header(folder, b"{nothing}")


def nested(folder, weights):
    return header(folder, b'{"a":' * 5000 + b"1" + b"}" * 5000)


def header_of_gigabytes(folder, weights):
    path = header(folder, one(), 2_000_000_000)
    os.truncate(path, 3_000_000_000)  # with a hole in it: no disk is used
    return path


def header_of_a_million_values(folder, weights):
    return header(folder, b'{"a":[' + b"0," * 1_000_001 + b"0]}")


def lone_surrogate(folder, weights):
    return header(folder, one("\ud800.x"))


def name_of_several_lines(folder, weights):
    return header(folder, one("a\n\x1b[31mb"))


def endless_name(folder, weights):
    return header(folder, one("a" * 5000))


def endless_number_in_a_name(folder, weights):
    return header(folder, one(f"model.diffusion_model.input_blocks.{'9' * 5000}.0.in_layers.0.weight"))


def attention_without_shape(folder, weights):
    return header(folder, one(ATTENTION, shape=[]))


def shape_of_fractions(folder, weights):
    return header(folder, one(shape=[1.0]))


def offsets_of_fractions(folder, weights):
    return header(folder, one(data_offsets=[0.0, 4.0]))


def shape_of_truth(folder, weights):
    return header(folder, one(shape=[True]))


def endless_shape(folder, weights):
    return header(folder, one(shape=[2**62] * 100_000))


def dtype_that_is_a_list(folder, weights):
    return header(folder, one(dtype=["F32"]))


def list_of_tensors(folder, weights):
    return header(folder, b"{" + json.dumps([one()]).encode())


def index_of(value):
    def make(folder, weights):
        write_hugging_face(folder, weights, shards=1)
        index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": value}}))
        return folder

    return make


def linked_to_nowhere(folder, weights):
    """As the snapshots of a Hugging Face download that was interrupted."""
    write_hugging_face(folder, weights)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    path.symlink_to("../../../blobs/0123abcd")
    return folder


def shard_linked_to_nowhere(folder, weights):
    write_hugging_face(folder, weights, shards=2)
    path = folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    path.unlink()
    path.symlink_to("../../../blobs/0123abcd")
    return folder


def config_linked_to_nowhere(folder, weights):
    write_hugging_face(folder, weights)
    (folder / "vae" / "config.json").symlink_to("../../../blobs/0123abcd")
    return folder


def config_of_a_list(folder, weights):
    write_hugging_face(folder, weights)
    (folder / "vae" / "config.json").write_text("[1]")
    return folder


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
    (nested, "its header does not parse (RecursionError"),
    (header_of_gigabytes, "its header would have 2,000,000,000 bytes, and at most 100,000,000 are allowed"),
    (header_of_a_million_values, "its header does not parse (ValueError: it lists more than 1,000,000 values)"),
    (lone_surrogate, "its header does not parse (UnicodeEncodeError"),
    (name_of_several_lines, "has tensors such as a\\n\\x1b[31mb"),
    (endless_name, "has tensors such as aaaa"),
    (endless_number_in_a_name, "is no Stable Diffusion"),
    (attention_without_shape, "attn2.to_k.weight has shape [], wanted [320, 768]"),
    (shape_of_fractions, "a has a shape or data_offsets that no tensor has"),
    (offsets_of_fractions, "a has a shape or data_offsets that no tensor has"),
    (shape_of_truth, "a has a shape or data_offsets that no tensor has"),
    (endless_shape, "a has a shape or data_offsets that no tensor has"),
    (dtype_that_is_a_list, "its header does not parse (TypeError"),
    (list_of_tensors, "its header does not parse"),
    (index_of(5), 'JSON with a "weight_map" of file names was wanted'),
    (index_of(None), 'JSON with a "weight_map" of file names was wanted'),
    (index_of("a\0b"), r"lists the shard a\x00b, which is not beside it"),
    (index_of("x" * 5000), "lists the shard xxx"),
    (linked_to_nowhere, "is a link to ../../../blobs/0123abcd, which is not there"),
    (shard_linked_to_nowhere, "is a link to ../../../blobs/0123abcd, which is not there"),
    (config_linked_to_nowhere, "is a link to ../../../blobs/0123abcd, which is not there"),
    (config_of_a_list, "vae/config.json is not a config: a JSON object was wanted"),
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
    (velocity, 'says prediction_type is "v_prediction"'),
    (broken_config, "config.json is not a minibaret config"),
]
