import gc
import logging
from contextlib import contextmanager

# `transformers` imports torchao, which warns of kernels for other devices each time.
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def importing():
    """Keep Python from looking for garbage meanwhile: packages make a million objects, which all stay.

    Nor does it look at those again afterwards. torch and `transformers` come in four fifths of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
