import logging

# `transformers` imports torchao, which warns of kernels for other devices each time.
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
