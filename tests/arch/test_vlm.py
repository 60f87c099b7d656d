"""Models that see: the rotated one answers like the original, images included, the packed one like its simulation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfrot.arch import describe, open_described
from dfrot.arch.vlm import WRAPPERS
from dfrot.checkpoint import Checkpoint
from dfrot.draft.models.build import build as build_draft
from dfrot.draft.models.build import config_for
from dfrot.errors import InputError, UnsupportedError
from dfrot.export.inspect import inspect
from dfrot.export.source import open_source
from dfrot.export.targets import TARGETS
from dfrot.generation.engine import Engine, TextRequest
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.hub import resolve_model
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.runtime.transformers_model import compare_with_transformers
from dfrot.runtime.transformers_reading import check_reading
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.vision.image_inputs import ImageInputs
from dfrot_kernels import native

IMAGE = 90
TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, "projection_dim": 16, **TOWER}
PIXTRAL = {"model_type": "pixtral", "image_size": 16, "patch_size": 4, "head_dim": 8, **TOWER}
SIGLIP = {"image_size": 16, "patch_size": 4, **TOWER}
QWEN = {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
MARKS = {"video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}

CASES: dict[str, dict[str, Any]] = {
    "llava": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": CLIP},
    "llava_next": {
        "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": CLIP,
        "image_grid_pinpoints": [[16, 32]],
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", "head_dim": 12, **TEXT},
        "vision_config": PIXTRAL,
        "spatial_merge_size": 2,
    },
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 6, **TEXT},
        "vision_config": {"model_type": "siglip_vision_model", **SIGLIP},
        "mm_tokens_per_image": 4,
        "boi_token_index": 91,
        "eoi_token_index": 92,
    },
    "idefics3": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": SIGLIP, "scale_factor": 2},
    "smolvlm": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": SIGLIP, "scale_factor": 2},
    "qwen2_5_vl": {
        "text_config": {"model_type": "qwen2_5_vl_text", **TEXT, "rope_parameters": ROPE},
        "vision_config": {**QWEN, "window_size": 16, "fullatt_block_indexes": [1]},
        **MARKS,
    },
    "qwen3_vl": {
        "text_config": {"model_type": "qwen3_vl_text", "head_dim": 8, **TEXT, "rope_parameters": ROPE},
        "vision_config": {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        **MARKS,
    },
}


def build(model_type: str, folder: Path, dtype: torch.dtype = torch.float64, **changes: Any) -> Path:
    """A random model of this kind, saved as transformers saves it: under the names that its makers publish."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(
        model_type, image_token_id=IMAGE, tie_word_embeddings=False, **{**CASES[model_type], **changes}
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).to(dtype)
    for name, parameter in model.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        noise = torch.randn(parameter.shape, dtype=torch.float64) * scale
        parameter.data.copy_(noise + (1 if "norm" in name and name.endswith("weight") else 0))
    model.save_pretrained(folder)
    return folder


