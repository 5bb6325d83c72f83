"""The planner: what it reads off compiled programs, what it knows of models and chips, what it refuses and proposes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import pytest

from pal_jax.commands.planning import chips, estimate, hlo, programs, shapes
from pal_jax.commands.planning.chips import GIB, Chip
from pal_jax.commands.planning.estimate import FitOptions, FitPlan, PlanRequest, ProgramCost
from pal_jax.commands.planning.flops import flops
from pal_jax.models import params
from pal_jax.models.config import tiny
from pal_jax.recipes.rlpa import recipe as rlpa
from pal_jax.run.devices import for_platform, make_mesh
from pal_jax.run.planned import planned
from pal_jax.run.progress import Stopwatch
from pal_jax.run.recipe import Context
from tests import configs, shell

# A loop of five turns. A turn reads a 1 KiB slice of a 5 KiB stack, starts a gather, computes beside it, and waits for
# an all-reduce of 1 KiB. `near` lies on the chip.
MODULE = """HloModule jit_f, is_scheduled=true

%sliced (p.0: f32[5,256], p.1: s32[]) -> f32[1,256] {
  %p.0 = f32[5,256]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  ROOT %ds = f32[1,256]{1,0} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={1,256}
}

%body (state: (s32[], f32[5,256])) -> (s32[], f32[5,256]) {
  %state = (s32[], f32[5,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack = f32[5,256]{1,0} get-tuple-element(%state), index=1
  %slice = f32[1,256]{1,0} fusion(%stack, %i), kind=kLoop, calls=%sliced
  %start = (f32[1,256]{1,0}, f32[1,1024]{1,0}) all-gather-start(%slice), channel_id=1, replica_groups=[1,4]<=[4]
  %near = f32[1,256]{1,0:S(1)} multiply(%slice, %slice)
  %work = f32[1,256]{1,0:S(1)} dot(%near, %near), lhs_contracting_dims={1}
  %gathered = f32[1,1024]{1,0} all-gather-done(%start)
  %sum = f32[1,256]{1,0:S(1)} all-reduce(%work), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %next = (s32[], f32[5,256]{1,0}) tuple(%i, %stack)
}

%condition (state: (s32[], f32[5,256])) -> pred[] {
  %state.1 = (s32[], f32[5,256]{1,0}) parameter(0)
  %limit = s32[] constant(5)
  %at = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%at, %limit), direction=LT
}

ENTRY %main (x: f32[5,256]) -> f32[5,256] {
  %x = f32[5,256]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], f32[5,256]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[5,256]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %out = f32[5,256]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_golden_traffic_of_a_loop() -> None:
    found = hlo.traffic(MODULE)
    assert found.collectives == {'all-gather': 5 * 4096, 'all-reduce': 5 * 2 * 1024}
    assert (found.started, found.overlapped, found.waiting) == (1, 1, 1)
    assert found.kernels == 5 * 5  # of a turn the slice, the gather's start, two that compute, and the sum
    slice_of_stack = 1024 + 1024 + 4  # read, written, and the index
    gathered = 1024 + (1024 + 4096) + (1024 + 4096) + 4096  # what the start and the end of the gather are given
    assert found.moved == 5 * (slice_of_stack + gathered + 2 * 1024) + 5 * (4 + 4 + 1) * 0


def test_a_sum_of_which_a_fusion_keeps_a_slice_is_a_reduce_scatter() -> None:
    module = """HloModule jit_f, is_scheduled=true

%all-reduce-scatter.1 (whole: f32[64,256]) -> f32[16,256] {
  %whole = f32[64,256]{1,0} parameter(0)
  %sum = f32[64,256]{1,0} all-reduce(%whole), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %own = f32[16,256]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={16,256}
}

ENTRY %main (x: f32[64,256]) -> f32[16,256] {
  %x = f32[64,256]{1,0} parameter(0)
  ROOT %out = f32[16,256]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    assert hlo.traffic(module).collectives == {'reduce-scatter': 64 * 1024}


@pytest.mark.parametrize(
    ('groups', 'host', 'members'),
    [
        ('[1,4]<=[4]', 0, 0),  # all on one host
        ('[1,4]<=[4]', 4, 0),
        ('[1,4]<=[4]', 2, 2),
        ('[2,2]<=[4]', 2, 0),
        ('[2,2]<=[2,2]T(1,0)', 2, 1),
        ('{{0,2},{1,3}}', 2, 1),
        ("mesh['a'=2,'b'=2] {'b'}", 2, 0),
        ("mesh['a'=2,'b'=2] {'a'}", 2, 1),
        ("mesh['a'=2,'b'=2] {'a','b'}", 2, 2),
    ],
)
def test_bytes_between_hosts_go_by_the_members_that_a_host_has(groups, host, members) -> None:
    module = MODULE.replace('replica_groups=[1,4]<=[4]', f'replica_groups={groups}')
    between = hlo.traffic(module.replace('{{0,1,2,3}}', '{{0,1}}'), host).between
    assert between == ({members: 5 * 4096} if members else {})


def test_golden_seconds_of_transfers_between_hosts() -> None:
    """Of 100 bytes 40 stay on the host, 20 enter by one adapter, and 40 by eight, than which the links are slower."""
    chip = Chip(GIB, links=50.0, network=10.0, host=8)
    assert chip.transfer(100.0, {1: 20.0, 8: 40.0}) == pytest.approx(40 / 50 + 20 / 10 + 40 / 50)
    assert chip.transfer(100.0, {}) == 100 / 50


def test_golden_bytes_between_slices_are_those_that_hosts_hand_over() -> None:
    """A sum of 64 x 256 numbers over two slices, as the compiler writes it; a transfer within the slice is another."""
    module = """HloModule jit_f, is_scheduled=true

ENTRY %main (x: f32[64,256]) -> f32[64,256] {
  %x = f32[64,256]{1,0} parameter(0)
  %after = token[] after-all()
  %send = (f32[64,256]{1,0}, u32[], token[]) send(%x, %after), channel_id=2, is_host_transfer=true
  %recv = (f32[64,256]{1,0}, u32[], token[]) recv(%after), channel_id=1, is_host_transfer=true
  %near = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %done = (f32[64,256]{1,0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %out = f32[64,256]{1,0} get-tuple-element(%done), index=0
}
"""
    found = hlo.traffic(module)
    assert found.collectives == {hlo.BETWEEN_SLICES: 64 * 1024} and found.between == {1: 64 * 1024}
    assert (found.started, found.overlapped, found.waiting) == (1, 1, 0)
    assert not hlo.traffic(module.replace(', is_host_transfer=true', '')).between


def test_a_transfer_with_nothing_beside_it_is_not_overlapped() -> None:
    alone = MODULE.replace('  %work = f32[1,256]{1,0:S(1)} dot(%near, %near), lhs_contracting_dims={1}\n', '')
    assert hlo.traffic(alone).overlapped == 0


def test_golden_traffic_of_a_cache_that_is_updated_in_place() -> None:
    """Two rows of a cache get a token of 64 numbers each: the fusion and the plain instruction write nothing else."""
    module = """HloModule jit_f, is_scheduled=true

%placed (cache: f32[2,16,64], at: s32[2,2], new: f32[2,1,1,64]) -> f32[2,16,64] {
  %cache = f32[2,16,64]{2,1,0} parameter(0)
  %at = s32[2,2]{1,0} parameter(1)
  %new = f32[2,1,1,64]{3,2,1,0} parameter(2)
  ROOT %written = f32[2,16,64]{2,1,0} scatter(%cache, %at, %new), update_window_dims={1,2,3}, to_apply=%second
}

ENTRY %main (x: f32[2,16,64], i: s32[2,2], y: f32[2,1,1,64]) -> f32[2,16,64] {
  %x = f32[2,16,64]{2,1,0} parameter(0)
  %i = s32[2,2]{1,0} parameter(1)
  %y = f32[2,1,1,64]{3,2,1,0} parameter(2)
  %once = f32[2,16,64]{2,1,0} fusion(%x, %i, %y), kind=kInput, calls=%placed
  ROOT %twice = f32[2,16,64]{2,1,0} scatter(%once, %i, %y), update_window_dims={1,2,3}, to_apply=%second
}
"""
    assert hlo.traffic(module).moved == 2 * (16 + 2 * 512)  # the places, and the new numbers read and written


def test_loops_count_as_often_as_the_compiler_knows_they_run() -> None:
    known = MODULE.replace('body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert hlo.traffic(known).collectives['all-gather'] == 7 * 4096


def test_flops_of_a_loop_and_of_its_gradient() -> None:
    def loss(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    x, w = jnp.ones((8, 16)), jnp.ones((3, 16, 16))
    forward = 3 * 2 * 8 * 16 * 16
    assert flops(jax.make_jaxpr(loss)(x, w).jaxpr) == forward
    assert flops(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, w).jaxpr) == 3 * forward
    again = jax.grad(lambda x, w: jax.checkpoint(loss)(x, w), (0, 1))
    assert flops(jax.make_jaxpr(again)(x, w).jaxpr) == 4 * forward


@pytest.mark.parametrize(
    ('name', 'millions'),
    [
        ('HuggingFaceTB/SmolLM2-135M-Instruct', 134.5),
        ('Qwen/Qwen2.5-0.5B', 494.0),
        ('hf:Qwen/Qwen2.5-3B-Instruct', 3086),
        ('Qwen/Qwen2.5-7B', 7616),
        ('meta-llama/Llama-3.2-1B', 1236),
        ('meta-llama/Llama-3.1-8B-Instruct', 8030),
        ('meta-llama/Llama-3.1-70B', 70554),
    ],
)
def test_known_shapes_have_the_published_number_of_parameters(name, millions) -> None:
    specs = params.decoder_specs(shapes.shape(name))
    count = sum(math.prod(spec.shape) for spec in jax.tree.leaves(specs, is_leaf=params.is_spec))
    assert count / 1e6 == pytest.approx(millions, rel=1e-3)


def test_a_folder_with_a_config_alone_is_a_shape(tmp_path) -> None:
    fields = {
        'architectures': ['LlamaForCausalLM'], 'vocab_size': 512, 'hidden_size': 64, 'num_hidden_layers': 2,
        'num_attention_heads': 4, 'num_key_value_heads': 2, 'intermediate_size': 128, 'max_position_embeddings': 1024,
        'rms_norm_eps': 1e-5, 'tie_word_embeddings': True,
    }  # fmt: skip
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    assert shapes.shape(str(tmp_path)) == shapes.shape(f'hf:{tmp_path}') == tiny()


# --- plans ----------------------------------------------------------------------------------------------------------


def request(memory: float = 64 * GIB, **changes) -> PlanRequest:
    """The smoke config on eight devices, with its training alone."""
    config = configs.load('rlpa', 'smoke', **{'dialogue.rollout_batch_size': 8} | changes)
    return PlanRequest(
        cfg=tiny(),
        make_learner=lambda cfg, mesh, _: rlpa.make_turn_learner(config, cfg, Context(mesh, Stopwatch().phase)),
        work=planned(config, prompt=64).work,
        devices=jax.devices(),
        chip=Chip(memory, 1e12, 1e11, 1e10),
        decode=False,
        int8=False,
        efficiency=0.5,
    )


def test_a_plan_tells_what_a_device_holds() -> None:
    asked = request()
    found = estimate.make_plan(asked, FitOptions(2, 2, 2, 'none', 4), lambda _: None)
    specs = params.decoder_specs(asked.cfg)
    cut = sum(
        4 * math.prod(spec.shape) // math.prod(2 for axis in spec.axes if axis not in (None, 'layers'))
        for spec in jax.tree.leaves(specs, is_leaf=params.is_spec)
    )
    own = found.memory.pop('process')
    assert found.memory == {'parameters': 2 * cut, 'optimiser': 2 * cut + 8, 'gradients': cut}  # and the reference
    assert [each.name for each in found.figures] == ['gradients', 'apply', 'score']
    assert found.fits
    assert found.worst.peak == max(each.peak for each in found.figures)
    gradients = found.figures[0]
    assert gradients.peak == gradients.arguments + gradients.temporaries + gradients.beside
    assert gradients.beside >= own > 0.1 * GIB / 8  # a device's share of Python and jax
    assert gradients.arguments > found.memory['parameters'] + found.memory['optimiser']
    assert set(gradients.collectives) & {'all-reduce', 'reduce-scatter'}
    assert found.step_seconds == pytest.approx(sum(each.calls * each.seconds for each in found.figures))


def test_training_that_cannot_fit_is_refused_before_anything_is_compiled() -> None:
    found = estimate.make_plan(request(memory=1e4), FitOptions(1, 8, 1, 'none', 4), lambda name: pytest.fail(name))
    assert not found.fits
    assert 'not compiled' in found.worst.refused


def test_the_nearest_plan_is_the_cheapest_that_fits(monkeypatch) -> None:
    tried = []

    def made(asked, choice, log, stop_early):
        if choice.tensor == 1:
            raise ValueError('does not divide')
        tried.append(choice)
        return FitPlan(
            choice, asked.chip, {}, [ProgramCost('gradients', 1, peak=int((3 - (choice.remat == 'full')) * GIB))]
        )

    monkeypatch.setattr(estimate, 'make_plan', made)
    asked = request(memory=2 * GIB)
    choices = estimate.choices(asked.cfg, 8, 2)
    found = estimate.search(asked, choices, lambda _: None)
    assert found is not None
    assert found.choice == FitOptions(1, 4, 2, 'full', 2)
    assert all(choice.remat != 'full' for choice in tried[:-1])
    assert estimate.search(request(memory=GIB), choices, lambda _: None) is None


def test_the_quicker_plan_has_the_least_remat_and_the_most_slots_that_fit(monkeypatch) -> None:
    asked = request()._replace(decode=True)
    work = asked.work._replace(prompts=16, n=2, sampled=4, slots=8, shares=1)
    seconds = {'none': 1.0, 'dots': 2.0, 'full': 3.0}

    def made(asked, choice, log, stop_early=False):
        """'none' does not fit, and neither do 64 slots."""
        slots = choice.slots or work.slots
        update = ProgramCost('gradients', 4, peak=3 - 2 * (choice.remat != 'none'), seconds=seconds[choice.remat])
        waves = ProgramCost('generate', 64 // slots, peak=slots // 20, seconds=1.0)
        figures = [update] * asked.train + [waves] * asked.decode
        return FitPlan(choice, asked.chip, {'KV cache': slots}, figures)

    monkeypatch.setattr(estimate, 'make_plan', made)
    asked = asked._replace(work=work, chip=Chip(2, 1e12, 1e11, 1e10))
    plan = made(asked, FitOptions(1, 8, 1, 'full', 2), print)
    assert plan.fits and plan.step_seconds == 4 * 3.0 + 8
    best = estimate.quicker(asked, plan, lambda _: None)
    assert best is not None and best.choice == FitOptions(1, 8, 1, 'dots', 2, slots=32)
    assert best.fits and best.step_seconds == 4 * 2.0 + 2 and best.memory == {'KV cache': 32}
    assert '--config.policy.remat=dots' in best.choice.flags() and '--config.decode.slots=32' in best.choice.flags()
    # Nothing is quicker than what is chosen already, and nobody knows what is where rates are unknown.
    assert estimate.quicker(asked._replace(work=work._replace(slots=32)), best, lambda _: None) is None
    unknown = dataclasses.replace(plan, figures=[ProgramCost('gradients', 1)])
    assert estimate.quicker(asked, unknown, lambda _: None) is None


def test_a_step_at_the_roofline_takes_its_slowest_limit_and_tells_the_share_of_arithmetic() -> None:
    costs = [
        ProgramCost('gradients', 2, limits={'arithmetic': 3.0, 'memory': 1.0, 'links': 2.0}),
        ProgramCost('generate', 4, limits={'arithmetic': 0.5, 'memory': 1.0, 'links': 0.0}),
    ]
    plan = FitPlan(FitOptions(1, 1, 1, 'none', 1), request().chip, {}, costs)
    assert (plan.roofline, plan.share_of_peak) == (2 * 3.0 + 4 * 1.0, (2 * 3.0 + 4 * 0.5) / 10.0)
    assert FitPlan(plan.choice, plan.chip, {}, [ProgramCost('gradients', 1)]).roofline is None


def test_choices_divide_the_model_and_come_cheapest_first() -> None:
    found = estimate.choices(tiny(), 8, 2)
    assert {choice.tensor for choice in found} == {1, 2}  # two kv heads
    assert all(choice.data * choice.fsdp * choice.tensor == 8 for choice in found)
    assert found[:2] == [FitOptions(1, 8, 1, 'none', 2), FitOptions(1, 8, 1, 'none', 1)]
    remats = [choice.remat for choice in found]
    assert remats == sorted(remats, key=estimate.REMAT.index)
    assert estimate.settled({'data': 1, 'fsdp': -1, 'tensor': 2}, 8, 'full', 4) == FitOptions(1, 4, 2, 'full', 4)
    mesh = make_mesh(**{axis: getattr(found[0], axis) for axis in ('data', 'fsdp', 'tensor')})
    assert dict(mesh.shape) == {'data': 1, 'fsdp': 8, 'tensor': 1}


def test_what_the_compiler_says_of_memory_is_read() -> None:
    message = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded by 4.75G.'
    assert estimate.over_memory(message) == int(20.5 * GIB)
    assert estimate.over_memory('INTERNAL: something else') == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ('topology', 'model', 'choice'),
    [
        ('v6e:2x4', 'Qwen/Qwen2.5-3B', FitOptions(1, 8, 1, 'full', 1)),
        ('v5p:4x4x4', 'meta-llama/Llama-3.1-8B', FitOptions(4, 16, 1, 'full', 1)),
    ],
)
def test_the_tpu_compiler_takes_the_update_of_the_paper(topology, model, choice) -> None:
    """Rows of the table in docs/evidence/tpu.md fit, transfers run beside work, and the logits' loop sends nothing."""
    pytest.importorskip('libtpu', reason="needs the TPU's compiler: pip install 'pal_jax[plan]'")
    config = configs.load('rlpa', 'paper', **{'ppo.micro_rows': choice.micro_rows})
    mesh = make_mesh(choice.data, choice.fsdp, choice.tensor, devices=chips.topology_devices(topology))
    cfg = for_platform(shapes.shape(model), platform='tpu')
    cfg = dataclasses.replace(cfg, remat=choice.remat)
    learner = rlpa.make_turn_learner(config, cfg, Context(mesh, Stopwatch().phase))
    chip = chips.chip(mesh.devices.flat[0])
    gradients = programs.training(learner, planned(config, prompt=1024).work)[0]
    found = estimate.measure(gradients, chip, efficiency=0.4)
    assert not found.refused
    assert found.peak <= chip.memory
    assert found.overlapped >= 0.9 * found.started > 0
    unembed = 4 * cfg.vocab * cfg.width
    assert found.collectives['all-reduce'] < 10 * unembed  # once a call, not once a turn of the loop


@pytest.mark.slow
def test_the_tpu_compiler_sums_no_more_than_the_gradients_between_two_slices() -> None:
    pytest.importorskip('libtpu', reason="needs the TPU's compiler: pip install 'pal_jax[plan]'")
    devices = chips.topology_devices('v5e:2x2', 2)
    config = configs.load('sft', 'smoke')
    with pytest.raises(ValueError, match='mesh.data=1'):
        make_mesh(devices=devices)
    mesh = make_mesh(data=2, devices=devices)
    cfg = for_platform(shapes.shape(config.policy.source), platform='tpu')
    method = planned(config, prompt=64)
    learner = method.make_learner(cfg, mesh, method.micro_rows)
    gradients = programs.training(learner, method.work)[0]
    found = estimate.measure(gradients, chips.chip(devices[0]), efficiency=0.4)
    # A device sums its fourth of the gradients with the other slice; the compiler sums that of the embedding whole.
    share = programs.bytes_of(learner.abstract.model.params)
    (between,) = found.between.values()
    assert share <= between <= 4 * share


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_plans_this_machine_whole() -> None:
    done = shell.run('pal_jax.plan', '--config=configs/rlpa.py:smoke', '--platform=cpu', '--prompt=64', '--json')
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    names = [each['name'] for each in told['programs']]
    published = ['publish layer', 'publish rest']
    assert names == ['gradients', 'apply', 'score', *published, 'prefill', 'insert', 'generate']
    assert told['fits']
    assert told['memory']['KV cache'] > 0
    assert told['quicker'] is None and told['step_roofline'] is None  # the rates of this machine are not known


@pytest.mark.slow
def test_faults_are_one_line() -> None:
    compiler = importlib.util.find_spec('libtpu')
    for arguments, message in (
        (['--config=configs/rlpa.py:smoke'], 'name either a slice'),
        (['--config=configs/rlpa.py:smoke', '--topology=h100:8', '--slices=2'], '--slices=2'),
        (['--config=configs/rlpa.py:smoke', '--platform=cpu', '--slices=2'], '--slices=2'),
        *([(['--config=configs/rlpa.py:smoke', '--topology=v4:2x2x1', '--slices=2'], 'TPU v4')] if compiler else []),
        (['--config=configs/rlpa.py:smoke', '--topology=v5e:3x9'], 'v5e:3x9' if compiler else 'pal_jax[plan]'),
    ):
        done = shell.run('pal_jax.plan', *arguments)
        assert done.returncode in (1, 2)
        assert message in done.stderr.strip().splitlines()[-1]
