"""Multiply-adds of transformers' networks: `pytest -m clients`."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adapt.perfmodel import operations

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

BATCH, TOKENS, WIDTH, INNER = 4, 16, 32, 64


def ids():
    return torch.randint(50, (BATCH, TOKENS))


def counted_by_torch(model, **inputs):
    """Multiply-adds per sample of every product, without those of activations with each other."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(**inputs)
    return counter.get_total_flops() // (2 * BATCH)


def test_conv1d_of_gpt2():
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=TOKENS, n_embd=WIDTH, n_layer=2, n_head=2, attn_implementation="eager",
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    counts = operations(model, input_ids=ids())
    assert counts["transformer.h.0.attn.c_attn.weight"] == TOKENS * WIDTH * 3 * WIDTH
    assert counts["transformer.h.1.mlp.c_proj.weight"] == TOKENS * 4 * WIDTH * WIDTH
    scores = 2 * 2 * TOKENS**2 * WIDTH  # products of activations, in two layers
    assert sum(counts.values()) == counted_by_torch(model, input_ids=ids()) - scores


def test_an_encoder_and_decoder():
    config = transformers.T5Config(
        vocab_size=50, d_model=WIDTH, d_kv=8, d_ff=INNER, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config)
    inputs = {"input_ids": ids(), "decoder_input_ids": ids()[:, :5]}
    counts = operations(model, **inputs)
    assert counts["encoder.block.0.layer.1.DenseReluDense.wi.weight"] == TOKENS * WIDTH * INNER
    assert counts["decoder.block.1.layer.2.DenseReluDense.wo.weight"] == 5 * WIDTH * INNER
    # Keys of the attention to the encoder are those of its tokens.
    assert counts["decoder.block.0.layer.1.EncDecAttention.k.weight"] == TOKENS * WIDTH * 32
    assert counts == operations(model, input_ids=inputs["input_ids"], labels=inputs["decoder_input_ids"])


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts(implementation):
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    model.set_experts_implementation(implementation)
    counts = operations(model, ids())
    for layer in range(2):
        experts = f"model.layers.{layer}.mlp.experts"
        assert counts[f"{experts}.gate_up_proj"] == TOKENS * 2 * (WIDTH * 2 * INNER)
        assert counts[f"{experts}.down_proj"] == TOKENS * 2 * (INNER * WIDTH)