def inputs(model_type: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A prompt with one image, as the processor of this kind would make it."""
    generator = torch.Generator().manual_seed(1)

    def pixels(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    def ids(count: int) -> Tensor:
        return torch.tensor([[1, 7, 3, *[IMAGE] * count, 39, 22, 5, 31]])

    if model_type == "llava":
        return {"input_ids": ids(4), "pixel_values": pixels(1, 3, 16, 16)}
    if model_type == "llava_next":  # the whole and two tiles of 2x2 patches, a newline behind each of two rows
        sizes = torch.tensor([[16, 32]])
        return {"input_ids": ids(4 + 8 + 2), "pixel_values": pixels(1, 3, 3, 16, 16), "image_sizes": sizes}
    if model_type == "mistral3":
        return {"input_ids": ids(4), "pixel_values": pixels(1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
    if model_type == "gemma3":
        prompt = ids(4)
        return {"input_ids": prompt, "pixel_values": pixels(1, 3, 16, 16), "token_type_ids": (prompt == IMAGE).int()}
    if model_type in ("idefics3", "smolvlm"):
        return {"input_ids": ids(4), "pixel_values": pixels(1, 1, 3, 16, 16)}
    grid = torch.tensor([[1, 4, 4]])
    prompt = torch.tensor([[1, 7, 92, *[IMAGE] * 4, 93, 39, 22, 5, 31]])
    kinds = (prompt == IMAGE).int()
    return {
        "input_ids": prompt,
        "pixel_values": pixels(16, 3 * 2 * 4 * 4),
        "image_grid_thw": grid,
        "mm_token_type_ids": kinds,
    }


HADAMARD = RotateSettings(method="hadamard", dataset=None, online=False)


class ExactNorm(nn.Module):
    """transformers computes RMS norms in float32, which would hide everything below 1e-7."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        gemma = type(norm).__name__.startswith("Gemma")
        self.gain = norm.weight + 1 if gemma else norm.weight
        self.eps = norm.eps if gemma else norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def logits(folder: Path, model_type: str) -> Tensor:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64).eval()
    language = model.get_submodule(WRAPPERS[model_type].inside)
    for name, module in list(language.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            language.set_submodule(name, ExactNorm(module))
    with torch.no_grad():
        return model(**inputs(model_type)).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("model_type", CASES)
def test_rotated_logits_with_an_image_are_the_originals(model_type: str, tmp_path: Path) -> None:
    original = build(model_type, tmp_path / "original")
    rotate(original, tmp_path / "rotated", HADAMARD)
    expected, actual = logits(original, model_type), logits(tmp_path / "rotated", model_type)
    assert (actual - expected).norm() / expected.norm() < 1e-10


@pytest.mark.parametrize("model_type", ["llava_next", "smolvlm", "qwen3_vl"])
def test_what_the_tower_says_is_rotated(model_type: str, tmp_path: Path) -> None:
    """The test above would fail without R1 in what joins the stream: here is each of its tensors."""
    original, wrapper = build(model_type, tmp_path / "original"), WRAPPERS[model_type]
    rotate(original, tmp_path / "rotated", HADAMARD)
    before, _ = open_described(original)
    after, _ = open_described(tmp_path / "rotated")
    outside = [name for name in before.entries if wrapper.is_outside(name)]
    rotated = [name for name in outside if not torch.equal(before.read(name), after.read(name))]
    assert rotated == [name for name in outside if wrapper.writes(name)]
    assert len(rotated) == {"llava_next": 3, "smolvlm": 1, "qwen3_vl": 6}[model_type]


@pytest.mark.parametrize("model_type", CASES)
def test_packed_generation_about_an_image(model_type: str, tmp_path: Path) -> None:
    original = build(model_type, tmp_path / "original", torch.float32)
    rotate(original, tmp_path / "rotated", RotateSettings(method="hadamard", dataset=None))
    scheme = QuantScheme.parse("w4a4kv4")
    quantize(tmp_path / "rotated", None, tmp_path / "packed", QuantizeSettings(scheme=scheme, algorithm="rtn"))
    packed, simulated = (load_model(tmp_path / "packed", fake=fake) for fake in (False, True))
    call = inputs(model_type, torch.float32)
    with torch.no_grad():
        exact, fake = packed(**call).logits, simulated(**call).logits
    assert torch.allclose(exact, fake, atol=2e-3 * float(fake.abs().max()))
    assert inspect(tmp_path / "packed")["scheme"] == "w4a4kv4"
    out = packed.generate(**call, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert out.shape[1] == call["input_ids"].shape[1] + 6
    prompt = call["input_ids"][0].tolist()
    shown = ImageInputs({name: value for name, value in call.items() if name != "input_ids"})
    target, draft = Target(packed), build_draft(config_for(open_described(original)[1], "dream"))
    generated = plain(target, prompt, StopCriteria(24), Sampling(), images=shown).tokens
    assert generated[:6] == out[0, len(prompt) :].tolist()
    for shape in (TreeShape(3), TreeShape(3, 2, 6)):
        assert speculative(target, draft, prompt, StopCriteria(24), Sampling(), shape, images=shown).tokens == generated
    other = dict(call, pixel_values=-1.3 * call["pixel_values"])
    assert not torch.equal(packed(**other).logits, exact)  # it does look


def test_the_whole_pipeline_on_text(tmp_path: Path) -> None:
    text = {**CASES["qwen3_vl"]["text_config"], "vocab_size": 4096}
    original = build("qwen3_vl", tmp_path / "original", torch.bfloat16, text_config=text)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(resolve_model("reference") / name, original / name)
    (tmp_path / "text.txt").write_text("".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(400)))
    data = str(tmp_path / "text.txt")
    rotate(original, tmp_path / "rotated", RotateSettings(dataset=data, seqlen=128, rounds=4))
    calibrate(tmp_path / "rotated", tmp_path / "stats", CalibrateSettings(dataset=data, samples=2, seqlen=64))
    settings = QuantizeSettings(scheme=QuantScheme.parse("w4a4kv4"))
    linears = quantize(tmp_path / "rotated", tmp_path / "stats", tmp_path / "packed", settings)["linears"]
    assert len(linears) == 14
    assert not any("visual" in name for name in linears)
    report = evaluate([original, tmp_path / "packed"], PerplexitySettings(dataset=data, seqlen=64, windows=2))
    first, second = (result["perplexity"] for result in report["results"])
    assert 0.3 < second / first < 3


def test_the_makers_processor_feeds_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dfq generate --image on a folder as it is published: its own chat template, tokenizer and image sizes."""
    from PIL import Image
    from transformers import AutoTokenizer, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("reference"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    monkeypatch.setitem(globals(), "IMAGE", tokenizer.convert_tokens_to_ids("<image>"))
    text = {**CASES["llava"]["text_config"], "vocab_size": 4100}
    original = build("llava", tmp_path / "original", torch.float32, text_config=text)
    rotate(original, tmp_path / "rotated", RotateSettings(method="hadamard", dataset=None))
    settings = QuantizeSettings(scheme=QuantScheme.parse("w4a4kv4"), algorithm="rtn")
    quantize(tmp_path / "rotated", None, tmp_path / "blind", settings)
    with pytest.raises(InputError, match=r"neither processor_config\.json nor"):
        Engine(tmp_path / "blind")

    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    template = (
        "{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}"
        "{% endfor %} answer:"
    )
    LlavaProcessor(
        CLIPImageProcessorPil(**sizes),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(tmp_path / "rotated")
    quantize(tmp_path / "rotated", None, tmp_path / "packed", settings)
    engine = Engine(tmp_path / "packed")
    for name, colour in (("red", (200, 10, 10)), ("blue", (10, 10, 200))):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
    texts = []
    for name in ("red", "blue"):
        ids, images = engine.encode_question("what is it?", [tmp_path / f"{name}.png"])
        assert ids[:1] == (tokenizer.bos_token_id,)
        assert ids.count(IMAGE) == 4
        generation = engine.start(TextRequest(ids, 8, images=images, ignore_eos=True))
        texts.append("".join(generation))
        assert generation.usage == (len(ids), 8)
    assert texts[0] != texts[1]
    if native.available_isas():
        assert engine.target.native.report()["steps"] >= 14  # decoding is the native call, whatever came before
    with pytest.raises(InputError, match="holds the token of images but no image"):
        engine.start(TextRequest((0, 5, IMAGE), 4))
    with pytest.raises(InputError, match="refused by the model's processor"):
        engine.encode_multimodal([{"role": "user", "content": [{"type": "image"}]}], [])


def test_published_names_and_those_of_memory_are_the_same_model(tmp_path: Path) -> None:
    for model_type in CASES:
        folder = build(model_type, tmp_path / model_type)
        checkpoint, arch = open_described(folder)
        again = tmp_path / f"{model_type}-memory"
        again.mkdir()
        (again / "config.json").write_bytes((folder / "config.json").read_bytes())
        tensors = {arch.written(name): checkpoint.read(name) for name in checkpoint.entries}
        save_file(tensors, again / "model.safetensors")
        assert set(open_described(again)[0].entries) == set(checkpoint.entries)
        assert {arch.stored(arch.written(name)) for name in checkpoint.entries} == set(checkpoint.entries)


def test_sizes_that_the_config_leaves_out_are_those_of_transformers() -> None:
    from transformers import LlamaConfig, MistralConfig

    for model_type, config in (("llama", LlamaConfig()), ("mistral", MistralConfig())):
        arch = describe({"model_type": "llava", "text_config": {"model_type": model_type, "vocab_size": 32064}})
        actual = (arch.hidden, arch.intermediate, arch.n_layers, arch.n_heads, arch.n_kv_heads)
        assert actual == (
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
        )


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="model_type 'gemma3n' is unknown"):
        describe({"model_type": "llava", "text_config": {"model_type": "gemma3n"}})
    for config in ({"model_type": "llava"}, {"model_type": "llava", "text_config": {"model_type": "smolvlm"}}):
        with pytest.raises(InputError, match="llava holds no language model"):
            describe(config)
    with pytest.raises(InputError, match="text_config is list"):
        describe({"model_type": "llava", "text_config": []})
    folder = build("llava", tmp_path / "m")
    with pytest.raises(UnsupportedError, match=r"VLMs \(llava\) are not supported"):
        open_source(folder, TARGETS["gguf"])
    tensors = load_file(folder / "model.safetensors")
    tensors["multi_modal_projector.linear_2.bias"] = torch.zeros(31, dtype=torch.float64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"linear_2\.bias: shape \[31\], the language model is 32 wide"):
        open_described(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json needs"):
        open_described(folder)
    assert Checkpoint.open(folder).digest()


@pytest.mark.parametrize("model_type", CASES)
def test_transformers_reads_the_same(model_type: str, tmp_path: Path) -> None:
    checkpoint, arch = open_described(build(model_type, tmp_path / "m", torch.float32))
    check_reading(checkpoint, arch)
    assert compare_with_transformers(checkpoint, arch, torch.tensor([[1, 7, 3, 39, 22, 5, 31]]))["largest_error"] < 1e-4
