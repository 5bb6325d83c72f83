"""The report of a run: made from its files alone, complete, self-contained, and safe to open."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pal_jax.__main__ import COMMANDS
from pal_jax.run.advice import advice, uses
from pal_jax.run.curve import learning_curve, panels_of
from pal_jax.run.glossary import CORE, meaning, words_of
from pal_jax.run.metrics import EVALS, METRICS, MetricsWriter, read_records
from pal_jax.run.pages import duration, flatten, number
from pal_jax.run.report import (
    before_and_after,
    few_samples,
    grouped,
    lead_exhibit,
    make_report,
    number_rows,
    side_by_side,
    write_report,
)
from pal_jax.run.summary import summarize
from pal_jax.run.verdict import RunVerdict, judge
from pal_jax.types import Exhibit
from tests import browser, shell

ROOT = Path(__file__).parents[2]
ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def test_own_rewards_have_panels_and_many_panels_stand_in_rows():
    rows = [{'step': i, 'phase': 'rl', 'reward': 0.1 * i, 'own_short': -i, 'kl': 0.0} for i in range(6)]
    assert list(panels_of(rows)) == ['kl', 'own_short'] and 'short' in panels_of(rows)['own_short']
    many = [{**row, **{f'own_{k}': k for k in range(9)}} for row in rows]
    assert learning_curve(many).startswith(b'\x89PNG')


def dialogue(step, stage, person, reply='Hi'):
    turns = [
        {'role': 'user', 'content': ATTACK},
        {'role': 'assistant', 'content': reply, 'profile': ATTACK, 'rewards': {'profile': 0.5}},
    ]
    return {'step': step, 'stage': stage, 'person': person, 'facts': [ATTACK], 'turns': turns}


def run_of(recipe, folder):
    (folder / 'config.json').write_text(json.dumps({'recipe': recipe}))
    return folder


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / 'a & b'
    with MetricsWriter(folder) as writer:
        writer.evaluation({'step': 0, 'stage': 'base', 'reward': 0.111, 'reward_se': 0.02, 'f1_by_turn': [0.0, 0.05]})
        writer.dialogues([dialogue(0, 'base', f'p{i}', reply='Dull.') for i in range(5)])
        for step in range(4):
            writer.write(step, 'warm-up', {'loss': 1.0 / (step + 1), 'seconds_update': 30.0})
        for step in range(4, 14):
            metrics = {'reward': step / 20, 'reward_std': 0.3, 'samples': 32, 'format': 0.9, 'kl': 0.01}
            writer.write(step, 'rlpa', metrics | {'seconds_rollout': 60.0})
        final = {'f1_by_turn': [0.0, 0.31], 'bound_by_turn': [0.0, 0.42], 'shuffled_by_turn': [0.01, 0.02]}
        writer.evaluation({'step': 13, 'stage': 'final', 'reward': 0.777, 'format': 0.95} | final)
        writer.dialogues([dialogue(13, 'final', f'p{i}', reply='Lively!') for i in range(5)])
    return run_of('rlpa', folder)


class Text(html.parser.HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], {}, ''
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.update(attrs)

    def handle_data(self, data):
        self.text += data + ' '


def test_the_page_holds_what_happened(workdir):
    summarize(workdir, {'config': {'ppo': {'clip': 0.2}}})
    text = Text(write_report(workdir).read_text()).text
    for shown in ('0.225', '0.625', '0.4', '± 0.02', '0.777', 'ppo.clip', 'rollout', '10:00', 'Dull.', 'Lively!'):
        assert shown in text, shown


def test_the_page_opens_with_the_verdict_an_example_and_the_curve_and_figures_are_folded(workdir):
    page = write_report(workdir).read_text()
    places = [page.index(text) for text in ('Did it learn?', 'Before and after', 'Learning curve', 'All figures')]
    assert places == sorted(places)
    opening, folded = page[: places[-1]], page[places[-1] :]
    assert '<table' not in opening and opening.count('class="pair"') == 1
    assert re.sub('<details.*?</details>', '', folded, flags=re.DOTALL).count('<table') == 0
    judged = judge(read_records(workdir / METRICS), read_records(workdir / EVALS), words_of('rlpa'))
    assert judged and judged.sentence in Text(page).text
    assert meaning('profile', words_of('rlpa')).words in Text(opening).text  # of the scores under a dialogue


def test_the_page_says_what_it_is_of_and_what_to_do_next(workdir):
    run_of('rlpa', workdir)
    config = {'recipe': 'rlpa', 'seed': 3, 'total_steps': 4, 'optimizer': {}}
    config |= {'policy': {'source': 'hf:Qwen/Qwen3-0.6B'}}
    (workdir / 'config.json').write_text(json.dumps(config))
    summarize(workdir, {'day': '2026-01-02', 'config': config})
    page = write_report(workdir).read_text()
    title = re.findall('<title>(.*?)</title>', page)[0]
    assert title == 'a &amp; b · rlpa · Qwen/Qwen3-0.6B · seed 3 · 2026-01-02'
    opening = Text(page).text.partition('Learning curve')[0]
    for command in ('chat --source=', 'export --workdir=', '--config.total_steps'):
        assert command in opening
    assert opening.index('Did it learn?') < opening.index('pal-jax chat') < opening.index('Before and after')


@pytest.mark.parametrize(
    ('config', 'key'),
    [({'total_steps': 4}, 'total_steps=8'), ({'total_steps': 0, 'data': {'epochs': 2}}, 'total_steps=6'), ({}, '')],
)
def test_only_what_can_go_on_is_told_to(config, key, tmp_path):
    """The bench and AllReduce make a step for each data set or network, and were told to take more."""
    with MetricsWriter(tmp_path) as writer:
        for step in range(3):
            writer.write(step, 'sft', {'loss': 1.0})
    summary = {'name': '', 'config': config}

    def again(recipe, summary):
        shown = uses(tmp_path, {'recipe': recipe, **config}, words_of(recipe), summary)
        return [line for _, line, page in shown if 'resume' in page]

    assert again('cmdp', summary) == ([f'--config.{key}'] if key else [])
    assert not again('personal.pal', summary)
    # A run that has stopped goes on by the same command; so does one that was to go on, and stopped.
    assert again('cmdp', {}) == [f'--workdir={tmp_path}']
    assert again('personal.pal', {'config': {'total_steps': 2}}) == [f'--workdir={tmp_path}']


def test_a_trial_leads_to_the_run_itself(tmp_path):
    config = {'recipe': 'sft', 'total_steps': 3}
    longer = [line for _, line, _ in uses(tmp_path, config, words_of('sft'), {'name': 'sft:smoke', 'config': config})]
    assert longer == ['--config=sft']


@pytest.mark.parametrize(
    ('recipe', 'command'), [('scorer.cost', 'score'), ('personal.pal', 'personalize'), ('plus', 'summarize')]
)
def test_methods_have_uses_of_their_own(recipe, command, tmp_path):
    found = uses(tmp_path, {'recipe': recipe, 'policy': {}, 'optimizer': {}}, words_of(recipe), {})
    assert any(f'pal-jax {command} --source={tmp_path}' in line for _, line, _ in found)
    assert not any('chat' in line for _, line, _ in found)
    for _, line, page in found:
        assert (ROOT / page).is_file() and (not line.startswith('pal-jax') or line.split()[1] in COMMANDS)


@pytest.mark.parametrize(
    ('figures', 'key'),
    [
        ({'format': 0.1}, 'warmup.steps'),
        ({'kl': 8.0, 'reward': -1.0}, 'ppo.kl_coef'),
        ({'alike': 0.9}, 'sampling.temperature'),
        ({'reward': 1.0}, 'total_steps'),
    ],
)
def test_a_run_that_has_not_learnt_gets_the_advice_of_its_own_figures(figures, key):
    rows = [
        {'step': i, 'phase': 'rl', **{k: v * (i + 1) / 10 if k == 'reward' else v for k, v in figures.items()}}
        for i in range(10)
    ]
    assert key in advice(rows, RunVerdict('Not beyond noise', '', ''), {'total_steps': 10})
    cut = [row | {'truncated': 0.3} for row in rows]
    assert 'sampling.max_tokens' in advice(cut, RunVerdict('Yes', '', ''), {}) and advice(cut, None, {}) == ''
    few_cut = [row | {'truncated': 0.1} for row in rows]
    assert advice(few_cut, RunVerdict('Yes', '', ''), {}) == ''
    paid = advice(cut, RunVerdict('Yes', '', ''), {'reward': {'function': 'my.py:score'}})
    assert 'your own function' in paid and 'sampling.max_tokens' in paid


@pytest.mark.parametrize(
    ('answer', 'key'),
    [
        ('Yes, above its limit', 'constraint.limit'),
        ('Too little to tell', 'to test on'),
        ('Not beyond noise', 'to test on'),
    ],
)
def test_advice_goes_by_the_verdict(answer, key):
    assert key in advice([], RunVerdict(answer, '', ''), {})
    for name in ('rl:smoke', 'pal:text-smoke'):
        assert f'leave {name[-6:]} out' in advice([], RunVerdict(answer, '', ''), {}, name)
    people = words_of('personal.pal').more
    assert (people in advice([], RunVerdict(answer, '', ''), {}, more=people)) == (answer == 'Not beyond noise')


def test_a_run_without_a_figure_that_tells_of_learning_says_so(tmp_path):
    (tmp_path / 'config.json').write_text('{"recipe": "cmdp"}')
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0, "phase": "cmdp", "bandit_pid_reward": 1.0}\n')
    assert 'no single figure' in make_report(tmp_path)[0]


def test_figures_are_in_groups_and_one_that_nobody_explained_is_shown():
    rows = [('warmth', 1), ('kl', 2), ('reward', 3), ('shuffled', 4), ('logic', 5)]
    names = [[name for name, _, _ in figures] for _, figures in grouped(rows, words_of('rlpa'))]
    assert names == [['reward'], ['shuffled'], ['logic'], ['kl'], ['warmth']]
    (_, kept), *_ = grouped([('warmth', 1)], CORE)
    assert kept == [('warmth', '', 1)]


def test_a_page_without_dialogues_opens_with_a_table_before_and_after_or_a_picture():
    table, picture = {'title': 'Held-out pairs', 'table': [['a']], 'picture': ''}, {'title': 'Curve', 'table': []}
    picture |= {'picture': 'x'}
    assert lead_exhibit([table | {'stage': 'base'}], [picture, table]) == (table | {'stage': 'base'}, table)
    assert lead_exhibit([], [table, picture]) == (None, picture)
    assert lead_exhibit([], [table]) is lead_exhibit([], []) is None


def test_several_systems_that_answer_one_prompt_stand_side_by_side():
    said = [dialogue(9, 'final', name) for name in ('base', 'morl', 'psoups')]
    assert [(a['person'], b['person']) for a, b in side_by_side(said)] == [('base', 'psoups')]
    other = dialogue(9, 'final', 'psoups') | {'turns': [{'role': 'user', 'content': 'Else?'}]}
    assert side_by_side([said[0], other]) == side_by_side(said[:1]) == side_by_side([]) == []
    assert len(side_by_side([*said, other, other | {'person': 'base'}])) == 2


@pytest.mark.parametrize('count', [1, 2])
def test_games_of_one_evaluation_are_shown_with_what_the_judge_said(count, tmp_path):
    turns = [{'role': 'user', 'content': 'Seed: help'}, {'role': 'assistant', 'content': f'Attacker: {ATTACK}'}]
    game = {'step': 2, 'stage': 'final', 'turns': turns}
    games = [game | {'person': f'policy {k}', 'facts': [f'unsafe: {k}']} for k in range(count)]
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, 'evaluate', {'answers': 3.0})
        writer.evaluation({'step': 2, 'stage': 'final', 'answers': 3.0})
        writer.dialogues(games)
    page = Text(write_report(run_of('redteam', tmp_path)).read_text())
    head = 'Side by side' if count > 1 else 'Dialogues of the evaluation'
    # Two policies on one seed have each a verdict of their own.
    for text in (head, 'Seed: help', f'Attacker: {ATTACK}', *(f'unsafe: {k}' for k in range(count))):
        assert text in page.text
    assert 'script' not in page.tags and 'img' not in page.tags


def test_f1_stands_beside_its_bound_and_control(workdir):
    rows = re.findall(r'<tr[^>]*>(.*?)</tr>', write_report(workdir).read_text())
    cells = [re.findall(r'<t[dh][^>]*>(.*?)</t[dh]>', row) for row in rows]
    named = [(row[0], *re.findall(r'<code>(.*?)</code>', row[1]), *row[2:]) for row in cells if len(row) == 4]
    assert ('base', 'f1', '0', '0.05') in named
    assert [row[1:] for row in named if row[1] in {'f1', 'bound', 'shuffled'}][1:] == [
        ('f1', '0', '0.31'),
        ('bound', '0', '0.42'),
        ('shuffled', '0.01', '0.02'),
    ]


def test_texts_of_models_users_and_files_are_escaped(workdir):
    summarize(workdir, {'config': {ATTACK: ATTACK}})
    page = Text(write_report(workdir).read_text())
    assert 'script' not in page.tags
    assert 'onerror' not in page.attributes
    assert page.tags.count('img') == 1  # the learning curve
    assert page.text.count(ATTACK) >= 8


def rollout(reward, *, content='Hm.', judged=True):
    turns = [{'role': 'user', 'content': ATTACK, 'profile': ''}]
    turns.append({'role': 'assistant', 'content': content, 'profile': ATTACK})
    scores = {'reward': reward, 'profile': 0.5, 'response': 0.0, 'format': 1.0}
    return {'person': ATTACK, 'facts': [ATTACK], 'round': 1, 'judged': judged, 'scores': scores, 'turns': turns}


@pytest.fixture
def trained(workdir):
    """The run, and samples of three of its training steps."""
    with MetricsWriter(workdir, first_step=14) as writer:
        for step, rewards in ((4, (0.5, 0.1)), (5, (1.5, 0.3)), (13, (1.0, 0.2))):
            writer.rollouts(step, 'rlpa', [rollout(r, content=f'</script>{ATTACK} {r}') for r in rewards])
    return workdir


class Scripts(html.parser.HTMLParser):
    """The contents of a page's scripts, by type."""

    def __init__(self, page: str):
        super().__init__()
        self.type, self.found = None, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.type = (dict(attrs).get('type') or '') if tag == 'script' else None

    def handle_endtag(self, tag):
        self.type = None

    def handle_data(self, data):
        if self.type is not None:
            self.found.append((self.type, data))


