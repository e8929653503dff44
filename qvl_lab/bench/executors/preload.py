"""Imported once by the fork server: everything heavy, and nothing that opens a CUDA context.

torchao asks for the GPU's compute capability while it is imported, and a process forked after
that could not use the GPU. So GPUs are hidden for the length of the import.
"""

import os

_visible = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looking for a GPU must not touch CUDA
os.environ["CUDA_VISIBLE_DEVICES"] = ""
try:
    import qvl_lab.bench.measure  # noqa: F401
finally:
    if _visible is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible
