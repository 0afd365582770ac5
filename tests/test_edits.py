"""Edits and resumed runs: equal to plain hooks on the whole model, one prompt at a time."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode

import tiny
from vecsweep import Problem
from vecsweep.engine import edits, forward, load
from vecsweep.engine.edits import Edit

# Where things are, written down again so that a wrong row of families.py cannot hide.
BLOCKS = {
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "mpt": "transformer.blocks",
}
FINAL_NORM = {
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
    "mpt": "transformer.norm_f",
}
POST_NORM = {"ffn": "post_feedforward_layernorm", "attention": "post_attention_layernorm"}
SUBLAYERS = {
    "gpt2": {"ffn": "mlp", "attention": "attn"},
    "gptj": {"ffn": "mlp", "attention": "attn"},
    "gpt_neox": {"ffn": "mlp", "attention": "attention"},
    "bloom": {"ffn": "mlp.dense_4h_to_h", "attention": "self_attention.dense"},
    "opt": {"ffn": "fc2", "attention": "self_attn"},
    **dict.fromkeys(["gemma3_text", "gemma2", "olmo2", "olmo3"], POST_NORM),
    "glm4": {"ffn": "post_mlp_layernorm", "attention": "post_self_attn_layernorm"},
    "falcon": {"ffn": "mlp", "attention": "self_attention"},
    "mpt": {"ffn": "ffn.down_proj", "attention": "attn"},
    "llama4_text": {"ffn": "feed_forward", "attention": "self_attn"},
}
LLAMA = {"ffn": "mlp", "attention": "self_attn"}
D_MODEL = 32


def block_of(model, layer):
    blocks = "transformer.h" if hasattr(model, "transformer") else "model.layers"
    return model.get_submodule(BLOCKS.get(model.config.model_type, blocks))[layer]


def sublayer_of(model, layer, sublayer):
    if sublayer == "block":
        return block_of(model, layer)
    names = SUBLAYERS.get(model.config.model_type, LLAMA)
    return block_of(model, layer).get_submodule(names[sublayer])


@torch.inference_mode()
def plain_run(model, ids, changes=(), mode="replace", position="all"):
    """(state that the final norm reads [d_model], logits [vocabulary]) at the last token.

    A bare forward of one prompt, with `changes`, (layer, sublayer, vector), made by plain hooks.
    """
    seen, handles = [], []

    def change(vector):
        def hook(module, args, output):
            whole = output[0] if isinstance(output, tuple) else output
            tokens = whole.reshape(-1, whole.shape[-1]).clone()  # one prompt: [tokens, d_model]
            chosen = slice(None) if position == "all" else slice(-1, None)
            tokens[chosen] = vector if mode == "replace" else tokens[chosen] + vector
            new = tokens.view(whole.shape)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    for layer, sublayer, vector in changes:
        if sublayer != "block":  # Granite multiplies by it what it is given
            vector = vector / getattr(model.config, "residual_multiplier", 1)
        module = sublayer_of(model, layer, sublayer)
        handles.append(module.register_forward_hook(change(vector)))
    default = "transformer.ln_f" if hasattr(model, "transformer") else "model.norm"
    norm = model.get_submodule(FINAL_NORM.get(model.config.model_type, default))
    handles.append(norm.register_forward_pre_hook(lambda module, args: seen.append(args[0])))
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return seen[0][0, -1], logits


def prompts_with(prefix, lengths=(3, 2, 5, 3, 3), seed=0):
    """Prompts in random tokens that share their first `prefix` ones; ends of several lengths."""
    draw = random.Random(seed)

    def tokens(count):
        return [draw.randrange(2, tiny.VOCABULARY) for _ in range(count)]

    shared = tokens(prefix)
    return [shared + tokens(length) for length in lengths]


def vectors_for(layers, variants=2, seed=0):
    """Different vectors at each layer, some 3 times as long as a tiny model's own updates."""
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(variants, D_MODEL, generator=generator) for layer in layers}


