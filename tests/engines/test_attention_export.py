from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import Tensor

from distill.shapes.architectures import new_transformer
from distill.shapes.autoencoder import new_autoencoder
from engines.export.attention import exportable, linear_attention


@pytest.fixture(scope="module")
def transformer() -> SanaTransformer2DModel:
    torch.manual_seed(1)
    return new_transformer(width=64, layers=2).eval()


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderDC:
    torch.manual_seed(1)
    return new_autoencoder().eval()


def forward(transformer: SanaTransformer2DModel, latents: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    text = torch.randn(len(latents), 7, 128, generator=generator)
    mask = (torch.arange(7) < torch.arange(1, len(latents) + 1)[:, None]).long()
    time = torch.linspace(1, 1000, len(latents))
    with torch.no_grad():
        return transformer(latents, text, time, encoder_attention_mask=mask, return_dict=False)[0]


def agree(a: Tensor, b: Tensor) -> bool:
    return bool(torch.isfinite(b).all()) and torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_replaced_attention_of_sana_computes_the_same(transformer, size):
    latents = torch.randn(3, 8, *size)
    assert agree(forward(transformer, latents), forward(exportable(transformer), latents))


def test_replaced_attention_of_sana_reads_zero_for_zero_queries(transformer):
    twin = new_transformer(width=64, layers=2).eval()
    twin.load_state_dict(transformer.state_dict())
    with torch.no_grad():
        twin.transformer_blocks[0].attn1.to_q.weight.zero_()
    latents = torch.randn(2, 8, 8, 8)
    assert agree(forward(twin, latents), forward(exportable(twin), latents))


@pytest.mark.parametrize("side", [8, 4], ids=["linear", "quadratic"])
@pytest.mark.parametrize("zero_queries", [False, True])
def test_replaced_attention_of_the_autoencoder_computes_the_same(autoencoder, side, zero_queries):
    twin = new_autoencoder().eval()
    twin.load_state_dict(autoencoder.state_dict())
    if zero_queries:
        with torch.no_grad():
            twin.decoder.up_blocks[3][0].attn.to_q.weight.zero_()
    latents = torch.randn(2, 8, side, side)
    with torch.no_grad():
        assert agree(twin.decode(latents).sample, exportable(twin).decode(latents).sample)


def test_one_zero_query_among_others_reads_zero_and_changes_nobody_else():
    query, key, value = torch.rand(3, 1, 2, 4, 9).unbind()
    whole = linear_attention(query, key, value)
    query[..., 3] = 0
    read = linear_attention(query, key, value)
    assert (read[..., 3] == 0).all()
    others = torch.arange(9) != 3
    assert torch.equal(read[..., others], whole[..., others])


def test_the_copy_shares_its_weights_and_leaves_the_original_alone(transformer):
    before = transformer.transformer_blocks[0].attn1.processor
    twin = exportable(transformer)
    assert transformer.transformer_blocks[0].attn1.processor is before
    assert twin.transformer_blocks[0].attn1.processor is not before
    assert all(a is b for a, b in zip(transformer.parameters(), twin.parameters()))
