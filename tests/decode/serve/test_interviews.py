"""The chat page's questions of taste in a real browser, against a server that knows two tastes."""

from __future__ import annotations

import pytest

from pal_jax.decode.driver import Driver
from pal_jax.decode.serve.http import make_app
from pal_jax.decode.serve.interviews import make_routes
from pal_jax.decode.serve.page import PLAIN
from tests.decode.serve.test_chat_page import TOKENIZER, ScriptedDecoder, browser, needs_browser, visitor  # noqa: F401

PAIRS = [('short', 'long, long, long'), ('<b>plain</b>', 'bold'), ('yes', 'no')]


class TwoTastes:
    """Each click on the left says more of the first taste; people are kept in memory."""

    def __init__(self):
        self.people = {}

    def told(self, clicks):
        left = (1 + sum(side == 'left' for _, side in clicks)) / (2 + len(clicks))
        rest = [pair for pair in range(len(PAIRS)) if pair not in [asked for asked, _ in clicks]]
        question = None
        if rest:
            question = {'pair': rest[0], 'prompt': 'Say', **dict(zip(('left', 'right'), PAIRS[rest[0]], strict=True))}
        words = [f'{len(clicks)} answers.', f'{left:.0%} taste 1.']
        return {'question': question, 'mixture': [left, 1 - left], 'soup': True, 'words': words}

    def save(self, name, clicks):
        self.people[name] = clicks
        return {'name': name, 'words': [f'{name} is kept.']}

    def load(self, name):
        if name not in self.people:
            raise ValueError(f'nobody called {name} is kept')
        return {'name': name, 'clicks': self.people[name], **self.told(self.people[name])}

    def forget(self, name):
        del self.people[name]
        return {'name': name, 'words': [f'{name} is forgotten.']}


@pytest.fixture
def asking(serve):
    """The address of a server, and who it keeps."""
    interview, driver = TwoTastes(), Driver(ScriptedDecoder('Hi.', 'Ho.', 'Ha.', 'He.'), line=4)
    preset = PLAIN._replace(asks=True)
    with serve(make_app(driver, TOKENIZER, model='soup', preset=preset, routes=make_routes(interview))) as address:
        yield address, interview


@needs_browser
def test_clicks_change_the_mixture_of_the_next_answer(visitor, asking):  # noqa: F811
    address, interview = asking
    page = visitor.page
    page.goto(address)
    page.get_by_role('button', name='short', exact=True).wait_for()
    assert not page.get_by_label('Profile').is_visible()
    visitor.say('Hello')
    assert visitor.bodies[-1]['mixture'] == [0.5, 0.5]
    page.get_by_role('button', name='long, long').click()
    page.get_by_role('button', name='<b>plain</b>').click()  # text, and no markup
    page.get_by_role('button', name='yes').wait_for()
    assert visitor.texts('#words p') == ['2 answers.', '50% taste 1.']
    page.get_by_role('button', name='yes').click()
    page.get_by_text('All pairs are answered').wait_for()
    visitor.say('And now?')
    assert visitor.bodies[-1]['mixture'] == [0.6, 0.4]
    assert visitor.texts('.assistant') == ['Hi.', 'Ho.']
    # Saved, forgotten by the page, and back again.
    page.get_by_label('Your name').fill('ana')
    page.get_by_role('button', name='Save').click()
    page.get_by_text('ana is kept.').wait_for()
    assert interview.people == {'ana': [(0, 'right'), (1, 'left'), (2, 'left')]}
    page.reload()
    page.get_by_role('button', name='short', exact=True).wait_for()
    page.get_by_label('Your name').fill('ana')
    page.get_by_role('button', name='Load').click()
    page.get_by_text('ana is back, with 3 answers.').wait_for()
    page.get_by_role('button', name='Forget').click()
    page.get_by_text('ana is forgotten.').wait_for()
    page.get_by_role('button', name='short', exact=True).wait_for()
    assert interview.people == {}
    page.get_by_role('button', name='Load').click()
    visitor.wait_for_error('nobody called ana')


