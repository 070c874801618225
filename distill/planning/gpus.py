"""What GPUs can hold and do."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: As it is commonly called.
        gib: Memory as the driver reports it, GiB.
        bfloat16: Dense rate of the tensor cores with float32 accumulation, FLOP/s.
        float32: Rate without tensor cores (PyTorch leaves TF32 off), FLOP/s.
    """

    name: str
    gib: float
    bfloat16: float
    float32: float

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.gib * GIB)

    def rate(self, precision: str) -> float:
        return self.bfloat16 if precision == "bfloat16" else self.float32


# As NVIDIA states for the SXM modules, the L40S and the RTX 4090; the sheets themselves have not been checked
# here. Where the rate with sparsity is what is stated, half of it stands here.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-80GB", 80, 312e12, 19.5e12),
        Gpu("H100", 79, 989e12, 67e12),
        Gpu("H200", 140, 989e12, 67e12),
        Gpu("B200", 179, 2250e12, 75e12),
        Gpu("L40S", 45, 362e12, 91.6e12),
        Gpu("RTX-4090", 24, 165e12, 82.6e12),
    )
}
