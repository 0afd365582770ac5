"""The tuned lens: an affine translator a layer, from its state to what the model says in the end.

Belrose et al. 2023 (arXiv 2303.08112), equations 7 to 9: `readout(A h + b)`, A and b from the
identity on, to the least KL(final distribution || translated one). With y the normed translated
state, W the LM head and p the final distribution it is

    KL = log Z(y) - (sum_v p_v W_v) . y - sum_v p_v b_v - entropy(p),   Z(y) = sum_v exp(logit_v(y)),

so that all but log Z is exact and cheap, and only log Z asks for the whole vocabulary.

They have millions of tokens; here are a few hundred prompts, fewer than d_model. So the fit starts
from a ridge regression of the final state that shrinks towards the identity (the least squares of
Din et al. 2023, arXiv 2303.09435), and goes on along the KL's gradient for as long as prompts that it
does not see gain by it. A translator that gains nothing on them is the identity.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from vecsweep.engine.readout import Readout

ROWS = 32  # states whose logits of the whole vocabulary are in memory at a time
RIDGES = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # times the mean squared singular value of the states
STEPS, EVERY, PATIENCE, RATE = 24, 2, 2, 5e-4  # of Adam; checked every so many, and how long
LIKELIEST, SAMPLED = 64, 4096  # tokens that stand for the vocabulary in log Z while it is fitted
LEAST_GAIN = 2e-3  # nats: what log Z of stage lens is known to, twice


class Ends(NamedTuple):
    """What a model says of n prompts in the end.

    `expected` [n, d_model]: the mean of the LM head's rows under its distribution; `constant` [n]:
    what else the cross entropy with any other holds; `entropy` [n], nats; `top` [n, k]: its
    likeliest tokens; `states` [n, d_model].
    """

    expected: torch.Tensor
    constant: torch.Tensor
    entropy: torch.Tensor
    top: torch.Tensor
    states: torch.Tensor

    def rows(self, places) -> "Ends":
        """Those of some prompts."""
        return Ends(*(part[places] for part in self))


@torch.inference_mode()
def ends_of(readout: Readout, states: torch.Tensor) -> Ends:
    """The ends of prompts, from their last layer's states [n, d_model]: over the whole vocabulary."""
    states = states.float()
    found = []
    for some in readout.normed(states).split(ROWS):
        logits = readout.logits(some)
        top = logits.topk(min(LIKELIEST, logits.shape[-1])).indices
        logits -= logits.logsumexp(-1, keepdim=True)
        shares = logits.exp()
        # A share of 0 has a logit of -inf at most.
        entropy = -torch.einsum("nv,nv->n", shares, logits.clamp(min=-1e4))
        constant = torch.zeros(len(some)) if readout.bias is None else shares @ readout.bias
        found.append((shares @ readout.weight, constant, entropy, top))
    expected, constant, entropies, tops = map(torch.cat, zip(*found))
    return Ends(expected, constant, entropies, tops, states)


