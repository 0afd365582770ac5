"""The word2vec offset of the relations literature: a difference of mean states."""

from vecsweep.methods.setting import Material, Vector


def of_means(material: Material, layer: int) -> list[Vector]:
    """Mean state that is about to say the answer minus mean state about to say the argument.

    Over the donors of the source layer, which are those of `mean` too: in their abstractive and
    their novel prompts, at the last token after the layer's block.
    """
    answering, repeating = material.flip_states(layer)
    return [Vector(answering.mean(0) - repeating.mean(0), "difference", layer)]
