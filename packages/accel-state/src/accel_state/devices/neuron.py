"""AWS Trainium through the native ``torch_neuronx``, which adds the device and the backend ``neuron``."""

from __future__ import annotations

from accel_core.protocols import Support

from .base import TorchDevice


class NeuronDevice(TorchDevice):
    """An AWS Trainium core."""

    name = "neuron"
    distributed_label = "MULTI_NEURON"
    title = "AWS Trainium"
    package = "torch_neuronx"
    visible_variable = "NEURON_RT_VISIBLE_CORES"
    collective_backend = "neuron"

    def can_float64(self) -> Support:
        """Refuse: a NeuronCore has no float64 arithmetic."""
        return Support(False, "Trainium has no float64 arithmetic")


device = NeuronDevice