def assert_resumed(engine, prompts, edit, tolerance=1e-5, last_only=False):
    """Every prompt and variant within `tolerance` of the largest entry of a plain run."""
    model, done, worst = engine.model, [], 0
    for clean in edits.clean_runs(engine, prompts, edit.variants, last_only):
        found = edits.resume(engine, clean, edit)
        assert found.shape == (edit.variants, len(clean.rows), D_MODEL)
        for (place, row), variant in itertools.product(enumerate(clean.rows), range(edit.variants)):
            changes = [(i, edit.sublayer, v[variant]) for i, v in edit.vectors.items()]
            plain, _ = plain_run(model, prompts[row], changes, edit.mode, edit.position)
            off = (found[variant, place] - plain).abs().max() / plain.abs().max()
            worst = max(worst, off.item())
        done += clean.rows
    assert sorted(done) == list(range(len(prompts)))
    assert worst <= tolerance


def state_of(model):
    """What a patch would leave behind in a model's modules."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return hooks, [name for name, m in model.named_modules() if "forward" in vars(m)]


@pytest.mark.parametrize("prefix", [0, 6])
@pytest.mark.parametrize("mode", ["replace", "add"])
def test_equals_plain_hooks(family, mode, prefix):
    engine, prompts = load.engine_of(family.model, 20 if prefix else 12), prompts_with(prefix)
    # Two prompts go together where variants could be taken for prompts, others alone.
    assert sorted(len(clean.rows) for clean in edits.clean_runs(engine, prompts, 2)) == [1, 1, 1, 2]
    before = state_of(family.model)
    last = tiny.layers_of(family.kind) - 1
    for start, sublayer, position in itertools.product(
        (0, last // 2, last), edits.SUBLAYERS, ("all", "last")
    ):
        vectors = vectors_for(range(start, last + 1))
        assert_resumed(engine, prompts, Edit(vectors, mode, position, sublayer))
    assert state_of(family.model) == before


@pytest.mark.parametrize("prefix", [0, 6])
@pytest.mark.parametrize("mode", ["replace", "add"])
def test_the_last_token_alone_equals_plain_hooks(family, mode, prefix):
    # Ends of one token too: without a shared beginning, nothing then stands before the last one.
    engine, prompts = load.engine_of(family.model, 12), prompts_with(prefix, (3, 1, 9, 3, 3, 2))
    last, before = tiny.layers_of(family.kind) - 1, state_of(family.model)
    for start, sublayer in itertools.product((0, last // 2, last), edits.SUBLAYERS):
        for layers in ([start], range(start, last + 1)):
            edit = Edit(vectors_for(layers), mode, "last", sublayer)
            assert_resumed(engine, prompts, edit, last_only=True)
    assert state_of(family.model) == before


def test_the_last_token_alone_runs_again(family):
    engine, prompts = load.engine_of(family.model, 64), prompts_with(6, (4, 4, 4))
    (clean,) = edits.clean_runs(engine, prompts, 2, last_only=True)
    seen, handles = [], []
    for layer, block in enumerate(engine.blocks):

        def saw(module, args, output, layer=layer):
            seen.append((layer, *forward.first(output).shape))

        handles.append(block.register_forward_hook(saw))
    with forward.hooks(handles):
        edits.resume(engine, clean, Edit(vectors_for([1]), position="last"))
    assert seen == [(layer, 6, 1, D_MODEL) for layer in range(1, len(engine.blocks))]
    with pytest.raises(ValueError, match="edits of the last token"):
        edits.resume(engine, clean, Edit(vectors_for([1])))


def test_edits_of_tokens_that_do_not_run_again_are_refused(tiny_model):
    engine, prompts = load.engine_of(tiny_model("gpt2").model, 64), prompts_with(6, (3, 3))
    (clean,) = edits.clean_runs(engine, prompts, 2, last_only=2)
    edits.resume(engine, clean, Edit(vectors_for([1]), position=2))
    for position in (3, "all"):
        with pytest.raises(ValueError, match="edits of the last tokens: 2"):
            edits.resume(engine, clean, Edit(vectors_for([1]), position=position))
    (clean,) = edits.clean_runs(engine, prompts, 2)
    edits.resume(engine, clean, Edit(vectors_for([1]), position=3))
    with pytest.raises(ValueError, match="beginning that the prompts share"):
        edits.resume(engine, clean, Edit(vectors_for([1]), position=4))


def test_one_clean_run_serves_many_edits_of_the_last_token(family):
    engine, prompts = load.engine_of(family.model, 64), prompts_with(6, (9, 9))
    (clean,) = edits.clean_runs(engine, prompts, 2, last_only=True)
    layers = range(tiny.layers_of(family.kind))
    both = [edits.resume(engine, clean, Edit(vectors_for([i]), position="last")) for i in layers]
    again = [edits.resume(engine, clean, Edit(vectors_for([i]), position="last")) for i in layers]
    assert all(torch.equal(a, b) for a, b in zip(both, again))


def test_own_outputs_change_nothing(family):
    # What a clean run says that each sublayer gave is what the stream was made of.
    engine, prompts = load.engine_of(family.model, 64), prompts_with(6, (3, 3, 4))
    for clean in edits.clean_runs(engine, prompts, 1, last_only=True):
        for place, row in enumerate(clean.rows):
            alone = next(edits.clean_runs(engine, [prompts[row]], 1, last_only=True))
            for (sublayer, layer), given in clean.outputs.items():
                edit = Edit({layer: given[place : place + 1]}, "replace", "last", sublayer)
                found = edits.resume(engine, alone, edit)[0]
                torch.testing.assert_close(
                    found, clean.last[place : place + 1], rtol=1e-5, atol=1e-5
                )
        assert len(clean.outputs) == len(edits.SUBLAYERS) * len(engine.blocks)


def test_clean_run_is_a_plain_run(family):
    engine = load.engine_of(family.model, 8)
    for prefix in (0, 6):
        prompts = prompts_with(prefix)
        for clean in edits.clean_runs(engine, prompts, 1):
            assert (clean.prefix_calls is not None) == (prefix == 6)
            for place, row in enumerate(clean.rows):
                plain, _ = plain_run(family.model, prompts[row])
                torch.testing.assert_close(clean.last[place], plain, rtol=1e-5, atol=1e-5)


def test_edits_are_felt(family):
    # What `assert_resumed` compares would agree too if neither side edited anything.
    engine, prompts = load.engine_of(family.model, 64), prompts_with(6, (3, 3))
    (clean,) = edits.clean_runs(engine, prompts, 2)
    for sublayer, mode, position in itertools.product(
        ("ffn", "attention"), ("replace", "add"), ("all", "last")
    ):
        found = edits.resume(engine, clean, Edit(vectors_for([1]), mode, position, sublayer))
        assert (found - clean.last).abs().max() > 0.1 * clean.last.abs().max()
        assert (found[0] - found[1]).abs().max() > 0.1 * clean.last.abs().max()


def test_dropped_and_unchanged(family):
    # Zero vectors: dropped sublayers when they replace, nothing at all when they are added.
    engine, prompts = load.engine_of(family.model, 64), prompts_with(6, (3, 3, 4))
    zeros = dict.fromkeys(range(tiny.layers_of(family.kind)), torch.zeros(1, D_MODEL))
    for sublayer in ("ffn", "attention"):
        assert_resumed(engine, prompts, Edit(zeros, sublayer=sublayer))
        for clean in edits.clean_runs(engine, prompts, 1):
            found = edits.resume(engine, clean, Edit(zeros, "add", sublayer=sublayer))[0]
            torch.testing.assert_close(found, clean.last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [(0, 2), (2, 0), (1,)])
def test_some_layers_only(family, layers):
    # As when random layers are removed: what lies between is computed on the edited stream.
    engine, prompts = load.engine_of(family.model, 12), prompts_with(6, (3, 3, 4))
    for sublayer in ("ffn", "attention"):
        assert_resumed(engine, prompts, Edit(vectors_for(layers, 1), sublayer=sublayer))


def test_one_run_serves_many_edits(family):
    # A sweep over start layers: the clean run is as it was after each edit.
    engine, prompts = load.engine_of(family.model, 64), prompts_with(6, (3, 3))
    (clean,) = edits.clean_runs(engine, prompts, 2)
    layers = range(tiny.layers_of(family.kind))
    once = [edits.resume(engine, clean, Edit(vectors_for(layers[i:]))) for i in layers]
    again = [edits.resume(engine, clean, Edit(vectors_for(layers[i:]))) for i in reversed(layers)]
    assert all(torch.equal(a, b) for a, b in zip(once, reversed(again)))


def mixed_edits(layers, positions, seed):
    """Edits of all kinds in a random order, each with vectors of its own."""
    draw = random.Random(seed)
    kinds = itertools.product(("replace", "add"), positions, edits.SUBLAYERS)
    found = [
        Edit(
            vectors_for(draw.sample(range(layers), draw.randint(1, layers)), draw.randint(1, 3), i),
            *kind,
        )
        for i, kind in enumerate(kinds)
    ]
    draw.shuffle(found)
    return found


@pytest.mark.parametrize("prefix", [0, 6])
@pytest.mark.parametrize("last_only", [False, True])
def test_edits_that_run_together_are_as_alone(family, prefix, last_only):
    engine, layers = load.engine_of(family.model, 64), tiny.layers_of(family.kind)
    before = state_of(family.model)
    many = mixed_edits(layers, ("last",) if last_only else ("all", "last"), prefix)
    for clean in edits.clean_runs(engine, prompts_with(prefix, (3, 3, 4)), 4, last_only):
        alone = [edits.resume(engine, clean, edit) for edit in many]
        for room in (1, 40, 10**6):  # one by one, a few, all in one pass
            engine.batch_tokens = room
            for one, other in zip(alone, edits.resume_all(engine, clean, many), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        engine.batch_tokens = 64
    assert state_of(family.model) == before


def test_start_layers_share_passes(family):
    # As many as fit in a batch; a block sees the runs that began at it or below.
    engine, layers = load.engine_of(family.model, 24), tiny.layers_of(family.kind)
    (clean,) = edits.clean_runs(engine, prompts_with(0, (4,)), 1)
    seen = []
    handles = [
        block.register_forward_hook(lambda m, args, output: seen.append(len(forward.first(output))))
        for block in engine.blocks
    ]
    many = [Edit(vectors_for(range(start, layers), 2)) for start in range(3)]
    with forward.hooks(handles):
        list(edits.resume_all(engine, clean, many))
        assert seen == [2, 4, *[6] * (layers - 2)]
        seen.clear()
        engine.batch_tokens = 16
        list(edits.resume_all(engine, clean, many))
        assert seen == [2, *[4] * (layers - 1), *[2] * (layers - 2)]


class Uses(TorchFunctionMode):
    """Counts the calls of any torch function that take one of some tensors."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors, self.count = [id(tensor) for tensor in tensors], 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = [*args, *(kwargs or {}).values()]
        # Looking at a weight's shape or class is no use of it.
        if "__get__" not in repr(function):
            self.count += any(id(value) in self.tensors for value in given)
        return function(*args, **(kwargs or {}))


