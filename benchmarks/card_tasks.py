"""The tasks of `card.py`. Each is a generator in a process of its own, and yields results by name as it has them.

Weights and inputs are random. Nothing is imported before a task runs, since a process has jax's card or torch's.
"""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import decoders, plan_memory, rlpa_step, train_step
from benchmarks.shapes import SHAPES

Results = Iterator[tuple[str, dict[str, Any]]]


class Heads(NamedTuple):
    """The sizes of an attention, and how tokens see each other: `branches` of a prompt, or 0 for one sequence a row."""

    rows: int
    length: int
    heads: int
    kv_heads: int
    size: int
    branches: int = 0
    window: int | None = None
    cap: float | None = None


class Size(NamedTuple):
    """The sizes of all tasks.

    models: shapes of `shapes.py`. train: rows and tokens of a supervised step. ppo: tokens of a prompt and of each of
    its answers. batches, prompt, new: of decoding. variant, steps: of `configs/rlpa.py`. times: runs that are timed.
    """

    attention: Mapping[str, Heads]
    models: Sequence[str]
    train: tuple[int, int]
    ppo: tuple[int, int]
    batches: Sequence[int]
    prompt: int
    new: int
    variant: str
    steps: int
    times: int


PACKED = {
    'default, T 1408': Heads(8, 1408, 9, 3, 64),
    'default, packed': Heads(8, 1408, 9, 3, 64, branches=4),
    'paper, T 17408': Heads(1, 17408, 16, 2, 128),
    'paper, packed': Heads(1, 17408, 16, 2, 128, branches=4),
    'head 96': Heads(4, 2048, 32, 32, 96),
    'window and cap': Heads(4, 2048, 16, 8, 128, window=512, cap=50.0),
}
SIZES = {
    'full': Size(PACKED, ('default', 'llama-1b'), (8, 1024), (1024, 96), (1, 8, 32, 128, 512), 128, 128, '', 3, 5),
    'quick': Size(
        {name: PACKED[name] for name in ('default, packed', 'paper, packed', 'window and cap')},
        ('default',), (8, 1024), (1024, 96), (1, 32, 512), 128, 64, '', 3, 3,
    ),
    'tiny': Size(
        {
            'sequence': Heads(1, 80, 4, 2, 16),
            'packed': Heads(2, 100, 4, 2, 24, branches=2),
            'window and cap': Heads(1, 80, 4, 2, 16, window=20, cap=5.0),
        },
        ('tiny',), (2, 32), (24, 8), (1, 4), 8, 8, 'smoke', 2, 1,
    ),
}  # fmt: skip


# --- attention --------------------------------------------------------------------------------------------------------


def attention_pal_jax(size: Size) -> Results:
    """Output and gradients of our kernels against float32, and their time forward and with the backward pass."""
    import jax
    import jax.numpy as jnp

    for name, heads in size.attention.items():
        kernels, both, exact = attentions(heads, interpret=jax.default_backend() != 'gpu')
        keys = jax.random.split(jax.random.key(0), 4)
        inputs = [jax.random.normal(*x, jnp.bfloat16) for x in zip(keys, inputs_of(heads), strict=True)]
        alone = best(kernels, size.times, *inputs[:3])
        results, seconds = both(*inputs), best(both, size.times, *inputs)
        references = exact(*(x.astype(jnp.float32) for x in inputs))
        errors = {
            f'error_{part}': float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b)))
            for part, a, b in zip(('out', 'dq', 'dk', 'dv'), results, references, strict=True)
        }
        work = 4.0 * heads.heads * heads.size * pairs_of(heads)
        yield name, {
            'forward_ms': 1e3 * alone, 'both_ms': 1e3 * seconds, 'both_tflops': 3.5 * work / seconds / 1e12, **errors,
        }  # fmt: skip