@needs_browser
def test_nothing_of_a_person_stays_for_the_next(visitor, asking):  # noqa: F811
    address, interview = asking
    page = visitor.page

    def traces() -> dict[str, object]:
        """What the page shows and knows of a person."""
        boxes = {name: page.locator(f'#{name}').input_value() for name in ('person', 'text', 'system', 'limit')}
        shown = {name: visitor.texts(name) for name in ('.turn', '.note', '#words p')}
        return boxes | shown | {'clicks': page.evaluate('clicks'), 'said': page.evaluate('said')}

    page.goto(address)
    page.get_by_role('button', name='short', exact=True).wait_for()
    stranger = traces()
    for leave in ('New conversation', 'Load', 'Forget'):
        interview.people['ben'] = [(0, 'left')]
        page.get_by_role('button', name='short', exact=True).click()
        page.get_by_text('1 answers.').wait_for()
        page.get_by_text('Settings').click()
        page.get_by_label('System prompt').fill('I am ana.')
        page.get_by_label('Max tokens').fill('9')
        page.get_by_text('Settings').click()
        visitor.say('Hello')
        page.get_by_label('Message').fill('A secret of ana')
        page.get_by_label('Your name').fill('ana')
        page.get_by_role('button', name='Save').click()
        page.get_by_text('ana is kept.').wait_for()
        if leave != 'New conversation':
            page.get_by_label('Your name').fill('ben')
        page.get_by_role('button', name=leave).click()
        page.locator('#log:not(:has(.turn))').wait_for(state='attached')
        page.get_by_role('button', name='<b>plain</b>' if leave == 'Load' else 'short', exact=True).wait_for()
        of_ben = {
            'New conversation': {},
            'Load': {'person': 'ben', '.note': ['ben is back, with 1 answer.'], 'clicks': [[0, 'left']],
                     '#words p': ['1 answers.', '67% taste 1.']},
            'Forget': {'person': 'ben', '.note': ['ben is forgotten.']},
        }[leave]  # fmt: skip
        assert traces() == stranger | of_ben, leave
        page.get_by_role('button', name='New conversation').click()
        page.get_by_role('button', name='short', exact=True).wait_for()
        assert traces() == stranger
    visitor.say('And I?')
    assert visitor.bodies[-1]['mixture'] == [0.5, 0.5]


@needs_browser
def test_an_answer_that_comes_after_its_person_has_left_is_nobodys(visitor, asking):  # noqa: F811
    page = visitor.page
    page.goto(asking[0])
    page.get_by_role('button', name='short', exact=True).wait_for()
    page.evaluate("""async () => {
        const fetched = window.fetch
        window.fetch = async (path, options) => {
            const answer = await fetched(path, options)
            if (options.body?.includes('left')) await new Promise(go => window.go = go)
            return answer
        }
        click('left')
    }""")
    while not page.evaluate('Boolean(window.go)'):  # the page lets no function be made of a text
        page.wait_for_timeout(20)
    page.get_by_role('button', name='New conversation').click()
    page.get_by_role('button', name='short', exact=True).wait_for()
    page.evaluate('go()')
    page.locator('#left:enabled').wait_for()
    page.wait_for_timeout(200)
    assert visitor.texts('#words p') == ['0 answers.', '50% taste 1.']
    assert page.evaluate('clicks') == []
    assert not page.get_by_role('alert').is_visible()


@needs_browser
def test_questions_fit_a_phone(visitor, asking):  # noqa: F811
    visitor.page.set_viewport_size({'width': 320, 'height': 568})
    visitor.page.goto(asking[0])
    visitor.page.get_by_role('button', name='short', exact=True).wait_for()
    assert visitor.page.evaluate('document.documentElement.scrollWidth') <= 320