def test_samples_of_the_training_are_data_and_the_policy_lets_one_script_run(trained):
    page = write_report(trained).read_text()
    (kind, data), (code_kind, code) = Scripts(page).found
    assert (kind, code_kind) == ('application/json', '')
    records = json.loads(data)
    assert [(each['step'], each['scores']['reward']) for each in records][:3] == [(4, 0.5), (4, 0.1), (5, 1.5)]
    assert records[0]['turns'][0]['content'] == ATTACK and '<' not in data
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0]
    assert f"script-src 'sha256-{digest}'" in policy and 'unsafe-inline' not in policy.split('script-src')[1]
    assert not re.search(r'innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function', code)
    named = set(re.findall(r"found\('(\w+)'\)", code))
    assert named <= set(re.findall(r'id="(\w+)"', page))
    text = Text(page)
    assert text.tags.count('script') == 2 and 'onerror' not in text.attributes


def test_a_page_keeps_its_size_however_long_the_training_was():
    records = [{'step': step, **rollout(0.1, content='x' * 5000)} for step in range(500) for _ in range(4)]
    kept = few_samples(records, room=100_000, longest=100)
    steps = sorted({record['step'] for record in kept})
    assert len(json.dumps(kept)) < 110_000 and len(kept) == 4 * len(steps)
    assert (steps[0], steps[-1]) == (0, 499) and 5 < len(steps) < 200
    assert kept[0]['turns'][1]['content'] == 'x' * 100 + ' …'
    assert few_samples(records[:8], longest=9999) == records[:8] and few_samples([]) == []


