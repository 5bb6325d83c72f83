"""The peak of torch's matrix products on this machine in both precisions, as `machine.py` has it for JAX.

  python -m benchmarks.torch_machine
Prints one JSON object. Torch's library has no fast bfloat16 on some CPUs on which it is there for JAX, and the reverse.
"""

from __future__ import annotations

import json
import time

import torch

SIZE = 1024, 576, 1536  # a layer of a small model, as in `machine.gemm_size`


def gemm_flops(dtype: torch.dtype, device: str, rounds: int = 5) -> float:
    """Flop/s of `x [m, k] @ w [k, n]`, of the fastest round."""
    m, k, n = SIZE if device == 'cpu' else (8192, 8192, 8192)
    x, w = torch.randn(m, k, dtype=dtype, device=device), torch.randn(k, n, dtype=dtype, device=device)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        # A number that is read waits for the product.
        (x @ w)[0, 0].item()
        times.append(time.perf_counter() - start)
    return 2 * m * k * n / min(times[1:])


def measure() -> dict[str, float]:
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    dtypes = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
    return {f'{name}_gflops': round(gemm_flops(dtype, device) / 1e9, 1) for name, dtype in dtypes.items()}


if __name__ == '__main__':
    print(json.dumps(measure()))
