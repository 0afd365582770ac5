"""Single tensors out of a safetensors checkpoint, by the model's own parameter names."""

import json
from pathlib import Path

from vecsweep import Problem


class Checkpoint:
    """The safetensors files of a hub-format folder, opened lazily.

    `checkpoint["transformer.ln_f.weight"]` reads one tensor in the file's own dtype. Files saved
    from the bare decoder lack its prefix ("ln_f.weight"), so a name is tried both ways.
    """

    def __init__(self, folder: Path, skeleton):
        self.folder = Path(folder)
        self._prefix = skeleton.base_model_prefix + "."
        self._open = {}
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            self.file_of = json.loads(index.read_text())["weight_map"]
        else:
            self.file_of = {
                key: path.name
                for path in sorted(self.folder.glob("*.safetensors"))
                for key in self._handle(path.name).keys()
            }

    def key_of(self, name: str) -> str | None:
        """The checkpoint's key for a parameter name, None if it has none."""
        # GPT-NeoX files call the LM head embed_out.
        for key in (name, name.replace("lm_head.", "embed_out.")):
            for candidate in (key, key.removeprefix(self._prefix), self._prefix + key):
                if candidate in self.file_of:
                    return candidate
        return None

    def __contains__(self, name):
        return self.key_of(name) is not None

    def __getitem__(self, name):
        key = self.key_of(name)
        if key is None:
            raise Problem(f"{self.folder}: the checkpoint has no tensor '{name}'")
        return self._handle(self.file_of[key]).get_tensor(key)

    def slice(self, name: str, shape: tuple, rank: int, world: int):
        """The part of a tensor that a rank holds, read without the rest.

        It is cut along the one dimension in which `shape` is smaller than the tensor.
        """
        key = self.key_of(name)
        part = self._handle(self.file_of[key]).get_slice(key)
        full = tuple(part.get_shape())
        if full == shape:
            return part[:]
        cut = [i for i, (a, b) in enumerate(zip(full, shape)) if a != b]
        if len(full) != len(shape) or len(cut) != 1 or shape[cut[0]] * world != full[cut[0]]:
            raise Problem(f"{self.folder}: '{key}' of shape {full} does not split into {shape}")
        start = rank * shape[cut[0]]
        rows = slice(start, start + shape[cut[0]])
        return part[rows] if cut[0] == 0 else part[:, rows]

    def derived(self, key: str) -> bool:
        """Whether a key is no parameter: old files hold attention masks and rotary tables."""
        return key.endswith((".attn.bias", ".masked_bias", ".rotary_emb.inv_freq", "attention.bias")) or (
            key == "lm_head.weight"
        )

    def _handle(self, file: str):
        from safetensors import SafetensorError, safe_open

        if file not in self._open:
            try:
                self._open[file] = safe_open(str(self.folder / file), "pt")
            except (OSError, SafetensorError) as error:
                raise Problem(
                    f"{self.folder / file} is missing or damaged ({error}); fetch it again"
                ) from error
        return self._open[file]