def test_a_reader_steps_through_them_by_step_and_by_reward(trained):
    with browser.opened(write_report(trained)) as page:

        def shown():
            return f'{page.locator("#where").text_content()} {page.locator("#dialogue p >> nth=-1").text_content()}'

        places = [shown()]
        while page.locator('#on').is_enabled():
            page.locator('#on').click()
            places.append(shown())
        assert [re.findall(r'step (\d+).*reward ([\d.]+)', place)[0] for place in places] == [
            ('5', '0.10'), ('5', '0.50'), ('6', '0.30'), ('6', '1.50'), ('14', '0.20'), ('14', '1.00'),
        ]  # fmt: skip
        page.locator('#order').select_option('best')
        assert '1 of 6: step 6, turn 1 reward 1.50' in shown()
        assert f'</script>{ATTACK} 1.5' in page.locator('#dialogue').text_content()
        page.locator('#only').select_option('14')
        assert '1 of 2: step 14, turn 1 reward 1.00' in shown()
        assert page.locator('#dialogue img, #dialogue script').count() == 0
        browser.use_all(page)


def test_games_of_several_rewards_are_stepped_through_in_their_order(workdir):
    turns = [{'role': 'user', 'content': 'Your move?'}, {'role': 'assistant', 'content': 'Player 0: [4]'}]
    with MetricsWriter(workdir, first_step=14) as writer:
        for step in (4, 5):
            match = {'person': f'match {step}', 'facts': ['Player 0: won, reward 1'], 'turns': turns}
            writer.rollouts(step, 'spiral', [match])
    with browser.opened(write_report(workdir)) as page:
        assert page.locator('#order').count() == 0
        assert page.locator('#where').text_content() == '1 of 2: step 5'
        page.locator('#on').click()
        assert page.locator('#where').text_content() == '2 of 2: step 6'
        assert 'Player 0: [4]' in page.locator('#dialogue').text_content()
        browser.use_all(page)