def ffn_matrices(model, layer):
    block = block_of(model, layer)
    names = ("fc1", "fc2", "mlp", "ffn", "feed_forward")
    modules = [getattr(block, name) for name in names if hasattr(block, name)]
    return [p for module in modules for p in module.parameters() if p.dim() >= 2]


def uses(engine, clean, edit, layer):
    with Uses(ffn_matrices(engine.model, layer)) as seen:
        edits.resume(engine, clean, edit)
    return seen.count


@pytest.mark.parametrize("prefix", [0, 6])
def test_a_replaced_ffn_is_not_computed(family, prefix):
    engine = load.engine_of(family.model, 64)
    (clean,) = edits.clean_runs(engine, prompts_with(prefix, (3, 3)), 2)
    matrices, passes = len(ffn_matrices(family.model, 1)), 2 if prefix else 1
    assert matrices >= 2
    edit = Edit(vectors_for([1]))
    assert uses(engine, clean, edit, 0) == 0  # below the edit nothing runs at all
    assert uses(engine, clean, edit, 1) == 0
    assert uses(engine, clean, edit, 2) == matrices * passes
    # It is needed where it is added to, and for the other tokens of a last-token edit.
    for edit in (Edit(vectors_for([1]), "add"), Edit(vectors_for([1]), position="last")):
        assert uses(engine, clean, edit, 1) == matrices * passes


