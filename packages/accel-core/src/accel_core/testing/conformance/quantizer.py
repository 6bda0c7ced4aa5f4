"""What every implementation of `Quantizer` must do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accel_core.errors import CheckpointError
from accel_core.protocols import Quantizer

from .base import Conformance


class QuantizerConformance(Conformance):
    """Override ``quantizer``; ``device`` and ``dtype`` where the CPU and float32 will not do.

    ``loss``: how far the results of a layer may be from those of the weight that it was made of, relative to
    their norm. ``kernels``: how far those of both kinds of layers may be from each other, because libraries
    have several kernels; 0 for none.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    loss = 0.3
    kernels = 0.0

    @pytest.fixture
    def quantizer(self) -> Quantizer:
        """Return the quantizer to be tested."""
        raise NotImplementedError("override the fixture `quantizer`")

    @pytest.fixture
    def linear(self) -> nn.Linear:
        """Return a layer."""
        torch.manual_seed(5)
        return nn.Linear(256, 64, device=self.device, dtype=self.dtype).eval()

    def test_is_a_quantizer(self, quantizer: Quantizer) -> None:
        """It has the methods and a name."""
        assert isinstance(quantizer, Quantizer)
        assert quantizer.name

    def test_can_compute_here(self, quantizer: Quantizer, linear: nn.Linear) -> None:
        """Neither the device nor a usual layer is refused."""
        quantizer.check(self.device)
        assert quantizer.refusal(linear) == ""

    def test_parts_are_plain_and_the_weight_is_left_alone(
        self, quantizer: Quantizer, linear: nn.Linear
    ) -> None:
        """Parts are tensors of no class, on the weight's device or the CPU, and hold fewer bytes."""
        before = linear.weight.detach().clone()
        parts = quantizer.quantize(linear.weight.detach())
        assert torch.equal(linear.weight, before)
        assert all(type(part) is torch.Tensor for part in parts.values())
        assert {part.device.type for part in parts.values()} <= {self.device.type, "cpu"}
        assert sum(part.nbytes for part in parts.values()) < before.numel() * 4
        assert all(name == "weight" or name.startswith("weight.") or "." not in name for name in parts)

    def test_sizes_are_known_without_data(self, quantizer: Quantizer, linear: nn.Linear) -> None:
        """On the meta device, all but small texts have the shapes and dtypes that they will have."""
        real = quantizer.quantize(linear.weight.detach())
        meta = quantizer.quantize(linear.weight.detach().to("meta"))
        texts = {name for name, part in real.items() if part.device.type == "cpu" and part.numel() < 1000}
        assert sum(part.nbytes for part in meta.values()) == pytest.approx(
            sum(part.nbytes for part in real.values()), abs=200 * (1 + len(texts))
        )
        quantizer.layer(linear, meta, movable=True)

    @pytest.mark.parametrize("movable", [False, True])
    def test_a_layer_computes_and_has_the_bias(
        self, quantizer: Quantizer, linear: nn.Linear, movable: bool
    ) -> None:
        """A layer is a linear layer, with results near those of the weight; ``bias`` is the same object."""
        layer = quantizer.layer(linear, quantizer.quantize(linear.weight.detach()), movable=movable)
        assert isinstance(layer, nn.Linear)
        assert (layer.in_features, layer.out_features, layer.bias) == (256, 64, linear.bias)
        assert not layer.training
        x = torch.randn(3, 5, 256, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            error = (layer(x) - linear(x)).float().norm() / linear(x).float().norm()
        assert layer(x).dtype == self.dtype
        assert error < self.loss

    def test_both_kinds_of_layers_compute_the_same(self, quantizer: Quantizer, linear: nn.Linear) -> None:
        """Offloading a layer changes its results by no more than ``kernels``."""
        parts = quantizer.quantize(linear.weight.detach())
        x = torch.randn(4, 256, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            moved = quantizer.layer(linear, parts, movable=True)(x).float()
            fixed = quantizer.layer(linear, parts, movable=False)(x).float()
        assert (moved - fixed).norm() <= self.kernels * fixed.norm()

    @pytest.mark.parametrize("movable", [False, True])
    def test_what_is_saved_comes_back(self, quantizer: Quantizer, linear: nn.Linear, movable: bool) -> None:
        """``state_dict`` has the parts to the bit, also after a forward; ``stored`` finds them."""
        parts = {name: part.clone() for name, part in quantizer.quantize(linear.weight.detach()).items()}
        layer = quantizer.layer(linear, parts, movable=movable)
        with torch.no_grad():
            layer(torch.randn(2, 256, device=self.device, dtype=self.dtype))
        state = layer.state_dict()
        assert torch.equal(state.pop("bias"), linear.bias)
        assert all(type(value) is torch.Tensor for value in state.values())
        for name, part in parts.items():
            assert torch.equal(state[name], part), name
        bare = nn.Linear(256, 64, device="meta")
        found = quantizer.stored(bare, state, "a test")
        assert found is not None
        assert found.keys() == parts.keys()
        assert all(torch.equal(found[name], part) for name, part in parts.items())

    def test_plain_weights_are_told_apart(self, quantizer: Quantizer, linear: nn.Linear) -> None:
        """A weight that nobody quantized has no parts."""
        assert quantizer.stored(linear, {"weight": linear.weight.detach()}, "a test") is None

    def test_parts_of_other_shapes_are_refused(self, quantizer: Quantizer, linear: nn.Linear) -> None:
        """What belongs to another layer, or is not complete, is an error that says where it is."""
        parts = quantizer.quantize(linear.weight.detach())
        other = nn.Linear(128, 32, device="meta")
        with pytest.raises(CheckpointError, match="a place"):
            quantizer.stored(other, parts, "a place")
        largest = max(parts, key=lambda name: parts[name].nbytes)
        lost = {name: part for name, part in parts.items() if name != largest}
        with pytest.raises(CheckpointError, match="a place"):
            quantizer.stored(linear, lost, "a place")

    def test_moved_parts_are_exchanged_between_calls(self, quantizer: Quantizer, linear: nn.Linear) -> None:
        """Parameters of a movable layer can be replaced; ``saved_as`` says what each is saved as."""
        first = quantizer.layer(linear, quantizer.quantize(linear.weight.detach()), movable=True)
        second = quantizer.layer(linear, quantizer.quantize(-linear.weight.detach()), movable=True)
        x = torch.randn(2, 256, device=self.device, dtype=self.dtype)
        own = {name for name, _ in first.named_parameters(recurse=False)} - {"bias"}
        assert set(first.__dict__["saved_as"]) <= own
        with torch.no_grad():
            wanted = second(x)
            for name in own:
                first._parameters[name] = second._parameters[name]
            assert torch.equal(first(x), wanted)

    def test_marks_a_model(self, quantizer: Quantizer, linear: nn.Linear) -> None:
        """Marking a model twice is no error."""
        model = nn.Sequential(linear)
        quantizer.mark(model)
        quantizer.mark(model)


__all__ = ["QuantizerConformance"]
