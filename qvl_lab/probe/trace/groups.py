"""What kind of work a kernel does, told by its name.

The names are those of torch 2.11 to 2.13 on Ampere and Hopper: ATen's own kernels, cuBLAS
(``nvjet_``, ``sm90_xmma_``, ``ampere_..gemm``, ``gemvx``), CUTLASS, cuDNN, the SDPA backends, and
what TorchInductor compiles (``triton_``).
"""

from __future__ import annotations

import re
from functools import cache

#: The pattern of each group, tried in this order; what none matches is "other".
PATTERNS: tuple[tuple[str, str], ...] = (
    ("copy", r"^Mem(cpy|set) "),
    # Inductor names a kernel after the operators around it: a fused pointwise kernel may carry
    # "attention" or "mm" in its name. Only its own kind (poi, red, per, tem) is to be trusted.
    ("elementwise", r"^triton_poi_"),
    ("norm", r"^triton_(red|per)_.*(norm|rsqrt)"),
    ("attention", r"^triton_tem_.*attention"),
    ("matrix multiply", r"^triton_(tem|mm|bmm)_"),
    ("other", r"^triton_"),
    ("norm", r"(layer|rms|group|batch)_?norm|RowwiseMoments"),
    # before matrix multiply: attention kernels are built on CUTLASS and cuDNN too
    ("attention", r"flash|fmha|sdpa|attention|attn"),
    (
        "matrix multiply",
        r"gemm|gemv|nvjet|cutlass|xmma|matmul|splitKreduce|cublas|\bdot_kernel|reduce_1Block"
        r"|convolve|fprop|marlin|weight_int[48]pack",
    ),
    # before elementwise: a copy or a fill is an elementwise kernel with a functor that says so
    ("copy", r"copy_kernel|CatArray|FillFunctor|gather|scatter|index_?(elementwise|select|func)"),
    ("elementwise", r"elementwise|multi_tensor_apply|act_and_mul|rotary"),
)

#: Every group that a row of the kernels table may have; "gap" is no kernel but the time between.
GROUPS = ("attention", "matrix multiply", "norm", "copy", "elementwise", "other", "gap")

_COMPILED = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in PATTERNS)


@cache
def group(kernel: str) -> str:
    """The group of a kernel, a copy or a memset by its name as Kineto writes it.

    "copy" moves or fills memory without arithmetic, gather and scatter included; "elementwise" is
    pointwise; reductions, softmax, sorting and sampling are "other", for their names do not tell
    what they are part of.
    """
    return next((name for name, pattern in _COMPILED if pattern.search(kernel)), "other")
