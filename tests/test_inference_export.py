"""What 05 exports is what other programs read, and draws the same."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from helpers.core.errors import RunError
from helpers.core.files import find_corruption
from helpers.core.run import Run
from helpers.inference.share.modelspec import Variant
from helpers.inference.share.one_file import export, original_state, to_kohya
from helpers.models.lora import read_lora
from helpers.models.original_names import (
    text_encoder_to_original,
    unet_to_original,
    vae_to_original,
)
from helpers.models.pipeline import load_pipeline
from tests.conftest import ROOT

SD15_UNET = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SD15_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


class Published(dict):
    """Names and shapes as CompVis's modules give them to their weights, built as those modules build."""

    def layer(self, name, *shape, bias=True):
        self[name + ".weight"] = shape
        if bias:
            self[name + ".bias"] = shape[:1]

    def unet_resnet(self, name, inside, out, emb):
        self.layer(f"{name}.in_layers.0", inside)
        self.layer(f"{name}.in_layers.2", out, inside, 3, 3)
        self.layer(f"{name}.emb_layers.1", out, emb)
        self.layer(f"{name}.out_layers.0", out)
        self.layer(f"{name}.out_layers.3", out, out, 3, 3)
        if inside != out:
            self.layer(f"{name}.skip_connection", out, inside, 1, 1)

    def transformer(self, name, width, context):
        self.layer(f"{name}.norm", width)
        for end in ("proj_in", "proj_out"):
            self.layer(f"{name}.{end}", width, width, 1, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, words in (("attn1", width), ("attn2", context)):
            self.layer(f"{block}.{attention}.to_q", width, width, bias=False)
            self.layer(f"{block}.{attention}.to_k", width, words, bias=False)
            self.layer(f"{block}.{attention}.to_v", width, words, bias=False)
            self.layer(f"{block}.{attention}.to_out.0", width, width)
        for norm in ("norm1", "norm2", "norm3"):
            self.layer(f"{block}.{norm}", width)
        self.layer(f"{block}.ff.net.0.proj", 8 * width, width)
        self.layer(f"{block}.ff.net.2", width, 4 * width)

    def unet(self, widths, layers, context, attends, root="model.diffusion_model"):
        """openaimodel.UNetModel; `attends` says which levels have transformers."""
        first, emb = widths[0], 4 * widths[0]
        self.layer(f"{root}.time_embed.0", emb, first)
        self.layer(f"{root}.time_embed.2", emb, emb)
        self.layer(f"{root}.input_blocks.0.0", first, 4, 3, 3)
        channels, now, block = [first], first, 1
        for level, width in enumerate(widths):
            for _ in range(layers):
                self.unet_resnet(f"{root}.input_blocks.{block}.0", now, width, emb)
                if attends[level]:
                    self.transformer(f"{root}.input_blocks.{block}.1", width, context)
                now, block = width, block + 1
                channels.append(now)
            if level < len(widths) - 1:
                self.layer(f"{root}.input_blocks.{block}.0.op", now, now, 3, 3)
                channels.append(now)
                block += 1
        self.unet_resnet(f"{root}.middle_block.0", now, now, emb)
        self.transformer(f"{root}.middle_block.1", now, context)
        self.unet_resnet(f"{root}.middle_block.2", now, now, emb)
        block = 0
        for level in reversed(range(len(widths))):
            for i in range(layers + 1):
                name = f"{root}.output_blocks.{block}"
                self.unet_resnet(f"{name}.0", now + channels.pop(), widths[level], emb)
                now = widths[level]
                if attends[level]:
                    self.transformer(f"{name}.1", now, context)
                if level and i == layers:
                    self.layer(f"{name}.{1 + attends[level]}.conv", now, now, 3, 3)
                block += 1
        self.layer(f"{root}.out.0", now)
        self.layer(f"{root}.out.2", 4, first, 3, 3)

    def vae_resnet(self, name, inside, out):
        self.layer(f"{name}.norm1", inside)
        self.layer(f"{name}.conv1", out, inside, 3, 3)
        self.layer(f"{name}.norm2", out)
        self.layer(f"{name}.conv2", out, out, 3, 3)
        if inside != out:
            self.layer(f"{name}.nin_shortcut", out, inside, 1, 1)

    def vae_middle(self, name, width, attends):
        for i in (1, 2):
            self.vae_resnet(f"{name}.mid.block_{i}", width, width)
        if attends:
            self.layer(f"{name}.mid.attn_1.norm", width)
            for part in ("q", "k", "v", "proj_out"):
                self.layer(f"{name}.mid.attn_1.{part}", width, width, 1, 1)

    def vae(self, widths, layers, attends=True, root="first_stage_model"):
        """model.Encoder and model.Decoder of the autoencoder."""
        self.layer(f"{root}.encoder.conv_in", widths[0], 3, 3, 3)
        now = widths[0]
        for level, width in enumerate(widths):
            for i in range(layers):
                self.vae_resnet(f"{root}.encoder.down.{level}.block.{i}", now, width)
                now = width
            if level < len(widths) - 1:
                self.layer(f"{root}.encoder.down.{level}.downsample.conv", now, now, 3, 3)
        self.vae_middle(f"{root}.encoder", now, attends)
        self.layer(f"{root}.encoder.norm_out", now)
        self.layer(f"{root}.encoder.conv_out", 8, now, 3, 3)
        self.layer(f"{root}.quant_conv", 8, 8, 1, 1)
        self.layer(f"{root}.post_quant_conv", 4, 4, 1, 1)
        self.layer(f"{root}.decoder.conv_in", now, 4, 3, 3)
        self.vae_middle(f"{root}.decoder", now, attends)
        for level in reversed(range(len(widths))):
            for i in range(layers + 1):
                self.vae_resnet(f"{root}.decoder.up.{level}.block.{i}", now, widths[level])
                now = widths[level]
            if level:
                self.layer(f"{root}.decoder.up.{level}.upsample.conv", now, now, 3, 3)
        self.layer(f"{root}.decoder.norm_out", now)
        self.layer(f"{root}.decoder.conv_out", 3, now, 3, 3)

    def text(self, width, inner, layers, words, positions):
        root = "cond_stage_model.transformer.text_model"
        self[f"{root}.embeddings.position_ids"] = (1, positions)
        self.layer(f"{root}.embeddings.token_embedding", words, width, bias=False)
        self.layer(f"{root}.embeddings.position_embedding", positions, width, bias=False)
        for i in range(layers):
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                self.layer(f"{root}.encoder.layers.{i}.self_attn.{part}", width, width)
            self.layer(f"{root}.encoder.layers.{i}.layer_norm1", width)
            self.layer(f"{root}.encoder.layers.{i}.layer_norm2", width)
            self.layer(f"{root}.encoder.layers.{i}.mlp.fc1", inner, width)
            self.layer(f"{root}.encoder.layers.{i}.mlp.fc2", width, inner)
        self.layer(f"{root}.final_layer_norm", width)


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def published(model):
    """What an original checkpoint of this model's size holds, read off its configs."""
    configs = [
        json.loads((model / part / "config.json").read_text())
        for part in ("unet", "vae", "text_encoder")
    ]
    unet, vae, text = configs
    expected = Published()
    attends = [kind.startswith("CrossAttn") for kind in unet["down_block_types"]]
    widths, layers = unet["block_out_channels"], unet["layers_per_block"]
    expected.unet(widths, layers, unet["cross_attention_dim"], attends)
    with_middle = vae.get("mid_block_add_attention", True)
    expected.vae(vae["block_out_channels"], vae["layers_per_block"], with_middle)
    size = [text[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")]
    expected.text(*size, text["vocab_size"], text["max_position_embeddings"])
    return dict(expected)


@pytest.fixture(params=["full", "lora"])
def run(request):
    return request.getfixturevalue({"full": "trained_run", "lora": "lora_run"}[request.param])


def draw(pipeline, **given):
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(3)
    size = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "np"}
    return pipeline("a turtle", generator=seed, **size, **given).images


def from_single_file(path, folder):
    return StableDiffusionPipeline.from_single_file(
        str(path), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )


def test_one_file_draws_what_the_folder_draws_bit_for_bit(run):
    path = next(p for p in export(run) if p.name == "pictures.safetensors")
    one_file = draw(from_single_file(path, run.model))
    folder = draw(load_pipeline(str(run.model), torch.float32))
    assert np.array_equal(one_file, folder) and folder.std() > 0


def test_one_file_has_the_names_and_shapes_that_the_original_has(run):
    assert shapes(original_state(run.model)) == published(run.model)


def test_the_embedded_base_has_them_too():
    base = ROOT / "assets/tiny-sd"
    assert shapes(original_state(base)) == published(base)


def test_stable_diffusion_v1_5_has_the_1131_weights_of_its_original():
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**SD15_UNET), AutoencoderKL(**SD15_VAE)
        text = CLIPTextModel(CLIPTextConfig(**SD15_TEXT))
    ours = (
        unet_to_original(unet.state_dict(), unet.config)
        | vae_to_original(vae.state_dict(), vae.config)
        | text_encoder_to_original(text.state_dict(), 77)
    )
    expected = Published()
    expected.unet((320, 640, 1280, 1280), 2, 768, (True, True, True, False))
    expected.vae((128, 256, 512, 512), 2)
    expected.text(768, 3072, 12, 49408, 77)
    assert shapes(ours) == dict(expected) and len(ours) == 1131


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_layouts_of_the_text_encoder_become_one(trained_folder, tmp_path, prefix):
    """transformers 5 writes a freshly made CLIPTextModel flat, and a loaded one as it found it."""
    model = tmp_path / "model"
    shutil.copytree(trained_folder / "runs/pictures/model", model)
    path = model / "text_encoder/model.safetensors"
    state = {
        prefix + name.removeprefix("text_model."): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(state, path, metadata={"format": "pt"})
    converted = original_state(model)
    assert shapes(converted) == published(model)
    save_file(converted, tmp_path / "one.safetensors")
    one_file = draw(from_single_file(tmp_path / "one.safetensors", model))
    assert np.array_equal(one_file, draw(load_pipeline(str(model), torch.float32)))


def test_metadata_tell_the_model_and_nothing_of_the_person(run):
    for path in export(run):
        with safe_open(path, "pt") as file:
            told = file.metadata()
        is_lora = "lora" in path.name
        assert told["modelspec.architecture"] == "stable-diffusion-v1" + "/lora" * is_lora
        assert (told["modelspec.prediction_type"], told["modelspec.title"]) == ("epsilon", run.name)
        assert told["modelspec.resolution"] == "32x32" and "OpenRAIL-M" in told["modelspec.license"]
        assert not is_lora or (told["ss_network_dim"], told["ss_steps"]) == ("4", "4")
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
        for word in (b"/tmp", str(run.model.resolve()).encode(), b"thing", b"mira", b"watercolor"):
            assert word not in header


def test_a_lora_draws_the_same_in_both_layouts_and_as_the_merged_model(lora_run):
    run = lora_run
    paths = [path for path in export(run) if "lora" in path.name]
    base = run.read_config("train")["base_model"]
    drawn, merged = [], []
    assert [path.relative_to(run.export).as_posix() for path in paths] == [
        "diffusers/pytorch_lora_weights.safetensors",
        "pictures-lora.safetensors",
    ]
    for path in paths:
        pipeline = load_pipeline(base, torch.float32)
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
        drawn.append(draw(pipeline))
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        merged.append(draw(pipeline))
    assert np.array_equal(*drawn) and np.array_equal(*merged)
    assert np.array_equal(merged[0], draw(load_pipeline(str(run.model), torch.float32)))
    assert np.abs(drawn[0] - draw(load_pipeline(base, torch.float32))).max() > 0.01


def test_kohyas_layout_has_three_tensors_a_layer(lora_folder):
    model = lora_folder / "runs/pictures/model"
    lora = read_lora(model / "lora/pytorch_lora_weights.safetensors")
    (converted,) = to_kohya(lora, Variant.read(model))
    layers = {name.split(".")[0] for name in converted}
    assert len(converted) == 3 * len(layers) == 3 * len(lora.tensors) / 2
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q" in layers
    assert {float(t) for name, t in converted.items() if name.endswith("alpha")} == {4.0}


def test_a_second_export_writes_nothing_and_a_damaged_one_is_written_again(run):
    path = export(run)[-1]
    before = path.stat().st_mtime_ns
    assert export(run)[-1].stat().st_mtime_ns == before
    path.write_bytes(b"cut")
    export(run)
    assert find_corruption(run.export) is None


def test_export_before_training_names_the_notebook(workplace):
    with pytest.raises(RunError, match="run 04_train with run='none' first"):
        export(Run("none"))
