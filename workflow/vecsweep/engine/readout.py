"""Early decoding from the stored readout: `E · ln_f(x)` (paper section 2), without a model."""

import sys
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from vecsweep.engine import products
from vecsweep.files import Tensors


@dataclass
class Readout:
    """Final norm and LM head: weight [vocabulary, d_model], norm weight [d_model].

    `cap` c: the model's probabilities are those of c * tanh(logit / c) (Gemma 2's report, section
    2). All logits here are those before it: it changes neither their order nor what is on top.
    """

    norm_kind: str
    epsilon: float
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor | None
    cap: float | None = None
    most: int = sys.maxsize  # states that are decoded at a time: more did not fit in memory

    @classmethod
    def load(cls, path) -> "Readout":
        """The readout that stage `models` wrote, on the CPU."""
        products.use_fastest()
        file = Tensors(path)

        def tensor(name):
            return file[name].float() if name in file else None

        return cls(
            file.metadata["norm"],
            float(file.metadata["epsilon"]),
            tensor("norm.weight"),
            tensor("norm.bias"),
            tensor("head.weight"),
            tensor("head.bias"),
            float(file.metadata["cap"]) if "cap" in file.metadata else None,
        )

    def to(self, device) -> "Readout":
        """The same readout on another device."""
        tensors: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if torch.is_tensor(value := getattr(self, field.name))
        }
        return replace(self, **tensors)

    @cached_property
    def norms(self) -> torch.Tensor:
        """[2, vocabulary]: the length of each token's weight, and of what bfloat16 leaves of it."""
        from vecsweep.engine import fused  # Numba is slow to start, and not all decode

        found = torch.empty(2, len(self.weight))
        fused.lengths_of(self.weight.numpy(), found.numpy())
        return 1.0001 * found  # as much as their own rounding, and more

    @cached_property
    def in_bytes(self) -> products.Bytes:
        """The weight in bytes: a quarter of its memory."""
        return products.in_bytes(self.weight)

    def normed(self, states: torch.Tensor) -> torch.Tensor:
        """The final norm of residual-stream states [n, d_model], in float32."""
        x = states.float()
        if self.norm_kind == "layer":
            shape = (x.shape[-1],)
            return torch.nn.functional.layer_norm(
                x, shape, self.norm_weight, self.norm_bias, self.epsilon
            )
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return x * scale * self.norm_weight

    def logits(self, normed: torch.Tensor, start: int = 0, stop: int | None = None):
        """Logits [n, stop - start] of a slice of the vocabulary, from normed states."""
        logits = normed @ self.weight[start:stop].T
        return logits if self.bias is None else logits + self.bias[start:stop]

    def capped(self, logits: Any) -> Any:
        """Logits of which the model's softmax is: of any shape, a tensor or an array."""
        if self.cap is None:
            return logits
        library: Any = torch if torch.is_tensor(logits) else np
        none = logits == -torch.inf  # stands for no token
        return library.where(none, logits, self.cap * library.tanh(logits / self.cap))

    def logits_at(self, normed: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [n, k] of given tokens [n, k]; a token of -1 means none and gives -inf."""
        index = tokens.clamp(min=0)
        logits = torch.einsum("nd,nkd->nk", normed, self.weight[index])
        if self.bias is not None:
            logits = logits + self.bias[index]
        return logits.masked_fill(tokens < 0, -torch.inf)

    def best(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Of each state's tokens [n, k], padded with -1, that with the largest logit, [n]."""
        tokens = tokens.to(states.device)
        place = self.logits_at(self.normed(states), tokens).argmax(-1, keepdim=True)
        return tokens.gather(1, place)[:, 0]

    def difference(self, states: torch.Tensor, tokens: torch.Tensor, others: torch.Tensor):
        """(directions [n, d_model], constants [n]): logit(token) - logit(other) is linear in a part.

        The final norm's scale is frozen at the states [n, d_model]. The sum of their parts times
        the directions, and the constant (what norm and head add by their biases), is the difference
        of the logits of tokens [n] and others [n] at the states, in float32.
        """
        x = states.float()
        towards = self.weight[tokens] - self.weight[others]
        constants = torch.zeros(len(x), device=x.device)
        if self.norm_bias is not None:
            constants = constants + towards @ self.norm_bias
        if self.bias is not None:
            constants = constants + self.bias[tokens] - self.bias[others]
        directions = towards * self.norm_weight
        if self.norm_kind == "layer":  # takes the mean off each part, as off their sum
            directions = directions - directions.mean(-1, keepdim=True)
            spread = x.var(-1, unbiased=False, keepdim=True)
        else:
            spread = x.pow(2).mean(-1, keepdim=True)
        return directions * torch.rsqrt(spread + self.epsilon), constants


def target_tokens(rows: list[dict]) -> list:
    """Token ids of the targets: argument [prompts, 1], answer [prompts, k] padded with -1."""
    width = max(len(row["answer_tokens"]) for row in rows)
    answers = [row["answer_tokens"] + [-1] * (width - len(row["answer_tokens"])) for row in rows]
    return [torch.tensor([[row["argument_token"]] for row in rows]), torch.tensor(answers)]
