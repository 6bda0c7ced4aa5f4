"""A program: peft on models that are quantized here. ``python quantized_lora.py`` prints what holds."""

from __future__ import annotations

from typing import Any

import torch
from offloaded_lora import alias

from accel_bigmodel import BnbQuantizationConfig, load_and_quantize_model

IDS = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))


def llama() -> Any:
    """Return the same model every time."""
    import transformers

    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


def train(name: str, config: BnbQuantizationConfig) -> None:
    """Train an adapter beside quantized layers, and merge it into them."""
    import peft

    model = peft.prepare_model_for_kbit_training(
        load_and_quantize_model(llama(), config), use_gradient_checkpointing=False
    )
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    kind = type(adapted.base_model.model.model.layers[0].self_attn.q_proj).__name__
    print(name, "layer", kind)
    optimizer = torch.optim.AdamW([each for each in adapted.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = adapted(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(name, "learns", losses[-1] < losses[0] - 0.1)
    adapted.eval()
    with torch.no_grad():
        before = adapted(IDS).logits
        after = adapted.merge_and_unload()(IDS).logits
    # What is merged is quantized again.
    print(name, "merges", bool((before - after).norm() < 0.2 * before.norm()))


if __name__ == "__main__":
    alias()
    train("8bit", BnbQuantizationConfig(load_in_8bit=True))
    train(
        "4bit",
        BnbQuantizationConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="fp32"),
    )
