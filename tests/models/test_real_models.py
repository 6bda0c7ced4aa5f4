"""Real model classes with random weights: written by ``save_pretrained``, spread, and computing as before."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
    T5Config,
)

from accel import (
    Accelerator,
    dispatch_model,
    infer_auto_device_map,
    init_empty_weights,
    load_checkpoint_and_dispatch,
)
from accel.hooks import AlignDevicesHook, add_hook_to_module
from accel.utils import compute_module_sizes
from accel_state import process

pytestmark = pytest.mark.cpu

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}
CONFIGS = {
    "gpt2": GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=97, n_positions=64),
    "bert": BertConfig(intermediate_size=64, max_position_embeddings=64, **SMALL),
    "llama": LlamaConfig(intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=True, **SMALL),
    "t5": T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=97, decoder_start_token_id=0
    ),
    "mixtral": MixtralConfig(
        intermediate_size=64, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **SMALL
    ),
}
CLASSES = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}


def skeleton(name: str) -> PreTrainedModel:
    with init_empty_weights():
        model = CLASSES.get(name, AutoModelForCausalLM).from_config(CONFIGS[name])
    return model.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request: Any, tmp_path_factory: Any) -> tuple[str, PreTrainedModel, Any]:
    torch.manual_seed(0)
    name = request.param
    model = CLASSES.get(name, AutoModelForCausalLM).from_config(CONFIGS[name]).eval()
    folder = tmp_path_factory.mktemp(name)
    # The names of the model, not those that an older release gave the same weights.
    model.save_pretrained(folder, max_shard_size="40KB", save_original_format=False)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return name, model, folder


def inputs(name: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(1))
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return found | {"decoder_input_ids": ids[:, :4]} if name == "t5" else found


def maps(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """Return maps by name: all in memory, all on the disk, and every second entry on the disk."""
    limits = {"cpu": "1GiB"}
    fine = infer_auto_device_map(
        model, limits, no_split_module_classes=model._no_split_modules, clean_result=False
    )
    mixed = {name: ("cpu", "disk")[number % 2] for number, name in enumerate(sorted(fine))}
    return {"memory": {"": "cpu"}, "disk": {"": "disk"}, "mixed": mixed}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["memory", "disk", "mixed"])
def test_it_computes_the_same_bits_wherever_its_weights_are(saved: Any, kind: str) -> None:
    name, model, folder = saved
    batch = inputs(name)
    wanted = model(**batch).logits
    spread = load_checkpoint_and_dispatch(skeleton(name), folder, device_map=maps(model)[kind])
    # With several rows each kernel gives the same bits wherever weights begin in memory.
    assert torch.equal(spread(**batch).logits, wanted)
    assert torch.equal(spread(**batch).logits, wanted)
    if kind != "memory":
        assert any(parameter.is_meta for parameter in spread.parameters())
    assert not (folder / "index.json").exists()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["disk", "mixed"])
def test_it_generates_the_same_text(saved: Any, kind: str) -> None:
    name, model, folder = saved
    if name == "bert":
        pytest.skip("BERT does not generate")
    batch = {key: value for key, value in inputs(name).items() if key != "decoder_input_ids"}
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(**batch, **options)
    spread = load_checkpoint_and_dispatch(skeleton(name), folder, device_map=maps(model)[kind])
    if name == "t5":
        # transformers wants a hook at an encoder, and puts one there by itself where it finds the peer.
        add_hook_to_module(spread.encoder, AlignDevicesHook(io_same_device=True), append=True)
    assert torch.equal(spread.generate(**batch, **options), wanted)


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["auto", "sequential"])
def test_a_strategy_places_a_skeleton_within_its_limits(saved: Any, strategy: str) -> None:
    name, model, folder = saved
    batch = inputs(name)
    # Enough for the largest block that comes from the disk, beside some that stay.
    limit = int(0.8 * compute_module_sizes(model)[""])
    spread = load_checkpoint_and_dispatch(
        skeleton(name),
        folder,
        device_map=strategy,
        max_memory={"cpu": limit},
        no_split_module_classes=model._no_split_modules,
    )
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
    resident = {id(p): p.numel() * 4 for p in spread.parameters() if not p.is_meta}
    assert sum(resident.values()) <= limit
    assert torch.equal(spread(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_a_model_on_the_disk_is_saved_again_without_being_read_into_memory(saved: Any, tmp_path: Any) -> None:
    name, model, folder = saved
    spread = load_checkpoint_and_dispatch(skeleton(name), folder, device_map=maps(model)["mixed"])
    process.reset()
    Accelerator(cpu=True).save_model(spread, tmp_path / "new", max_shard_size="50KB")
    process.reset()
    assert len(list((tmp_path / "new").glob("model-*.safetensors"))) > 1
    back = load_checkpoint_and_dispatch(skeleton(name), tmp_path / "new", device_map={"": "cpu"})
    assert torch.equal(back(**inputs(name)).logits, model(**inputs(name)).logits)
    assert (back.get_output_embeddings().weight is back.get_input_embeddings().weight) == (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    # Other readers take it, too.
    for path in folder.glob("*config.json"):
        shutil.copy(path, tmp_path / "new")
    again = type(model).from_pretrained(tmp_path / "new").eval()
    assert torch.equal(again(**inputs(name)).logits, model(**inputs(name)).logits)


@torch.no_grad()
def test_a_model_in_memory_is_spread(saved: Any, tmp_path: Any) -> None:
    name, model, _ = saved
    wanted = model(**inputs(name)).logits
    copy = CLASSES.get(name, AutoModelForCausalLM).from_config(CONFIGS[name]).eval()
    copy.load_state_dict(model.state_dict())
    dispatch_model(copy, maps(model)["mixed"], offload_dir=tmp_path / "away")
    assert torch.equal(copy(**inputs(name)).logits, wanted)
