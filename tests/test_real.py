"""The packaged real models against plain ones: in one file, for one process makes them once."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from conftest import REPO
from test_lens import assert_rows, target_tokens
from test_models import final_norm
from test_states import assert_equal_states, plain_states
from vecsweep import tasks
from vecsweep.files import Tensors
from vecsweep.stages import prompts
from vecsweep.tasks import chat
from vecsweep.tasks.chat import Chat
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


def test_a_real_instruct_model_reads_its_own_tokens(real_model):
    description = json.loads(real_model.description.read_text())
    folder = real_model.description.parent / description["weights"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        pytest.skip("a base model")
    task = tasks.load(REPO / "workflow" / "vecsweep" / "tasks" / "capitals.yaml")
    settings = {"demonstrations": 1, "seed": 0, "max_prompts": 3}
    reader = prompts.Reader.of(real_model.description, folder.parent / "tokenizer.json")
    rows = prompts.build(task, reader.tokenizer, settings, chat=Chat("m", folder))
    row = next(row for row in rows if row["dropped"] is None)
    turns = chat.question_turns(
        task, pair(task, row), [pair(task, row, "demonstrations")], 0, False
    )
    assert row["token_ids"] == tokenizer.apply_chat_template(
        chat.messages(turns), add_generation_prompt=True, return_dict=False
    )
    first = tokenizer.decode(row["answer_tokens"][0])
    assert first and row["answer"].startswith(first)  # without the space of plain prompts


def pair(task, row, key="argument"):
    return next(one for one in task.rows if one["argument"] == row[key])