def test_of_several_edits_only_the_replaced_ffns_are_not_computed(family):
    engine = load.engine_of(family.model, 64)
    (clean,) = edits.clean_runs(engine, prompts_with(0, (3, 3)), 2)
    many = [Edit(vectors_for([1]), mode) for mode in ("replace", "add")]
    rows = []
    down = block_of(family.model, 1).get_submodule(engine.family.down)
    count = lambda module, args, output: rows.append(output.numel() // D_MODEL)  # noqa: E731
    with forward.hooks([down.register_forward_hook(count)]):
        list(edits.resume_all(engine, clean, many))
    # Two variants of two prompts of three tokens; the FFN's last matrix may be what is replaced.
    assert rows == [12 if engine.family.down != engine.family.ffn else 24]


@pytest.mark.parametrize("mode", ["replace", "add"])
def test_a_module_that_runs_twice_is_refused(mode):
    # Two blocks that share an FFN: an edit of one would be an edit of both.
    model = tiny.model("llama")
    model.model.layers[2].mlp = model.model.layers[1].mlp
    engine = load.engine_of(model, 64)
    (clean,) = edits.clean_runs(engine, prompts_with(0, (3, 3)), 1)
    before = state_of(model)
    with pytest.raises(Problem, match=r"the ffn of layer 1 ran 2 times in one forward, not once"):
        edits.resume(engine, clean, Edit(vectors_for([1], 1), mode))
    assert state_of(model) == before


def test_vectors_of_each_prompt_are_halved_with_the_prompts(family, monkeypatch, capsys):
    engine = load.engine_of(family.model, 10**6)
    prompts = prompts_with(0, (4, 4, 4))
    (clean,) = edits.clean_runs(engine, prompts, 1)
    vectors = torch.randn(1, 3, D_MODEL, generator=torch.Generator().manual_seed(0))
    edit = Edit({1: vectors, 2: vectors_for([2], 1)[2]}, "add", "last")
    whole = edits.resume(engine, clean, edit)
    tries = []

    def once_too_large(run):
        tries.append(run)
        return None if len(tries) == 1 else run()

    monkeypatch.setattr(edits, "fitted", once_too_large)
    found = edits.resume(engine, clean, edit)
    assert len(tries) > 2 and "goes on with" in capsys.readouterr().err
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        whole[0, 0], edits.resume(engine, clean, Edit({1: vectors[:, 1]}))[0, 0]
    )


