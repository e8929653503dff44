"""Which weights at which precision."""

from __future__ import annotations

from dataclasses import dataclass

from qvl_lab.config.checks import member

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "fp8")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which weights, where, at which precision.

    Parameters
    ----------
    model : str
        ``"tiny"``, ``"random:8b"`` (tiny, 2b, 4b, 8b, 32b, 30b-a3b, 235b-a22b), a folder, or a
        hub id.
    precision : str
        ``"fp32"``, ``"bf16"``, ``"fp16"``, ``"int8"`` (weights of the language model only),
        ``"fp8"`` (its weights and what is multiplied with them), or ``"auto"``: bf16 on a GPU
        that has it, fp32 on a CPU.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    revision : str, optional
        Branch, tag or commit of a hub model.
    trust_remote_code : bool
        Run code that comes with the model. Off unless asked for.
    attn_implementation : str, optional
        As in transformers; None leaves the choice to transformers.
    seed : int
        Seeds the weights of ``random:*``.
    """

    model: str = "tiny"
    precision: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        member("precision", self.precision, PRECISIONS)
        member("trust_remote_code", self.trust_remote_code, (True, False))