def divergence(ends: Ends, normed: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
    """KL(final || lens) [n] in nats, of normed states [n, d_model] and their log Z [n]."""
    along = torch.einsum("nd,nd->n", ends.expected, normed)
    return log_sum - along - ends.constant - ends.entropy


class Tokens(NamedTuple):
    """Tokens that stand for the vocabulary: weight [T, d_model]; `offset` [T] is added to logits."""

    weight: torch.Tensor
    offset: torch.Tensor

    def log_sum(self, normed: torch.Tensor) -> torch.Tensor:
        """log Z [n] of normed states: exact where the tokens are all there are, else an estimate."""
        return (normed @ self.weight.T + self.offset).logsumexp(-1)


def tokens_for(readout: Readout, top: torch.Tensor, seed: int) -> Tokens:
    """The likeliest tokens `top` of the prompts in the end, and a sample of the others.

    A sampled token counts for as many others as were left out, so that Z is estimated without bias.
    """
    count = len(readout.weight)
    bias = torch.zeros(count) if readout.bias is None else readout.bias
    own = top.unique()
    if count <= len(own) + SAMPLED:
        return Tokens(readout.weight, bias)
    rest = torch.ones(count, dtype=torch.bool)
    rest[own] = False
    others = rest.nonzero().squeeze(-1)
    generator = torch.Generator().manual_seed(seed)
    drawn = others[torch.randperm(len(others), generator=generator)[:SAMPLED]]
    stand_for = torch.full((SAMPLED,), len(others) / SAMPLED).log()
    offset = torch.cat([bias[own], bias[drawn] + stand_for])
    return Tokens(readout.weight[torch.cat([own, drawn])], offset)


@dataclass
class Translator:
    """h -> h + ((h - mean) @ basis.T) @ matrix + bias; basis, matrix [rank, d_model].

    `ridge` and `steps` are what held-out prompts chose. Without a basis it is the identity.
    """

    mean: torch.Tensor | None = None
    basis: torch.Tensor | None = None
    matrix: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    ridge: float | None = None
    steps: int | None = None

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Translated states [n, d_model], in float32."""
        states = states.float()
        if self.basis is None or self.matrix is None or self.mean is None or self.bias is None:
            return states
        return states + (states - self.mean) @ self.basis.T @ self.matrix + self.bias


def fit(
    readout: Readout, tokens: Tokens, states: torch.Tensor, ends: Ends, held: torch.Tensor
) -> Translator:
    """The translator of a layer's states [n, d_model] to their `ends`.

    `held` [n], bool: prompts that only choose, how strong the ridge is and when to stop. What comes
    out has not been compared with the identity: that takes the exact KL.
    """
    states = states.float()
    seen, left = ends.rows(~held), ends.rows(held)
    x = states[~held]
    mean = x.mean(0)
    u, lengths, basis = torch.linalg.svd(x - mean, full_matrices=False)
    keep = lengths > 1e-5 * lengths.max().clamp(min=1e-30)
    u, lengths, basis = u[:, keep], lengths[keep], basis[keep]
    towards = seen.states - x
    bias = towards.mean(0)
    projected = u.T @ (towards - bias)
    scores, others = (x - mean) @ basis.T, (states[held] - mean) @ basis.T

    def loss(of, start, scored, matrix, shift):
        normed = readout.normed(start + scored @ matrix + shift)
        return divergence(of, normed, tokens.log_sum(normed)).mean()

    def unseen(matrix, shift):
        with torch.no_grad():
            return loss(left, states[held], others, matrix, shift).item()

    tried = []
    for ridge in RIDGES:
        shrunk = lengths.square() + ridge * lengths.square().mean()
        matrix = (lengths / shrunk)[:, None] * projected
        tried.append((unseen(matrix, bias), ridge, matrix, shrunk))
    best, ridge, matrix, shrunk = min(tried, key=lambda one: one[:2])
    # Steps go along the states' own directions, as far as the ridge trusts each of them.
    scale = (len(x) / shrunk).sqrt()[:, None] * seen.states.var(0).mean().sqrt()
    moved = torch.zeros_like(matrix, requires_grad=True)
    shifted = torch.zeros_like(bias, requires_grad=True)
    found = Translator(mean, basis, matrix, bias, ridge, 0)
    optimiser = torch.optim.Adam([moved, shifted], lr=RATE)
    for step in range(1, STEPS + 1):
        optimiser.zero_grad()
        now = matrix + scale * moved, bias + seen.states.var(0).mean().sqrt() * shifted
        loss(seen, x, scores, *now).backward()
        optimiser.step()
        if step % EVERY:
            continue
        with torch.no_grad():
            now = matrix + scale * moved, bias + seen.states.var(0).mean().sqrt() * shifted
        if (value := unseen(*now)) < best:
            best, found = value, Translator(mean, basis, *now, ridge, step)
        elif step - (found.steps or 0) >= EVERY * PATIENCE:
            break
    return found
