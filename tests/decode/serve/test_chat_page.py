"""The chat page in a real browser, against a server whose decoder says what the test has written for it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator

import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.driver import Driver
from pal_jax.decode.local import Counters
from pal_jax.decode.requests import Request, RequestProgress
from pal_jax.decode.serve.http import make_app
from pal_jax.decode.serve.page import PLAIN, Preset, chat_page
from pal_jax.models import config
from pal_jax.recipes.rlpa import dialogue as env
from pal_jax.recipes.rlpa.profiles import render_completion
from pal_jax.types import Completion, Dialogue, Person, Sampling, Turn

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
sync_api = pytest.importorskip('playwright.sync_api', reason='needs pip install playwright')
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason='needs chromium on the path')

QUIET = (
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
)  # fmt: skip
TOKENIZER = byte_tokenizer()
SYSTEM = env.actor_prompt(('pet', 'city'))
STOP = '</response>'
TRAINED = Preset(SYSTEM, render_completion('{profile}', '{reply}'), Sampling(0.7, max_tokens=300, stop=(STOP,)))


class ScriptedDecoder:
    """Says `lines` one after the other, eight bytes a step, and forever 'z' once they are used up."""

    def __init__(self, *lines: str):
        self.cfg, self.slots, self.version, self.counters = config.tiny(vocab=TOKENIZER.vocab_size), 8, 3, Counters()
        self.lines, self.prompts = list(lines), []
        self.live: dict[int, tuple[Request, list[int], list[int]]] = {}  # what is said and what is still to say
        self.number = 0

    @property
    def free(self) -> int:
        return self.slots - len(self.live)

    def check(self, request: Request, prompt_only: bool = False) -> None:
        pass

    def reset(self) -> None:
        self.live.clear()

    def add(self, request: Request) -> int:
        self.number += 1
        self.prompts.append(TOKENIZER.decode(request.prompt_ids))
        ids = [*TOKENIZER.encode(self.lines.pop(0)), TOKENIZER.stop_ids[0]] if self.lines else []
        self.live[self.number] = request, [], ids
        return self.number

    def cancel(self, number: int) -> Completion | None:
        return self._completion(self.live.pop(number)[1], 'aborted') if number in self.live else None

    def step(self) -> list[RequestProgress]:
        time.sleep(0.01)
        return [self._advance(number, *live) for number, live in list(self.live.items())]

    def _advance(self, number: int, request: Request, said: list[int], ids: list[int]) -> RequestProgress:
        news, completion = [], None
        while len(news) < 8 and completion is None:
            news.append(ids[len(said)] if ids else TOKENIZER.encode('z')[0])
            said.append(news[-1])
            text = TOKENIZER.text_of(said)
            if len(said) == len(ids) or any(stop in text for stop in request.sampling.stop):
                completion = self._completion(said, 'stop')
        if completion:
            del self.live[number]
        return RequestProgress(number, tuple(news), (0.0,) * len(news), completion, self.version)

    def _completion(self, said: list[int], reason) -> Completion:
        return Completion(TOKENIZER.text_of(said), tuple(said), (0.0,) * len(said), reason, (3,) * len(said))


@pytest.fixture
def talking(serve):
    """A server whose model says `lines`, and its driver."""

    @contextlib.contextmanager
    def talking(*lines: str, preset: Preset = TRAINED, line: int = 4, token: str = '') -> Iterator[tuple[str, Driver]]:
        driver = Driver(ScriptedDecoder(*lines), line=line)
        with serve(make_app(driver, TOKENIZER, model='rlpa', preset=preset, token=token)) as address:
            yield address, driver

    return talking


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=[*QUIET])
        yield browser
        browser.close()


class Visitor:
    """Someone at the page, and what the page sends and complains about."""

    def __init__(self, page):
        self.page, self.bodies, self.complaints = page, [], []
        page.set_default_timeout(20_000)
        page.on('pageerror', lambda error: self.complaints.append(str(error)))

    def say(self, text: str, *, wait: bool = True) -> None:
        with self.page.expect_request('**/v1/chat/completions') as sent:
            self.enter(text)
        self.bodies.append(json.loads(sent.value.post_data))
        if wait:
            self.page.locator('#send:enabled').wait_for()

    def enter(self, text: str) -> None:
        self.page.locator('#send:enabled').wait_for()
        self.page.get_by_label('Message').fill(text)
        self.page.keyboard.press('Enter')

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()

    def wait_for_error(self, text: str) -> None:
        self.page.get_by_role('alert').filter(has_text=text).wait_for()


@pytest.fixture
def visitor(browser):
    with contextlib.closing(browser.new_context()) as context:
        visitor = Visitor(context.new_page())
        yield visitor
        assert visitor.complaints == []


def rendered(*turns: Turn) -> list[dict[str, str]]:
    """What training gives the policy to read."""
    return env.messages(Dialogue(Person('', ()), turns), SYSTEM)


@needs_browser
def test_a_trained_model_is_talked_with_as_in_its_training(visitor, talking):
    profiles = ['- pet: ferret\n', '- pet: ferret\n- city: Oslo\n', '- city: Oslo\n']
    replies = ['A ferret! Where do you live?', 'Oslo is naïve 🙂.', 'Well.']
    said = ['I have a ferret.', 'In Oslo.', 'It ran away.']
    with talking(*map(render_completion, profiles, replies)) as (address, driver):
        visitor.page.goto(address)
        turns = []
        for text, profile, reply in zip(said, profiles, replies, strict=True):
            visitor.say(text)
            turns.append(Turn('user', text))
            assert visitor.bodies[-1]['messages'] == rendered(*turns)
            turns.append(Turn('assistant', reply, profile))
        options = {'temperature': 0.7, 'max_tokens': 300, 'stop': [STOP], 'top_k': 0, 'top_p': 1, 'stream': True}
        assert options.items() <= visitor.bodies[0].items()
        assert visitor.texts('.turn') == [turn.content for turn in turns]
        assert visitor.texts('#profiles h3') == ['Turn 3', 'Turn 2', 'Turn 1']
        assert visitor.texts('#profiles .new') == ['city: Oslo', 'pet: ferret']
        assert visitor.texts('#profiles .gone') == ['pet: ferret']
        visitor.page.get_by_role('button', name='New conversation').click()
        assert visitor.texts('.turn') + visitor.texts('#profiles li') == []
        visitor.say('Hello', wait=False)  # endless: what was written is used up
        assert visitor.bodies[-1]['messages'] == rendered(Turn('user', 'Hello'))
        visitor.page.keyboard.press('Escape')
        until(lambda: driver.accepted == 0)


@needs_browser
def test_hostile_text_is_shown_as_text_and_a_malformed_answer_is_not_read_again(visitor, talking):
    hostile = '<img src=x onerror="document.title = 1"><script>document.title = 2</script>'
    with talking('No blocks here. ' + hostile, render_completion(f'- {hostile}\n', hostile)) as (address, _):
        visitor.page.goto(address)
        visitor.say(hostile)
        visitor.say('Hello')
        assert visitor.bodies[-1]['messages'] == rendered(Turn('user', 'Hello'))
        assert visitor.texts('.turn') == [hostile, 'No blocks here. ' + hostile, 'Hello', hostile]
        assert visitor.texts('#profiles .new') == [hostile]
        assert 'not in the format' in visitor.texts('.note')[0]
        assert visitor.page.locator('img, #middle script').count() == 0
        assert visitor.page.title() == 'rlpa'


@needs_browser
def test_stop_keeps_what_was_said_and_frees_the_slot(visitor, talking):
    with talking(preset=PLAIN) as (address, driver):  # endless
        visitor.page.goto(address)
        visitor.say('Hello', wait=False)
        visitor.page.locator('.assistant', has_text='zzzzzzzz').wait_for()
        assert driver.accepted == 1
        visitor.page.get_by_role('button', name='Stop').click()
        until(lambda: driver.accepted == 0)
        visitor.page.locator('.note', has_text='Stopped').wait_for()
        (answer,) = visitor.texts('.assistant')
        visitor.say('And?', wait=False)
        turns = ({'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': answer})
        assert visitor.bodies[-1]['messages'] == [*turns, {'role': 'user', 'content': 'And?'}]
        visitor.page.keyboard.press('Escape')


@needs_browser
def test_other_models_get_the_users_own_system_prompt_and_settings(visitor, talking):
    with talking('Ahoy.', 'Bye.', preset=PLAIN) as (address, _):
        visitor.page.goto(address)
        assert not visitor.page.locator('#side').is_visible()
        visitor.say('Hello')
        visitor.page.get_by_text('Settings').click()
        visitor.page.get_by_label('System prompt').fill('You are a pirate.')
        visitor.page.get_by_label('Temperature').fill('0')
        visitor.page.get_by_label('Max tokens').fill('7')
        visitor.say('Bye')
        first, second = visitor.bodies
        assert first['messages'] == [{'role': 'user', 'content': 'Hello'}]
        assert second['messages'][0] == {'role': 'system', 'content': 'You are a pirate.'}
        assert [turn['content'] for turn in second['messages'][1:]] == ['Hello', 'Ahoy.', 'Bye']
        assert (second['temperature'], second['max_tokens']) == (0, 7)
        visitor.page.get_by_label('Max tokens').fill('')
        visitor.enter('Hello')
        visitor.wait_for_error('whole number')


@needs_browser
def test_what_goes_wrong_is_told_in_one_line_and_the_message_stays(visitor, talking):
    with talking(preset=PLAIN, line=0) as (address, driver):
        visitor.page.goto(address)
        tickets = [driver.submit(Request((1,), Sampling(), 0), lambda _: None) for _ in range(8)]
        visitor.say('Hello')
        visitor.wait_for_error('The server is full')
        assert visitor.page.get_by_label('Message').input_value() == 'Hello'
        for ticket in tickets:
            driver.cancel(ticket)
        visitor.say('Hello', wait=False)
        visitor.page.locator('.assistant', has_text='zzz').wait_for()
        driver.close()
        visitor.page.locator('#send:enabled').wait_for()
    visitor.say('Hello')
    visitor.wait_for_error('cannot be reached')


@needs_browser
def test_a_token_is_asked_for_and_kept_by_this_tab_alone(visitor, talking):
    with talking('Ahoy.', preset=PLAIN, token='secret') as (address, _):
        visitor.page.goto(address)
        for key in ('wrong', 'secret'):
            visitor.wait_for_error('asks for its token')
            visitor.page.get_by_label('Token of this server').fill(key)
            visitor.page.get_by_role('button', name='Use').click()
        visitor.page.get_by_role('heading', name='rlpa').wait_for()
        visitor.say('Hello')
        assert visitor.texts('.assistant') == ['Ahoy.']
        assert visitor.page.evaluate('[localStorage.length, document.cookie]') == [0, '']


@needs_browser
def test_it_fits_a_phone(visitor, talking):
    with talking(render_completion('- pet: ferret\n' * 3, 'word ' * 60)) as (address, _):
        visitor.page.set_viewport_size({'width': 320, 'height': 568})
        visitor.page.goto(address)
        visitor.say('x' * 200)
        assert visitor.page.evaluate('document.documentElement.scrollWidth') <= 320
        for name in ('Send', 'Stop', 'New conversation'):
            assert visitor.page.get_by_role('button', name=name).is_visible()


def test_the_page_may_load_nothing_and_run_only_itself():
    headers = chat_page().headers
    policy = dict(part.split(' ', 1) for part in headers['content-security-policy'].split('; '))
    assert policy['default-src'] == "'none'"
    assert policy['connect-src'] == "'self'"
    assert policy['script-src'].startswith("'sha256-")
    assert 'unsafe' not in headers['content-security-policy']
    assert not re.search(rb'HTML\b|document\.write|eval|srcdoc', chat_page().body), 'text is textContent alone'


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
