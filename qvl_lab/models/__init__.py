"""Models: loading, shapes, quantised weights, and their sizes without torch (``architecture``)."""

import logging

for noisy in ("torchao", "torch.utils._pytree"):  # they warn when transformers imports them
    logging.getLogger(noisy).setLevel(logging.ERROR)
