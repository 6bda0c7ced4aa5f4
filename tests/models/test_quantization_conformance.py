"""The suite of `Quantizer` on the real libraries."""

from __future__ import annotations

import pytest
import torch

from accel_bigmodel import BnbQuantizationConfig, TorchaoQuantizationConfig
from accel_bigmodel.quantization import quantizer_for
from accel_core.protocols import Quantizer
from accel_core.testing.conformance import QuantizerConformance

pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")


class TestEightBits(QuantizerConformance):
    loss = 0.02

    @pytest.fixture
    def quantizer(self) -> Quantizer:
        return quantizer_for(BnbQuantizationConfig(load_in_8bit=True))


class TestFourBits(QuantizerConformance):
    # bitsandbytes' kernel for CPUs with AVX-512 BF16 computes in bfloat16: 8 bits, in sums of 256 products.
    kernels = 0.02

    @pytest.fixture
    def quantizer(self) -> Quantizer:
        config = BnbQuantizationConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="fp32"
        )
        return quantizer_for(config)


class TestNestedFourBits(QuantizerConformance):
    kernels = 0.02

    @pytest.fixture
    def quantizer(self) -> Quantizer:
        config = BnbQuantizationConfig(
            load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="fp32"
        )
        return quantizer_for(config)


class TestTorchaoInt8(QuantizerConformance):
    loss = 0.03
    dtype = torch.bfloat16

    @pytest.fixture
    def quantizer(self) -> Quantizer:
        return quantizer_for(TorchaoQuantizationConfig())


@pytest.mark.gpu
class TestTorchaoInt4(QuantizerConformance):
    device = torch.device(torch.accelerator.current_accelerator() or "cpu")
    dtype = torch.bfloat16

    @pytest.fixture
    def quantizer(self) -> Quantizer:
        return quantizer_for(TorchaoQuantizationConfig(weights="int4", int4_packing="tile_packed_to_4d"))
