"""LLaVA's projector is built from a LlavaConfig and has the two linears that dfq rotates and stores."""

from __future__ import annotations

from dfrot.compat.llava import llava_projector


def test_the_projector_has_two_linears() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    tower = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    text = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    projector = llava_projector(LlavaConfig(vision_config=tower, text_config=text))
    shapes = {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()}
    assert shapes == {
        "linear_1.weight": (32, 16),
        "linear_1.bias": (32,),
        "linear_2.weight": (32, 32),
        "linear_2.bias": (32,),
    }