def attentions(heads: Heads, interpret: bool = False) -> tuple[Any, Any, Any]:
    """Jitted functions of queries, keys and values: the output of our kernels; with a cotangent beside, their output
    and gradients; the same by a loop with products in full float32."""
    import jax

    from pal_jax.models.blockwise import blockwise_attention
    from pal_jax.models.flash import flash_attention
    from pal_jax.models.places import Scoring

    places, scoring = places_of(heads), Scoring(heads.size**-0.5, heads.window, heads.cap)
    kernels = functools.partial(flash_attention, places=places, scoring=scoring, interpret=interpret)
    loop = functools.partial(blockwise_attention, queries=places, keys=places, scoring=scoring, causal=True)

    def exact(*inputs: Any) -> tuple[Any, ...]:
        with jax.default_matmul_precision('highest'):
            return _pulled(loop, *inputs)

    return jax.jit(kernels), jax.jit(functools.partial(_pulled, kernels)), jax.jit(exact)


def inputs_of(heads: Heads) -> list[tuple[int, ...]]:
    """The shapes of queries, keys, values and cotangents."""
    q, k = ((heads.rows, heads.length, count, heads.size) for count in (heads.heads, heads.kv_heads))
    return [q, k, k, q]


def attention_torch(size: Size) -> Results:
    """The time of torch's attention of whole sequences, by each of its backends that takes the shape."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    backends = {'cudnn': SDPBackend.CUDNN_ATTENTION, 'flash': SDPBackend.FLASH_ATTENTION}
    for name, heads in size.attention.items():
        if heads.branches or heads.window or heads.cap:
            continue  # torch's fast backends know none of these
        shapes = [(heads.rows, count, heads.length, heads.size) for count in (heads.heads, heads.kv_heads)]
        q, k, v = (torch.randn(shapes[n], dtype=torch.bfloat16, device=device, requires_grad=True) for n in (0, 1, 1))
        figures: dict[str, Any] = {}
        for backend, kind in backends.items():

            def both(kind: Any = kind, q: Any = q, k: Any = k, v: Any = v) -> None:
                with sdpa_kernel([kind]):
                    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                out.backward(out.detach())

            try:
                figures[f'{backend}_both_ms'] = 1e3 * best(both, size.times, wait=_torch_wait)
            except RuntimeError as error:
                figures[f'{backend}_refused'] = str(error).splitlines()[0]
        yield name, figures


def places_of(heads: Heads) -> Any:
    """The places of tokens in rows of one sequence, or of a prompt and its branches of equal lengths."""
    import jax.numpy as jnp
    import numpy as np

    from pal_jax.models.places import Places, one_sequence

    columns = np.arange(heads.length)
    if not heads.branches:
        return one_sequence(jnp.broadcast_to(jnp.asarray(columns), (heads.rows, heads.length)))
    part = heads.length // (heads.branches + 1)
    branch = np.minimum(columns // part, heads.branches)
    positions = np.where(branch == 0, columns, part + columns - branch * part)
    row = branch + 1, np.ones_like(branch), positions
    return Places(*(jnp.asarray(np.tile(x, (heads.rows, 1)), jnp.int32) for x in row))


def pairs_of(heads: Heads) -> int:
    """The number of pairs of tokens that see each other in all rows."""
    if heads.window:
        return heads.rows * sum(min(t + 1, heads.window) for t in range(heads.length))
    part = heads.length // (heads.branches + 1)
    last = heads.length - heads.branches * part
    sizes = [part] * heads.branches + [last]
    inside = sum(n * (n + 1) // 2 for n in sizes)
    return heads.rows * (inside + part * sum(sizes[1:]))


def _pulled(attend: Callable[..., Any], q: Any, k: Any, v: Any, cotangent: Any) -> tuple[Any, ...]:
    import jax

    out, pull = jax.vjp(attend, q, k, v)
    return out, *pull(cotangent.astype(out.dtype))


# --- training ---------------------------------------------------------------------------------------------------------


def train_pal_jax(size: Size) -> Results:
    return _trained(size, train_step.make_pal_jax)


def train_torch(size: Size) -> Results:
    return _trained(size, train_step.make_torch)


def _trained(size: Size, make: Callable[..., Any]) -> Results:
    rows, length = size.train
    for model in size.models:
        seconds = best(make(model, rows, length, 'bfloat16'), size.times)
        work = train_step.flops(SHAPES[model], rows, length)
        yield model, {'tokens_per_s': rows * length / seconds, 'tflops': work / seconds / 1e12}


def ppo_pal_jax(size: Size) -> Results:
    """An update by PPO with its scores, of two prompts with four answers each, and the most memory that it took."""
    prompt, completion = size.ppo
    for model in size.models:
        seconds = best(plan_memory.updates(_for_platform(model), prompt, completion), size.times)
        tokens = plan_memory.ROWS * (prompt + plan_memory.N * completion)
        yield model, {'tokens_per_s': tokens / seconds, 'gib': _peak_gib()}


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode_pal_jax(size: Size) -> Results:
    """Calls of the decoder by batch, and what a step of its engine reads, in how many kernels."""
    for model in size.models:
        for batch in size.batches:
            task = (model, 'bfloat16', batch, size.prompt, size.new)
            seconds, engine = best(decoders.make_local(*task), size.times), decoders.make_engine(*task)
            figures, alone = engine(), best(engine, size.times)
            yield f'{model}, {batch}', {
                'tokens_per_s': batch * size.new / seconds, 'engine_tokens_per_s': batch * size.new / alone,
                'engine_gbytes_per_s': size.new * figures['step_bytes'] / alone / 1e9,
                'kernels': figures['kernels'], 'graphs': figures['graphs'],
            }  # fmt: skip


def decode_torch(size: Size) -> Results:
    """Calls of transformers' generate with a static cache."""
    for model in size.models:
        for batch in size.batches:
            call = decoders.make_torch(model, 'bfloat16', batch, size.prompt, size.new, cache='static')
            yield f'{model}, {batch}', {'tokens_per_s': batch * size.new / best(call, size.times)}


