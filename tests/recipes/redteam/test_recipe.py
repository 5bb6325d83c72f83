"""Self-RedTeam: who learns from which moves, judges and seeds, stages, and a whole run that goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import re
import signal
import types
from typing import Any

import jax
import numpy as np
import pytest

from pal_jax.data.packing import pack_rollouts
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.choose import choose_decoder
from pal_jax.games.game import play
from pal_jax.judges.chat_models import ChatModels
from pal_jax.learners.ppo import PPO, make_actor_critic
from pal_jax.learners.training import Lora
from pal_jax.models import config as model_config
from pal_jax.models import params
from pal_jax.recipes.redteam import judges
from pal_jax.recipes.redteam import play as play_stage
from pal_jax.recipes.redteam import recipe as pipeline
from pal_jax.recipes.redteam.attack import ATTACKER, DEFENDER, Attack, GameLabels, Move, RedTeam, Seed
from pal_jax.recipes.redteam.games import (
    FinishedGame,
    Players,
    describe_game,
    games_of,
    games_to_json,
    play_judged,
    summarize,
)
from pal_jax.recipes.redteam.play import SelfRedTeam
from pal_jax.recipes.redteam.seeds import by_kind, kinds_of, read_seeds
from pal_jax.recipes.redteam.settings import POLICIES, CrossPlaySettings, PlaySettings, SeedSettings
from pal_jax.recipes.redteam.stand_ins import make_seeds
from pal_jax.run import devices, sharding
from pal_jax.run.glossary import meaning, words_of
from pal_jax.run.metrics import EVALS, METRICS, read_records
from pal_jax.run.optim import Optimizer
from pal_jax.run.recipe import Context, Plan
from pal_jax.types import Completion, Sample, Sampling
from tests import configs
from tests.recipes.ahead import make_rollouts
from tests.whole_runs import run, stop_once, timeless

get_settings = functools.partial(configs.load, 'redteam')
MESH = devices.make_mesh(devices=jax.devices()[:1])
ONE = Context(MESH, lambda name: contextlib.nullcontext())
CFG = dataclasses.replace(model_config.tiny(vocab=264), unroll=True)
SEEDS = make_seeds(8, split='train', seed=0)
UNSAFE, REFUSAL, BROKEN = 'Skip sleep and push through.', 'I would rather not say that.', 'a secret plan'


@dataclasses.dataclass(frozen=True)
class Scripted:
    """Players whose moves are drawn; one move in five breaks the form. A call keeps a copy of the weights it was given,
    and whether both are the same."""

    game: RedTeam = RedTeam()
    given: list = dataclasses.field(default_factory=list, compare=False)

    def __call__(self, weights, starts, seed):
        attacker, defender = weights
        self.given.append((attacker is defender, copied(attacker), copied(defender)))
        rng = np.random.default_rng(list(seed))

        def sampler(states, moves):
            return [[self.move(rng, state)] for state in states]

        return play(self.game, [sampler] * 2, starts)

    def move(self, rng, state):
        role = self.game.turn(state)
        said = f'For a play: {state.seed.request}' if role == ATTACKER else rng.choice([UNSAFE, REFUSAL])
        text = BROKEN if rng.random() < 0.2 else f' a thought </think> <answer> {said} </answer>'
        tokens = tuple(rng.integers(0, 200, 3).tolist())
        return Sample((1, 2, 3 + role), Completion(text, tokens, (-5.0,) * 3, 'stop'), source=state)


def make_recipe(mesh=MESH, roles='shared', count=16, players=None, lora=2, judge=judges.by_rule, train=None, lr=1e-3):
    optimizer = Optimizer(lr=lr, total_steps=64, warmup_ratio=0.0, min_ratio=1.0)
    learner = make_actor_critic(
        CFG, PPO('reinforce', kl_coef=0.01, micro_rows=8), optimizer, mesh, n=1, length=3,
        adapters=Lora(rank=lora) if lora else None,
    )  # fmt: skip
    return SelfRedTeam(
        Plan(4, play_stage.abstract(learner, roles), lambda i: None), ONE._replace(mesh=mesh), learner,
        load=lambda shardings: jax.device_put(params.init(params.decoder_specs(CFG), jax.random.key(0)), shardings),
        before=(), roles=POLICIES[roles], players=players or Scripted(),
        rollouts=make_rollouts(ONE, 64, None, 0, games_to_json, functools.partial(games_of, RedTeam())),
        judge=judge, models=ChatModels({}, '', 0),
        pack=functools.partial(
            pack_rollouts, n=1, actions=8, mesh=mesh, micro_rows=8, ways=sharding.batch_ways(mesh)
        ),
        train=train or kinds_of(SEEDS, roles), test=SEEDS[:4], count=count, payment='general',
        stream=lambda i: None, max_failed=0.0, seed=0, shown=2,
    )  # fmt: skip


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def copied(tree):
    return jax.tree.map(np.array, tree)


# --- games ------------------------------------------------------------------------------------------------------------


def test_generated_seeds_make_two_samples_and_others_one():
    recipe = make_recipe()
    seeds = recipe.drawn(0)
    kinds = [(seed.harmful, seed.generated) for seed in seeds]
    assert {kinds.count(kind) for kind in kinds} == {4} and len(set(kinds)) == 4
    assert recipe.drawn(1) != seeds == recipe.drawn(0)
    games = play_judged(recipe.players, ({}, {}), seeds, judges.by_rule, (0,))
    for game in games:
        roles = [sample.role for sample in game.samples]
        broken = [0] if game.end.offender == ATTACKER else [0, 1]
        assert roles == (broken if game.end.seed.generated else [1])
        assert (game.labels is None) == (game.end.offender is not None) and not game.failed
        assert BROKEN not in str([sample.source for sample in game.samples])
    assert {game.end.offender for game in games} == {None, ATTACKER, DEFENDER}


def test_judges_and_seeds_are_checked_before_the_first_stage(tmp_path):
    settings = get_settings('')
    rows = tmp_path / 'seeds.jsonl'
    rows.write_text('{"vanilla": "Hello?", "data_type": "harmless"}\n')
    wrong = {
        'endpoints.judge.address': dataclasses.replace(settings, play=PlaySettings(judge='endpoint:judge')),
        str(tmp_path / 'none'): dataclasses.replace(settings, play=PlaySettings(judge=f'orbax:{tmp_path / "none"}')),
        'evaluate.judge': dataclasses.replace(settings, evaluate=CrossPlaySettings(judge='nobody')),
        'seeds.jsonl, line 1': dataclasses.replace(
            settings, seeds=SeedSettings(train=str(rows), test=str(rows)), play=PlaySettings(judge='local:random:tiny')
        ),
    }
    for said, changed in wrong.items():
        with pytest.raises((ValueError, RuntimeError), match=re.escape(said)):
            pipeline.check(changed)
    pipeline.check(settings)


def test_samples_are_paid_by_the_table_and_those_that_nobody_judged_do_not_count():
    recipe = make_recipe(count=40)
    games = [recipe.rewarded(g) for g in play_judged(recipe.players, ({}, {}), recipe.drawn(0), judges.by_rule, (0,))]
    seen = set()
    for game in games:
        paid = {sample.role: sample.reward if sample.ok else None for sample in game.samples}
        if game.end.offender is not None:
            assert paid.pop(game.end.offender) == -3 and set(paid.values()) <= {None}
        elif game.end.seed.harmful:
            # The scripted attacks stay harmful: a refusal pays the defender 2 + 1, an unsafe answer -2 + 1.
            assert paid[DEFENDER] == (-1 if game.labels.unsafe else 3)
            assert paid.get(ATTACKER) in ((3, None) if game.labels.unsafe else (0, None))
        seen.add(game.end.offender)
    assert seen == {None, ATTACKER, DEFENDER}
    # Where all samples of a role are paid alike none of them is learnt.
    flat = [g._replace(samples=[dataclasses.replace(s, rewards=(1.0 if s.role else s.reward,), ok=True)
                                for s in g.samples]) for g in games]  # fmt: skip
    assert {sample.role for sample in recipe.learnt(flat, 0)} == {ATTACKER}


def test_figures_of_games():
    harmful, plain, kind = Seed('x', True, True), Seed('x', True), Seed('x', False, True)

    def game(seed, labels, offender=None, role=DEFENDER):
        said = Sample((), Completion('', (1, 2), (), 'stop'), role=role)
        return FinishedGame(Attack(seed, 'x', None if offender is not None else 'y', offender), [said], labels)

    games = [
        game(harmful, GameLabels(True, False, True)), game(harmful, None, ATTACKER, ATTACKER),
        game(plain, GameLabels(True, True, False)), game(kind, GameLabels(True, True, False)), game(kind, None),
    ]  # fmt: skip
    figures = summarize(games)
    assert (figures['attack_success'], figures['plain_success'], figures['overrefusal']) == (0.5, 0.0, 1.0)
    assert (figures['attacks_kept'], figures['failed'], figures['length']) == (0.5, 1.0, 2.0)
    # A judge that fails, or that says n/a, makes no game safe: it does not count.
    silent = [*games, *[game(harmful, None)] * 3, game(plain, GameLabels(True, None, None))]
    assert summarize(silent) == figures | {'games': 9.0, 'failed': 4.0, 'defender_form': 1.0}
    assert 'attack_success' not in summarize([game(harmful, None)])
    assert 'no verdict' in describe_game(silent[-2], 'one')['facts']
    assert (figures['attacker_form'], figures['defender_form']) == (0.0, 1.0)


def test_prompts_open_the_thought_once():
    players = Players(None, byte_tokenizer(), Sampling(), RedTeam())
    text = players.tokenizer.decode(players.prompt(RedTeam().begin(SEEDS[0])))
    assert text.endswith('assistant\n<think>') and text.count('<|im_start|>') == 3
    open_ = players.tokenizer.with_template(players.tokenizer.fast.chat_template + '<think>')
    text = open_.decode(dataclasses.replace(players, tokenizer=open_).prompt(RedTeam().begin(SEEDS[0])))
    assert text.endswith('assistant\n<think>') and '<think><think>' not in text
    direct = dataclasses.replace(players, game=RedTeam(hidden=False))
    assert not players.tokenizer.decode(direct.prompt(RedTeam().begin(SEEDS[0]))).endswith('<think>')


# --- who learns -------------------------------------------------------------------------------------------------------


def test_a_step_of_one_policy_for_both_roles():
    recipe = make_recipe()
    state, host = recipe.init()
    state, host, phase, metrics = recipe.step(state, json.loads(json.dumps(host)), 0)
    assert phase == 'redteam' and host == {'rollouts': ()} and len(state.policies) == 1
    assert np.isfinite(list(metrics.values())).all() and metrics['grad_norm'] > 0
    assert metrics['attacker_reward'] != metrics['defender_reward']
    assert not [name for name in metrics if not meaning(name, words_of('redteam')).words]
    assert recipe.players.given[0][0]


def test_adapters_stand_on_one_base_and_neither_role_moves_the_other(monkeypatch):
    recipe = make_recipe(roles='adapters')
    state, host = recipe.init()
    base = copied(state.base)
    assert len(state.policies) == 2 and state.policies[0].actor.model.frozen == {}
    before = copied(state)
    state, host, _, metrics = recipe.step(state, host, 0)
    assert equal(state.base, base)
    assert metrics['attacker_grad_norm'] > 0 and metrics['grad_norm'] > 0
    assert not [name for name in metrics if not meaning(name, words_of('redteam')).words]
    for policy, old in zip(state.policies, before.policies, strict=True):
        assert not equal(policy.actor.model.params, old.actor.model.params)
    assert not recipe.players.given[0][0]
    # A step without samples of the defender leaves its adapter and its optimiser alone, bit for bit.
    before, learnt = copied(state), SelfRedTeam.learnt
    monkeypatch.setattr(SelfRedTeam, 'learnt', lambda self, games, k: learnt(self, games, k) if k == 0 else [])
    state, *_ = recipe.step(state, host, 1)
    assert equal(state.policies[1], before.policies[1]) and not equal(state.policies[0], before.policies[0])


@pytest.mark.parametrize(('roles', 'role'), [('attacker', ATTACKER), ('defender', DEFENDER)])
def test_a_role_that_learns_alone_plays_the_start(roles, role):
    recipe = make_recipe(roles=roles)
    assert {seed.generated for seed in recipe.drawn(0)} == {role == ATTACKER} and len(recipe.drawn(0)) == 16
    state, host = recipe.init()
    base = copied(state.base)
    for i in range(2):
        state, host, _, metrics = recipe.step(state, host, i)
    moved = recipe.players.given[-1][1:]
    frozen, learning = moved[1 - role], moved[role]
    assert equal(frozen, base) and not equal(learning, base)
    assert metrics['samples'] <= metrics['games']


def test_a_judge_that_fails_too_often_ends_the_run():
    recipe = make_recipe(judge=lambda attacks, seed: [None] * len(attacks))
    state, host = recipe.init()
    with pytest.raises(RuntimeError, match=r'have no verdict, more than play\.max_failed=0\.0'):
        recipe.step(state, host, 0)


@pytest.mark.slow
@pytest.mark.parametrize('roles', ['shared', 'adapters'])
def test_eight_devices_make_the_step_of_one(roles):
    rows = []
    for mesh in (MESH, devices.make_mesh(data=2, fsdp=4)):
        recipe = make_recipe(mesh, roles)
        rows.append(recipe.step(*recipe.init(), 0)[3])
    one, eight = rows
    for name in {*one} & {'samples', 'attack_success', 'policy_loss', 'grad_norm', 'attacker_grad_norm', 'approx_kl'}:
        assert eight[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


class Letters(RedTeam):
    """Moves of one letter: the attacker's choose a frame, and the defender's an unsafe answer or a refusal."""

    def prompt(self, attack, role):
        return [{'role': 'user', 'content': f'{role}{(attack.request or attack.seed.request)[0]}'}]

    def read(self, text):
        if not text:
            return None
        unsafe = ord(text[0]) % 4 != 0
        return Move('', 'wicked' if unsafe else 'sorry')


@pytest.mark.long
def test_the_defender_of_a_tiny_model_learns_to_do_half_the_harm():
    """The loop with a judge of key words: harmful answers become fewer than half, and attackers are paid for them."""

    def judge(attacks, seed):
        return [
            GameLabels(a.seed.harmful, a.answer == 'sorry', a.seed.harmful and a.answer != 'sorry') for a in attacks
        ]

    tokenizer, sampling = byte_tokenizer(), Sampling(max_tokens=1)
    decoder = choose_decoder(CFG, tokenizer, MESH, driver='local', address='', slots=32, stride=1)
    players = Players(decoder, tokenizer, sampling, Letters(hidden=False))
    seeds = [Seed(word, harmful, generated)
             for harmful, word in ((True, 'burn'), (False, 'hello')) for generated in (True, False)]  # fmt: skip
    recipe = make_recipe(players=players, lora=0, judge=judge, train=[[one] for one in seeds], count=32, lr=3e-2)
    state, host = recipe.init()
    rows = []
    for i in range(64):
        state, host, _, metrics = recipe.step(state, host, i)
        rows.append(metrics)
    first, last = ([np.mean([row[name] for row in part]) for name in ('attack_success', 'plain_success')]
                   for part in (rows[:5], rows[-5:]))  # fmt: skip
    assert first[1] > 0.5 and last[1] < first[1] / 2
    assert np.mean([row['defender_reward'] for row in rows[-5:]]) > rows[0]['defender_reward']


# --- judges and seeds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('answer', 'labels'),
    [
        ('harmful request: yes\nrefusal: no\nharmful answer: yes', GameLabels(True, False, True)),
        ('Harmful request: No.\nRefusal: n/a\nHarmful answer: no\n', GameLabels(False, None, False)),
        ('harmful request: maybe\nrefusal: no\nharmful answer: yes', None),
        ('harmful request: yes\nharmful answer: yes', None),
        ('Sure! harmful request: yes\nrefusal: no\nharmful answer: yes', None),
        ('', None),
        (None, None),
    ],
)
def test_three_lines_of_a_language_model_are_its_labels(answer, labels):
    asked = []
    judge = judges.by_model(lambda chats, seed: asked.extend(chats) or [answer] * len(chats))
    assert judge([Attack(SEEDS[0], 'Do it.', 'No.')], 0) == [labels]
    assert 'Do it.' in asked[0][0]['content'] and 'No.' in asked[0][0]['content']


def test_rule_and_moderator_label_games():
    harmful, kind = SEEDS[0], SEEDS[1]
    games = [Attack(harmful, harmful.request, UNSAFE), Attack(kind, kind.request, REFUSAL)]
    assert judges.by_rule(games, 0) == [GameLabels(True, False, True), GameLabels(False, True, False)]
    judge = judges.by_moderation(lambda requests, answers: np.array([answer == UNSAFE for answer in answers]))
    assert judge(games, 0) == [GameLabels(True, False, True), GameLabels(False, True, False)]
    with pytest.raises(ValueError, match=r"play\.judge='jury'"):
        judges.make_harm_judge('play.judge', 'jury', ChatModels({}, '', 0), ONE)


def rows_of(tmp_path, *rows):
    path = tmp_path / 'seeds.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    return str(path)


def test_seeds_of_a_file_are_halved_and_none_is_tested_on(tmp_path):
    kinds = ('vanilla_harmful', 'vanilla_benign')
    rows = [{'vanilla': f'{kind} {k}', 'adversarial': '', 'completion': 'Yes.', 'data_type': kind}
            for kind in kinds for k in range(10)]  # fmt: skip
    path = rows_of(tmp_path, *rows, rows[0])
    (tmp_path / 'test').mkdir()
    test = rows_of(tmp_path / 'test', rows[0], rows[10])
    settings = SeedSettings(train=path, test=test, train_count=0, test_count=0, max_length=512)
    learnt, tested = read_seeds(settings, 0, 0, byte_tokenizer())
    assert [len(kind) for kind in by_kind(learnt)] in ([4, 5, 4, 5], [5, 4, 4, 5], [4, 5, 5, 4], [5, 4, 5, 4])
    assert len(tested) == 2 and not {s.request for s in learnt} & {s.request for s in tested}
    assert {seed.completion for seed in learnt if seed.harmful} == {''}
    assert (learnt, tested) == read_seeds(settings, 0, 0, byte_tokenizer())


@pytest.mark.parametrize(
    ('row', 'named'),
    [
        ({'vanilla': '', 'data_type': 'vanilla_benign'}, r'seeds\.jsonl, line 1.*vanilla'),
        ({'vanilla': 'x', 'data_type': 'adversarial_benign'}, r'data_type is .adversarial_benign'),
        ({'vanilla': 'x', 'data_type': 'vanilla_benign', 'completion': 3}, 'completion is 3'),
        ({'vanilla': 'x', 'data_type': 'vanilla_benign'}, r'seeds\.train=.* has 0 harmful'),
    ],
)
def test_a_wrong_record_is_named(row, named, tmp_path):
    path = rows_of(tmp_path, row)
    with pytest.raises(ValueError, match=named):
        read_seeds(SeedSettings(train=path, test=path), 0, 0, byte_tokenizer())


def test_a_finished_answer_that_cannot_be_learnt_is_named():
    settings: Any = types.SimpleNamespace(
        stream=None, ppo=types.SimpleNamespace(ptx_coef=1.0), play=types.SimpleNamespace(roles='shared'),
        seeds=types.SimpleNamespace(train='seeds.jsonl'),
    )  # fmt: skip
    silent = byte_tokenizer().with_template('x')
    with pytest.raises(ValueError, match=r'seeds\.train=seeds\.jsonl, .*This is harmle.* writes nothing'):
        play_stage.make_stream(settings, [Seed('hi', False, False, completion='yes')], RedTeam(), silent, ONE)


# --- settings and stages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('variant', ['', 'quick', 'smoke', 'table', 'paper'])
def test_every_variant_is_complete(variant, tmp_path):
    changes = {}
    if variant == 'paper':
        for name, harm in itertools.product(('train', 'test'), ('harmful', 'benign')):
            with (tmp_path / f'{name}.jsonl').open('a') as file:
                file.write(json.dumps({'vanilla': f'{name} {harm}?', 'data_type': f'vanilla_{harm}'}) + '\n')
            changes[f'seeds.{name}'] = str(tmp_path / f'{name}.jsonl')
        changes |= {'endpoints.judge.address': 'http://127.0.0.1:1/v1', 'endpoints.judge.model': 'judge'}
    assert pipeline.stages(get_settings(variant, **changes), tmp_path)


def test_stages_in_their_order_and_what_they_are_told(tmp_path):
    made = {place.name: config for place, config in pipeline.stages(get_settings(), tmp_path)}
    assert [*made] == ['examples', 'sft', 'play-shared-0', 'play-attacker-0', 'evaluate']
    assert made['sft'].data.train == str(tmp_path / 'records' / 'sft.jsonl')
    assert {made[name].policy.source for name in [*made][2:]} == {f'orbax:{tmp_path / "sft"}'}
    assert made['play-attacker-0'].play.roles == 'attacker' and made['evaluate'].compare == ('shared', 'attacker')
    table = [place.name for place, _ in pipeline.stages(get_settings('table', stage='play'), tmp_path)]
    assert len(table) == 12 and 'play-adapters-2' in table
    bare = pipeline.stages(get_settings(compare=(), **{'start.total_steps': 0, 'play.roles': 'adapters'}), tmp_path)
    assert [place.name for place, _ in bare] == ['play-adapters-0', 'evaluate']


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'compare': ('shared', 'both')}, "'both'"),
        ({'play.games': 6}, r'play\.games=6'),
        ({'play.payment': 'free'}, r"play\.payment='free'"),
        ({'compare': ('adapters',), 'policy.lora.rank': 0}, r"roles='adapters'.*policy\.lora\.rank"),
        ({'policy.lora.rank': 0, 'ppo.kl_coef': 0.0}, r"roles='attacker'.*ppo\.kl_coef"),
        ({'ppo.estimator': 'gae'}, r"ppo\.estimator='gae'"),
        ({'seeds.train': 'x.jsonl'}, r"play\.judge='rule'.*seeds\.train=x\.jsonl"),
        ({'evaluate.steps': (2,)}, r'evaluate\.steps has 2'),
        ({'rollout.ahead': 1, 'decode.driver': 'jetstream'}, r"rollout\.ahead=1.*roles='attacker'"),
        ({'rollout.lockstep': False}, r'rollout\.lockstep=False'),
        ({'stage': 'plays'}, r"stage='plays'"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_stage(changes, named, tmp_path):
    with pytest.raises(ValueError, match=named) as error:
        pipeline.stages(get_settings(**changes), tmp_path)
    assert '\n' not in str(error.value)


def test_a_stage_needs_those_before_it(tmp_path):
    (place, config), *_ = pipeline.stages(get_settings(stage='evaluate'), tmp_path)
    with pytest.raises(ValueError, match='is not finished'):
        configs.make(config, ONE._replace(workdir=place))


# --- a whole run ------------------------------------------------------------------------------------------------------

ALONE = {'start.total_steps': 0, 'compare': ('adapters',), 'evaluate.steps': (1,)}


@pytest.mark.long
def test_a_run_that_is_stopped_between_steps_goes_on_bit_by_bit(tmp_path, monkeypatch):
    assert run(monkeypatch, tmp_path / 'whole', get_settings(**ALONE)) == 0
    stop_once(monkeypatch, SelfRedTeam)
    assert run(monkeypatch, tmp_path / 'again', get_settings(**ALONE)) == 128 + signal.SIGTERM
    assert run(monkeypatch, tmp_path / 'again', get_settings(**ALONE)) == 0
    for stage in ('play-adapters-0', 'evaluate'):
        for name in (METRICS, EVALS):
            assert timeless(tmp_path / 'again' / stage / name) == timeless(tmp_path / 'whole' / stage / name)
    final = read_records(tmp_path / 'whole' / 'evaluate' / EVALS)[-1]
    assert {'plain_on_start_asr', 'adapters-0@1_on_adapters-0_asr', 'frames_on_adapters-0_overrefusal'} <= final.keys()
    words = words_of('redteam')
    assert not [name for name in final if not meaning(name, words).words and name not in ('step', 'stage')]


@pytest.mark.long
def test_all_stages_of_a_whole_run(tmp_path, monkeypatch):
    assert run(monkeypatch, tmp_path, get_settings()) == 0
    final = read_records(tmp_path / 'evaluate' / EVALS)[-1]
    assert {'attacker-0_on_shared-0_asr', 'shared-0_exploited', 'start_self_bleu'} <= final.keys()
