"""Early decoding from the stored readout: `E · ln_f(x)` (paper section 2), without a model."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from vecsweep.files import Tensors

# Rows x vocabulary chunk of float32 logits that stay in a core's cache: 256 x 4096 = 4 MiB.
ROWS, CHUNK = 256, 4096


@dataclass
class Readout:
    """Final norm and LM head: weight [vocabulary, d_model], norm weight [d_model]."""

    norm_kind: str
    epsilon: float
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def load(cls, path) -> "Readout":
        """The readout that stage `models` wrote, on the CPU."""
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
        )

    def to(self, device) -> "Readout":
        """The same readout on another device."""
        tensors: dict[str, Any] = {
            k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)
        }
        return replace(self, **tensors)

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

    def logits_at(self, normed: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [n, k] of given tokens [n, k]; a token of -1 means none and gives -inf."""
        index = tokens.clamp(min=0)
        logits = torch.einsum("nd,nkd->nk", normed, self.weight[index])
        if self.bias is not None:
            logits = logits + self.bias[index]
        return logits.masked_fill(tokens < 0, -torch.inf)

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


@dataclass
class Decoded:
    """What early decoding says of n states; targets [n, targets], top [n, top_k], among [n, T]."""

    token: torch.Tensor
    rank: torch.Tensor
    probability: torch.Tensor
    top_token: torch.Tensor
    top_probability: torch.Tensor
    among: torch.Tensor


def decode(
    readout: Readout,
    states: torch.Tensor,
    targets: list,
    top_k: int,
    among: torch.Tensor | None = None,
) -> Decoded:
    """Rank and probability of target tokens, and the top tokens, for states [n, d_model].

    `targets` is a list of token-id tensors [n, k], padded with -1: several right tokens count as
    one target, by the one with the largest logit. Rank is the number of tokens with a larger
    logit (paper section 2). No logits are kept and nothing is sorted: each chunk of the
    vocabulary adds to the counts, to the sum of exponentials and to the running top k.
    `among` [T] are tokens whose natural log probability is wanted in every state.
    """
    if among is None:
        among = torch.empty(0, dtype=torch.long)
    among = among.to(states.device)
    parts = [
        _decode_rows(
            readout, states[i : i + ROWS], [t[i : i + ROWS] for t in targets], top_k, among
        )
        for i in range(0, len(states), ROWS)
    ]
    return Decoded(*(torch.cat(column) for column in zip(*parts)))


def _decode_rows(readout, states, targets, top_k, among):
    normed = readout.normed(states)
    rows = torch.arange(len(normed), device=normed.device)
    best_of, token_of = [], []
    for ids in targets:
        value, position = readout.logits_at(normed, ids).max(-1)
        best_of.append(value)
        token_of.append(ids[rows, position])
    best, token = torch.stack(best_of, -1), torch.stack(token_of, -1)

    rank = torch.zeros_like(token)
    log_sum = torch.full((len(normed),), -torch.inf, device=normed.device)
    top = torch.full((len(normed), top_k), -torch.inf, device=normed.device)
    top_token = torch.zeros((len(normed), top_k), dtype=torch.long, device=normed.device)
    for start in range(0, len(readout.weight), CHUNK):
        logits = readout.logits(normed, start, start + CHUNK)
        peak = logits.amax(-1)
        # Below -80 exp makes denormal numbers, which are slow and do not count beside the peak's 1.
        shifted = (logits - peak[:, None]).clamp_(min=-80)
        log_sum = torch.logaddexp(log_sum, shifted.exp_().sum(-1).log_() + peak)
        # Most chunks hold no new top token for most rows.
        new = (peak > top[:, -1]).nonzero().squeeze(-1)
        if len(new):
            value, index = logits[new].topk(min(top_k, logits.shape[-1]), -1)
            value, order = torch.cat([top[new], value], -1).topk(top_k, -1)
            index = torch.cat([top_token[new], index + start], -1)
            top[new], top_token[new] = value, index.gather(-1, order)
        for k in range(token.shape[-1]):
            # The same product summed in another order may exceed itself: a token is not its own rival.
            inside = ((token[:, k] >= start) & (token[:, k] < start + CHUNK)).nonzero().squeeze(-1)
            logits[inside, token[inside, k] - start] = best[inside, k]
            rank[:, k] += (logits > best[:, k, None]).sum(-1)
    probability = (best - log_sum[:, None]).exp()
    chosen = normed @ readout.weight[among].T
    if readout.bias is not None:
        chosen += readout.bias[among]
    top_probability = (top - log_sum[:, None]).exp()
    return token, rank, probability, top_token, top_probability, chosen - log_sum[:, None]


def target_tokens(rows: list[dict]) -> list:
    """Token ids of the targets: argument [prompts, 1], answer [prompts, k] padded with -1."""
    width = max(len(row["answer_tokens"]) for row in rows)
    answers = [row["answer_tokens"] + [-1] * (width - len(row["answer_tokens"])) for row in rows]
    return [torch.tensor([[row["argument_token"]] for row in rows]), torch.tensor(answers)]
