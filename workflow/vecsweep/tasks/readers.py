"""What a model reads prompts with, and the tokens that a word is after a prompt."""

from typing import NamedTuple

from tokenizers import Tokenizer

from vecsweep import Problem
from vecsweep.files import file_crc32, read_json


class Reader(NamedTuple):
    """What a model reads prompts with: its tokenizer, its context in tokens (None: no end), and of how
    many tokens it has embeddings (None: of all)."""

    model: str
    tokenizer: Tokenizer
    context: int | None = None
    embeddings: int | None = None

    @classmethod
    def of(cls, path, tokenizer) -> "Reader":
        """The reader of the model that a `model.json` and a `tokenizer.json` describe."""
        description = read_json(path)
        expected = description.get("tokenizer_crc32")  # older ones noted none
        if expected not in (None, file_crc32(tokenizer)):
            raise Problem(f"{tokenizer} is damaged (checksum differs); delete it and run again")
        try:
            found = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # of no class of its own
            raise Problem(f"{tokenizer} is damaged ({error}); delete it and run again") from error
        sizes = description["context"], description.get("embeddings")  # older ones noted none
        return cls(description["model"], found, *sizes)


def continuation(ids: list[int], longer: list[int]) -> list[int] | None:
    """The tokens that a word adds to a prompt, None if it changes the prompt's own tokens.

    `longer` are those of the prompt with the word. A word is never encoded alone: its tokens depend
    on what stands before it.
    """
    return longer[len(ids) :] if longer[: len(ids)] == ids else None
