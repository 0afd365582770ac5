"""The packaged real models against plain ones: in one file, for one process makes them once."""

import pyarrow.parquet as pq
import pytest
import torch

from test_lens import assert_rows, target_tokens
from test_models import final_norm
from test_states import assert_equal_states, plain_states
from vecsweep.files import Tensors
from vecsweep.tasks.rows import CAPTURED, kept_rows

pytestmark = pytest.mark.real


def test_states_of_a_real_model(real_model):
    rows = kept_rows(real_model.prompts, CAPTURED)
    assert len(rows) == 6
    file = Tensors(real_model.states)
    layers = sum(name.startswith("resid_post") for name in file)
    assert_equal_states(
        {name: file[name] for name in file},
        real_model.model,
        [row["token_ids"] for row in rows],
        parallel=False,
        tolerance=1e-4,
        drop=tuple(f"resid_pre.{layer:02d}" for layer in range(1, layers)),
    )


@torch.inference_mode()
def test_lens_of_a_real_model(real_model):
    rows = kept_rows(real_model.prompts, CAPTURED)
    model, targets = real_model.model, target_tokens(rows)
    table = pq.read_table(real_model.lens).to_pylist()
    plain = [plain_states(model, row["token_ids"], parallel=False) for row in rows]
    layers = model.config.num_hidden_layers
    assert len(table) == len(rows) * layers * 2
    for layer in range(layers):
        for site in ("resid_mid", "resid_post"):
            state = torch.stack([states[f"{site}.{layer:02d}"] for states in plain])
            logits = model.get_output_embeddings()(final_norm(model)(state))
            here = [row for row in table if (row["layer"], row["site"]) == (layer, site)]
            assert_rows(here, logits, targets, margin=1e-5)
    logits = [model(torch.tensor([row["token_ids"]])).logits[0, -1] for row in rows]
    assert_rows(here, torch.stack(logits), targets, margin=1e-5)