@pytest.mark.long
@pytest.mark.parametrize('config', sorted(path.stem for path in (ROOT / 'configs').glob('*.py')))
def test_every_control_of_every_methods_reports_works(config, tmp_path):
    command = [sys.executable, '-m', 'pal_jax.train', f'--config={config}:smoke', f'--workdir={tmp_path}']
    subprocess.run(command, cwd=ROOT, env=os.environ | shell.PLAIN, check=True)
    reports = sorted(tmp_path.rglob('report.html'))
    assert reports
    for report in reports:
        with browser.opened(report) as page:
            browser.use_all(page)


def test_the_last_evaluations_exhibits_are_shown_and_escaped(workdir):
    picture = learning_curve([{'step': 0, 'phase': 'pal', 'accuracy': 0.5}])
    with MetricsWriter(workdir, first_step=14) as writer:
        writer.exhibits(9, 'step', [Exhibit('Early')])
        writer.exhibits(13, 'final', [Exhibit(ATTACK, table=[['who', 'accuracy'], [ATTACK, '0.8']], picture=picture)])
    assert [path.read_bytes() for path in (workdir / 'pictures').iterdir()] == [picture]
    page = Text(write_report(workdir).read_text())
    assert 'script' not in page.tags
    assert page.tags.count('img') == 2
    assert '0.8' in page.text
    assert 'Early' not in page.text