# --- RLPA, equality, plan ---------------------------------------------------------------------------------------------


def rlpa_pal_jax(size: Size) -> Results:
    """The first steps of RLPA by phase, with random weights in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        source = None if size.variant == 'smoke' else random_model(size.models[0], Path(folder))
        train = rlpa_step.make_rlpa(size.variant, source, size.steps)
        first = train()
        yield 'rlpa', rlpa_step.summary(first, [train()], size.steps)


def equality_pal_jax(size: Size) -> Results:
    """The distance of the log-probs that sampling reported from those of training, over the tokens of eight answers."""
    import jax
    import numpy as np

    from pal_jax.data.packing import pack_rollouts
    from pal_jax.decode.requests import Request
    from pal_jax.models import params
    from pal_jax.run.devices import make_mesh
    from pal_jax.types import Sample, Sampling

    mesh = make_mesh(devices=jax.devices()[:1])
    for model, dtype in itertools.product(size.models, ('bfloat16', 'float32')):
        cfg, rng = _for_platform(model, dtype), np.random.default_rng(0)
        prompts = [tuple(rng.integers(1, cfg.vocab, size.prompt).tolist()) for _ in range(2)]
        sampling = Sampling(temperature=1.0, max_tokens=size.new)
        asked = [Request(prompt, sampling, seed=i) for prompt in prompts for i in range(plan_memory.N)]
        answers = decoders.local_decoder(model, dtype, len(asked))(asked)
        samples = [
            Sample(request.prompt_ids, answer, i // plan_memory.N, rewards=(0.0,))
            for i, (request, answer) in enumerate(zip(asked, answers, strict=True))
        ]
        learner = plan_memory.make_learner(cfg, mesh, size.new)
        state = learner.init(params.init(params.decoder_specs(cfg), jax.random.key(0)))
        batch, _ = learner.score(state, pack_rollouts(samples, n=plan_memory.N, actions=size.new, mesh=mesh))
        acts = np.asarray(batch.tokens.acts)
        gaps = np.abs(np.asarray(batch.logprobs) - np.asarray(batch.sampler_logprobs))[acts]
        yield f'{model}, {dtype}', {'largest': float(gaps.max()), 'mean': float(gaps.mean()), 'tokens': len(gaps)}


def plan_pal_jax(size: Size) -> Results:
    """The planner's memory and time of each program of a PPO update, beside those of a run on zeros.

    A device tells the most memory that a process has taken since its start. So the programs run in the order of the
    memory that they are said to need, and no arrays are kept from one to the next.
    """
    import jax

    from pal_jax.commands.planning import estimate
    from pal_jax.run.devices import make_mesh

    for model in size.models:
        request = plan_memory.request(_for_platform(model), *size.ppo, jax.devices()[:1])
        learner = request.make_learner(request.cfg, make_mesh(devices=request.devices), plan_memory.ROWS)
        programs = list(estimate.hot_functions(request, learner, {}))
        planned = [(program, estimate.measure(program, request.chip, request.efficiency)) for program in programs]
        for program, figures in sorted(planned, key=lambda pair: pair[1].peak - pair[1].beside):
            fastest = math.inf
            for _ in range(size.times + 1):  # arguments may be donated, so every run has its own
                arguments = jax.block_until_ready(jax.tree.map(_zeros, program.arguments))
                start = time.perf_counter()
                jax.block_until_ready(program.function(*arguments))
                fastest = min(fastest, time.perf_counter() - start)
                del arguments
            yield f'{model}, {program.name}', {**predicted(figures), 'ms': 1e3 * fastest, 'gib': _peak_gib()}


def predicted(figures: Any) -> dict[str, Any]:
    """The compiler's figures of a program: milliseconds, where the rates of the device are known, GiB of arguments,
    results and temporaries, kernels, GB read and written, and '' or the reason of a refusal."""
    return {
        'predicted_ms': None if figures.seconds is None else 1e3 * figures.seconds,
        'predicted_gib': (figures.peak - figures.beside) / 2**30, 'kernels': figures.kernels,
        'gbytes': figures.moved / 1e9, 'refused': figures.refused,
    }  # fmt: skip


def _peak_gib() -> float | None:
    """GiB of the most memory that this process has taken of the device; None where the device does not tell."""
    import jax

    peak = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    return peak and peak / 2**30


def _zeros(x: Any) -> Any:
    """An array of zeros for a shape of the planner; other arguments stay."""
    import jax
    import jax.numpy as jnp

    if not isinstance(x, jax.ShapeDtypeStruct):
        return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key(0) if x.shape == () else jax.random.split(jax.random.key(0), x.shape)
    return jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding)


def random_model(model: str, folder: Path) -> str:
    """Writes random weights in a model's shape, with a token for each byte, and returns their source."""
    import jax

    from pal_jax.data.tokenizer import byte_tokenizer
    from pal_jax.models import params
    from pal_jax.models.files import hf

    cfg = SHAPES[model]
    hf.save(params.init(params.decoder_specs(cfg), jax.random.key(0)), cfg, byte_tokenizer(), folder / model)
    return f'hf:{folder / model}'


def _for_platform(model: str, dtype: str = 'bfloat16') -> Any:
    from pal_jax.run.devices import for_platform

    return for_platform(SHAPES[model], dtype)


def best(run: Callable[..., Any], times: int, *arguments: Any, wait: Callable[[Any], Any] | None = None) -> float:
    """The seconds of the fastest of `times` runs, after one that compiles."""
    if wait is None:
        import jax

        wait = jax.block_until_ready
    fastest = math.inf
    for i in range(times + 1):
        start = time.perf_counter()
        wait(run(*arguments))
        fastest = min(fastest, time.perf_counter() - start) if i else fastest
    return fastest


def _torch_wait(_: Any) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


# The parts in the order of their worth, and the tasks of each.
PARTS: dict[str, dict[str, Callable[[Size], Results]]] = {
    'attention': {'pal_jax': attention_pal_jax, 'torch': attention_torch},
    'train': {'pal_jax': train_pal_jax, 'torch': train_torch, 'ppo': ppo_pal_jax},
    'decode': {'pal_jax': decode_pal_jax, 'torch': decode_torch},
    'rlpa': {'pal_jax': rlpa_pal_jax},
    'equality': {'pal_jax': equality_pal_jax},
    'plan': {'pal_jax': plan_pal_jax},
}
