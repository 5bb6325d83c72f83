"""The planner for GPUs that are not there, and that CUDA's compiler takes what we give it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from pal_jax.commands.planning import chips, programs
from pal_jax.models.config import tiny
from pal_jax.run.devices import CUDA_FLAGS, make_mesh
from pal_jax.run.planned import planned
from tests import configs

ROOT = Path(__file__).parents[3]
COMPILER = importlib.util.find_spec('jax_plugins') and importlib.util.find_spec('jax_plugins.xla_cuda13')
needs_compiler = pytest.mark.skipif(not COMPILER, reason='needs the compiler for GPUs: pip install pal_jax[plan-cuda]')

# A gradient of attention by the kernels for one card, in a process of its own: the flags of a compiler are read once.
LAYER = """
import sys
import jax, jax.numpy as jnp
from pal_jax.models.flash import flash_attention
from pal_jax.models.places import Places, Scoring
from pal_jax.commands.planning import chips
from pal_jax.run.devices import make_mesh
from pal_jax.run.sharding import replicated

mesh = make_mesh(devices=chips.topology_devices(sys.argv[1]))
place = replicated(mesh)
scoring = Scoring(128**-0.5, *eval(sys.argv[2]))

def loss(q, k, v, places):
    return flash_attention(q, k, v, places, scoring).astype(jnp.float32).sum()

def shape(dtype, *sizes):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

q, k = (shape('bfloat16', 1, 4096, heads, 128) for heads in (16, 16))
places = Places(*[shape('int32', 1, 4096)] * 3)
with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # by which jax knows the card that a kernel is for
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, places).compile()
print(compiled.as_text().count('__gpu$xla.gpu.triton'), compiled.memory_analysis().temp_size_in_bytes)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )  # fmt: skip


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ('card', 'scoring'), [('a100', (None, None, False)), ('h100', (None, None, False)), ('h100', (512, 30.0, True))]
)
def test_the_compiler_takes_the_kernels_in_little_memory(card, scoring) -> None:
    done = run('-c', LAYER, f'{card}:1', repr(scoring))
    assert done.returncode == 0, done.stderr
    kernels, temporaries = map(int, done.stdout.split()[-2:])
    assert kernels >= 3  # forward, and the gradients of queries and of keys and values
    assert temporaries <= 64 * 2**20


@pytest.mark.slow
@needs_compiler
def test_the_command_plans_a_node_of_cards() -> None:
    arguments = '--config=configs/rlpa.py:smoke', '--topology=h100:2', '--prompt=64', '--json'
    done = run('-m', 'pal_jax.plan', *arguments)
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert (planned['devices'], planned['device']) == (2, 'NVIDIA H100 80GB HBM3')
    assert planned['fits']
    generate = planned['programs'][-1]
    assert generate['name'] == 'generate'
    assert 0 < generate['kernels'] < 500


@pytest.mark.slow
@pytest.mark.parametrize('topology', [pytest.param('h100:1', marks=needs_compiler), 'v5e:2x2'])
def test_an_exact_sampler_and_its_trainer_add_up_by_the_same_kernels(topology) -> None:
    if topology.startswith('v5e'):
        pytest.importorskip('libtpu', reason='needs the compiler for TPUs: pip install pal_jax[plan]')
    done = run(str(Path(__file__).parent / 'exact_programs.py'), topology)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report['kernels'] > 10
    assert report['missing'] == {'generate': [], 'score': [], 'update': []}


def test_samples_of_an_exact_run_have_their_own_prompts() -> None:
    work = planned(configs.load('rlpa', 'smoke'), prompt=100).work._replace(n=4, completion=30)
    assert (work.row, work._replace(apart=128).row) == (256, 4 * 256)


def test_a_machine_without_the_compiler_says_what_to_install(monkeypatch) -> None:
    def find(name):
        # As the real one, where the folder of plugins is not there.
        if '.' in name:
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(chips.importlib.util, 'find_spec', find)
    with pytest.raises(RuntimeError, match='jax-cuda13-plugin=='):
        chips.topology_devices('h100:8')


@pytest.mark.parametrize('name', ['h100', 'h100:', 'h100:0', 'h100:8x', 'a100:2x2x2', 'h10:8'])
def test_nodes_that_are_none_are_refused(name) -> None:
    with pytest.raises(ValueError, match=name):
        chips.topology_devices(name)


def test_cards_have_what_their_compiler_asks_and_what_times_need() -> None:
    for name, card in chips.CARDS.items():
        chip = chips.CHIPS[card.kind]
        assert chip.memory == chips.TAKEN * card.memory, name
        assert min(chip.flops, chip.bandwidth, chip.links, chip.network) > 0
        assert f'device_memory_size: {card.memory}' in card.config()
        assert f'major: {card.capability[0]} minor: {card.capability[1]}' in card.config()


def test_only_cards_of_several_nodes_have_a_network() -> None:
    card = SimpleNamespace(platform='gpu', device_kind='NVIDIA H100 80GB HBM3')
    assert (chips.chip(card).host, chips.chip(card, 8).host) == (0, 8)
    assert chips.chip(SimpleNamespace(platform='tpu', device_kind='TPU v5p'), 4).host == 0


def test_launch_files_set_the_flags_that_are_planned_with() -> None:
    for name in ('slurm_cuda.sh', 'Dockerfile'):
        text = (ROOT / 'launch' / name).read_text()
        assert all(flag in text for flag in CUDA_FLAGS), name
        share = re.search(r'XLA_PYTHON_CLIENT_MEM_FRACTION(?:=|:-)(\.\d+)', text)
        assert share and float(share[1]) == chips.TAKEN, name


# --- every method that trains a language model -----------------------------------------------------------------------


@pytest.mark.parametrize('recipe', ['rlpa', 'plus', 'psoups', 'safe_rlhf', 'spiral'])
def test_methods_that_sample_are_planned_with_their_decoding(recipe) -> None:
    method = planned(configs.load(recipe, 'smoke'), prompt=100)
    assert method.decode is not None
    assert method.work.prompt == 100
    assert method.work.slots == method.decode.slots


def test_caches_are_counted_for_the_slots_that_decode() -> None:
    """A CPU decodes 25 requests in 32 slots (`for_slots`), and their caches were counted as 25."""
    work, mesh = planned(configs.load('rlpa', 'smoke'), prompt=100).work, make_mesh(devices=jax.devices()[:1])
    bytes_of = [programs.decoding_memory(tiny(), mesh, work._replace(slots=slots), int8=False) for slots in (25, 32)]
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.parametrize(('recipe', 'n'), [('sft', 1), ('dpo', 2), ('reward', 2), ('cost', 2), ('moderation', 2)])
def test_methods_that_read_rows_are_planned_at_their_longest(recipe, n) -> None:
    settings = configs.load(recipe, 'smoke')
    rows = dataclasses.replace(settings.data, batch_size=6, max_length=512, row_tokens=1024)
    method = planned(dataclasses.replace(settings, data=rows), prompt=100)
    assert method.decode is None
    assert (method.work.prompts, method.work.n, method.work.row) == (3, n, 1024)


@pytest.mark.parametrize('recipe', ['pal', 'cmdp', 'allreduce'])
def test_methods_without_a_language_model_are_refused_by_name(recipe) -> None:
    with pytest.raises(ValueError, match=recipe):
        planned(configs.load(recipe, 'smoke'), prompt=100)
