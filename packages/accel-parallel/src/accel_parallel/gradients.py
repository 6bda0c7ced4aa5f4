"""What happens to gradients between the closing backward and the step, when every rank holds all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm


def _with_gradients(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    if isinstance(parameters, torch.Tensor):
        parameters = (parameters,)
    return [parameter for parameter in parameters if parameter.grad is not None]


def _is_sparse(parameter: torch.Tensor) -> bool:
    return parameter.grad is not None and parameter.grad.layout != torch.strided


def _elements(parameter: torch.Tensor) -> torch.Tensor:
    """Return the gradient's elements; they share its memory.

    Entries of a sparse gradient for the same place are added up first: only their sum is an element.
    """
    gradient = parameter.grad
    assert gradient is not None
    if gradient.layout == torch.strided:
        return gradient
    if not gradient.is_coalesced():
        gradient = parameter.grad = gradient.coalesce()
    return gradient.values()


class TorchGradients:
    """Gradient operations by torch alone. After a synchronised backward all ranks have equal gradients.

    ``parameters`` may be one tensor, a list or a generator; those without a gradient are passed over.
    """

    def scale_(self, parameters: Iterable[torch.Tensor], factor: float) -> None:
        """Multiply the gradients in place."""
        with torch.no_grad():
            elements = [_elements(parameter) for parameter in _with_gradients(parameters)]
            if not elements:
                return
            # One kernel for all, as in torch's own optimizers; private, so there is a way without it.
            multiply = getattr(torch, "_foreach_mul_", None)
            if multiply is not None:
                multiply(elements, factor)
                return
            for element in elements:
                element.mul_(factor)

    def clip_norm_(
        self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
    ) -> torch.Tensor:
        """Clip the gradients' total norm in place; return the norm before clipping, 0 without gradients.

        A norm that is not finite makes the gradients so too, as in ``torch.nn.utils.clip_grad_norm_``:
        nothing is hidden.
        """
        if not isinstance(parameters, (torch.Tensor, list)):
            parameters = list(parameters)
        try:
            return clip_grad_norm_(parameters, max_norm, norm_type)
        except (RuntimeError, NotImplementedError):
            # torch has no norm of sparse gradients, and says so before it changes anything.
            owners = _with_gradients(parameters)
            if not any(map(_is_sparse, owners)):
                raise
        with torch.no_grad():
            elements = [_elements(parameter) for parameter in owners]
            norm = get_total_norm(elements, norm_type)
            # torch's own formula: 1e-6 keeps a norm of zero from dividing by it.
            factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
            for element in elements:
                element.mul_(factor.to(element.device))
        return norm

    def clip_value_(self, parameters: Iterable[torch.Tensor], clip_value: float) -> None:
        """Clamp every gradient element into ``[-clip_value, clip_value]`` in place."""
        owners = _with_gradients(parameters)
        if owners and not any(map(_is_sparse, owners)):
            clip_grad_value_(owners, clip_value)
            return
        with torch.no_grad():
            for parameter in owners:
                _elements(parameter).clamp_(min=-clip_value, max=clip_value)


__all__ = ["TorchGradients"]
