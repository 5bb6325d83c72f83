"""The programs of an exact sampler and of its trainer, by the compiler for a device that is not there: which of the
kernels that add something up are the same. Run as a script, it prints the result as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from typing import Any

# What a kernel does where the order of its sums, or the instructions of a function, could differ.
ARITHMETIC = re.compile(r'\b(dot|convolution|reduce|exponential|rsqrt|cosine|logistic|tanh)\(')
INSTRUCTION = re.compile(r'(?:ROOT )?%[\w.\-]+ = (\S+|\(.*?\)) (fusion|custom-call|reduce|dot|convolution)\(.*?\)(.*)')
TILE_SHAPE = re.compile(r'\[(\d+,)?256[,\]]')


def programs(topology: str) -> dict[str, str]:
    """The compiled texts of a decoding step, a scoring pass and an update of two layers of SmolLM2-135M's shape."""
    import jax
    import jax.numpy as jnp

    from benchmarks import shapes
    from pal_jax.commands.planning import chips
    from pal_jax.decode import engine
    from pal_jax.learners import forward
    from pal_jax.models import params
    from pal_jax.models.config import exact_config
    from pal_jax.run.devices import for_platform, make_mesh
    from pal_jax.run.sharding import replicated
    from pal_jax.types import TokenBatch

    mesh, slots = make_mesh(devices=chips.topology_devices(topology)[:1]), 32
    place = replicated(mesh)
    platform = {'cuda': 'gpu'}.get(mesh.devices.flat[0].platform, mesh.devices.flat[0].platform)
    cfg = for_platform(dataclasses.replace(shapes.SHAPES['default'], layers=2), 'bfloat16', platform)
    cfg = dataclasses.replace(exact_config(cfg), unroll=True)

    def shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    def shapes_of(function: Any, *arguments: Any) -> Any:
        return jax.tree.map(lambda x: shape(x.dtype, *x.shape), jax.eval_shape(function, *arguments))

    def published(weights: Any) -> Any:
        outer = engine.decode_outer({name: w for name, w in weights.items() if name != 'layers'}, cfg)
        layers = (engine.layer_of(weights['layers'], i, cfg.dtype) for i in range(cfg.layers))
        return outer | {'layers': [engine.decode_layer(layer, i, cfg, slots=slots) for i, layer in enumerate(layers)]}

    def update(weights: Any, batch: TokenBatch) -> Any:
        def loss(weights: Any) -> Any:
            return forward.token_loss(weights, cfg, batch, {}, lambda logprob, aux: -logprob, temperature=0.7)

        return jax.value_and_grad(loss, has_aux=True)(weights)

    weights = shapes_of(lambda: params.init(params.decoder_specs(cfg), jax.random.key(0)))
    state = shapes_of(lambda: engine.init_state(cfg, slots, 512))
    batch = TokenBatch(*[shape(jnp.int32, 4, 1024)] * 4, *[shape(jnp.int32, 4, 4, 64)] * 2, shape(bool, 4, 4, 64))
    functions = {
        'generate': (lambda weights, state: engine.generate(weights, cfg, state), shapes_of(published, weights), state),
        'score': (lambda weights, batch: forward.logprobs(weights, cfg, batch, 0.7)[0], weights, batch),
        'update': (update, weights, batch),
    }
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return {name: jax.jit(f).lower(*given).compile().as_text() for name, (f, *given) in functions.items()}


def kernels(text: str) -> set[str]:
    """The kernels of a program that add up within a tile, without the names of their values and their memory spaces."""
    computations: dict[str, list[str]] = {}
    name = ''
    for line in text.splitlines():
        if start := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line):
            name = start[1]
            computations[name] = []
        elif name and line.startswith('  '):
            computations[name].append(re.sub(r', metadata=\{[^}]*\}|S\(\d+\)', '', line.strip()))
    return {
        kernel
        for name, lines in computations.items()
        if 'fused' not in name and 'computation' not in name
        for line in lines
        if (kernel := _kernel(line, computations))
    }


def _kernel(line: str, computations: dict[str, list[str]]) -> str:
    """A kernel in a form that can be compared, or '' for an instruction that is none or does not add up."""
    found = re.match(
        r'(?:ROOT )?%[\w.\-]+ = (\S+|\(.*?\)) (fusion|custom-call|reduce|dot|convolution)\(.*?\)(.*)', line
    )
    if not found or not TILE_SHAPE.search(found[1]):
        return ''
    called = re.search(r'calls=%([\w.\-]+)', found[3])
    body = '\n'.join(computations[called[1]]) if called else ''
    if called and not ARITHMETIC.search(body):
        return ''
    # How a kernel is cut is part of it; where the compiler expects it to run, and how long, is not.
    tiles = re.findall(r'"(?:block_level_fusion_config|triton_gemm_config|custom_call_config)":\{.*?\}\]?', found[3])
    names: dict[str, str] = {}
    whole = '\n'.join([found[1], found[2], body, *tiles])
    return re.sub(r'%[\w.\-]+', lambda name: names.setdefault(name[0], f'v{len(names)}'), whole)


def main() -> None:
    os.environ['JAX_PLATFORMS'] = 'cpu'
    texts = programs(sys.argv[1])
    of = {name: kernels(text) for name, text in texts.items()}
    missing = {name: sorted(of['generate'] - theirs) for name, theirs in of.items()}
    print(json.dumps({'kernels': len(of['generate']), 'missing': missing}))


if __name__ == '__main__':
    main()