def test_a_module_that_does_not_run_is_refused():
    model = tiny.model("llama")
    for block in model.model.layers:
        block.spare = torch.nn.Identity()
    engine = load.engine_of(model, 64)
    engine.family = replace(engine.family, ffn="spare")
    (clean,) = edits.clean_runs(engine, prompts_with(6, (3, 3)), 1)
    with pytest.raises(Problem, match=r"the ffn of layer 1 ran 0 times"):
        edits.resume(engine, clean, Edit(vectors_for([1], 1)))


def test_nothing_stays_patched_after_an_error(family):
    engine, prompts = load.engine_of(family.model, 64), prompts_with(6, (3, 3))
    before = state_of(family.model)
    plain, _ = plain_run(family.model, prompts[0])
    (clean,) = edits.clean_runs(engine, prompts, 1)
    layers = range(tiny.layers_of(family.kind))
    for sublayer, mode in itertools.product(("ffn", "attention"), ("replace", "add")):
        wrong = dict.fromkeys(layers, torch.randn(1, D_MODEL + 1))
        with pytest.raises(RuntimeError):
            edits.resume(engine, clean, Edit(wrong, mode, sublayer=sublayer))
        assert state_of(family.model) == before
    # Nor after one while the clean run is recorded.
    with pytest.raises(IndexError):
        list(edits.clean_runs(engine, [[tiny.VOCABULARY + 7], [3, 4]], 1))
    assert state_of(family.model) == before
    torch.testing.assert_close(plain_run(family.model, prompts[0])[0], plain, rtol=0, atol=0)