def test_exhibits_beyond_the_step_a_run_resumes_at_are_written_again(workdir):
    for _ in range(2):
        with MetricsWriter(workdir, first_step=13) as writer:
            writer.exhibits(13, 'final', [Exhibit('Table', table=[['a']])])
    assert len((workdir / 'exhibits.jsonl').read_text().splitlines()) == 1


def test_the_page_asks_nothing_of_anyone(workdir):
    page = write_report(workdir).read_text()
    assert not re.search(r'(?:src|href|url)\s*[=(]\s*["\']?\s*(?:https?:|//|file:)', page)
    assert 'data:image/png;base64,' in page


def test_three_people_are_shown_before_beside_after(workdir):
    page = write_report(workdir).read_text()
    assert page.count('class="pair"') == page.count('Dull.') == page.count('Lively!') == 3


def test_notes_of_the_summary_are_in_the_page(workdir):
    summarize(workdir, {'notes': ['Mind the <gap>.']})
    assert 'Mind the &lt;gap&gt;.' in write_report(workdir).read_text(encoding='utf-8')


def test_it_can_be_made_again_without_a_summary_and_is_the_same(workdir):
    first = write_report(workdir).read_bytes()
    (workdir / 'report.html').unlink()
    assert write_report(workdir).read_bytes() == first


def test_a_folder_without_steps_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='no steps to report on; train first'):
        write_report(tmp_path)


def test_a_run_of_one_bare_step_has_a_report(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, 'sft', {'loss': 2.0})
    assert 'sft' in write_report(run_of('sft', tmp_path)).read_text()


def test_before_and_after_pair_the_same_people():
    dialogues = [
        dialogue(0, 'base', 'a'),
        dialogue(0, 'base', 'b'),
        dialogue(5, 'step', 'b'),
        dialogue(9, 'final', 'b'),
    ]
    assert [(b['step'], a['step'], a['person']) for b, a in before_and_after(dialogues)] == [(0, 9, 'b')]
    assert before_and_after(dialogues[:2]) == before_and_after([]) == []


def test_number_rows_line_up_across_evaluations():
    rows = number_rows([{'step': 0, 'f1': 0.5, 'f1_se': 0.1}, {'step': 1, 'kl': 0.2, 'f1': 0.75}])
    assert rows == [('f1', [(0.5, 0.1), (0.75, None)]), ('kl', [(None, None), (0.2, None)])]


@pytest.mark.parametrize(
    ('value', 'shown'), [(None, '–'), (0.12345, '0.123'), (12, '12'), (12345, '12,345'), (12345.6, '12,346')]
)
def test_numbers_are_shown_short(value, shown):
    assert number(value) == shown


def test_durations_and_nested_settings():
    assert [duration(s) for s in (7.26, 61, 3723)] == ['7.3 s', '0:01:01', '1:02:03']
    assert list(flatten({'a': 1, 'b': {'c': {'d': 2}}})) == [('a', 1), ('b.c.d', 2)]


def test_a_run_of_no_method_is_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, 'sft', {'loss': 2.0})
    with pytest.raises(ValueError, match="recipe='nothing' is no method"):
        write_report(run_of('nothing', tmp_path))
    with pytest.raises(ValueError, match='names no recipe'):
        write_report(run_of(3, tmp_path))
