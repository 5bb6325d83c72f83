"""Thoughts of reasoning models are not said; a thought that does not end leaves nothing said."""

import pytest

from pal_jax.data.thoughts import completion_after, spoken_reply


@pytest.mark.parametrize(
    'text',
    [
        '<think>It is a ferret.</think>Hello',
        '<think>\nIt is a ferret.\n</think>\n\nHello',
        '<THINK>It is a ferret.</Think> Hello',
        '< think >It is a ferret.</ think >Hello',
        '<thinking>It is a ferret.</thinking>\nHello',
        '<thought effort="high">It is a ferret.</thought>Hello',
        '<reasoning>It is a ferret.</reasoning>Hello',
        '<seed:think>It is a ferret.</seed:think>Hello',
        '[THINK]It is a ferret.[/THINK]Hello',
        '[think]It is a ferret.[/Think] Hello',
        '◁think▷It is a ferret.◁/think▷Hello',
        '<|begin_of_thought|>It is a ferret.<|end_of_thought|><|begin_of_solution|>Hello<|end_of_solution|>',
        '<|START_THINKING|>It is a ferret.<|END_THINKING|><|START_RESPONSE|>Hello<|END_RESPONSE|>',
        '<|channel>thought\nIt is a ferret.<channel|>Hello',
        '<think>It is a ferret.</think><answer>Hello</answer>',
        'It is a ferret.</think>Hello',  # opened by the template
        'It is a ferret.\n</thinking>\n\nHello',
        'It is a ferret.[/THINK]Hello',
        '<think>a ferret <think>or two</think> it is</think>Hello',
        '<think>a ferret</think><think>it is</think>Hello',
        '<think>a ferret</think>Hel<think>it is</think>lo',
        'a ferret</think>, well</think>Hello',
        '<think/>Hello',
        '<think></think>Hello',
        '<|channel|>analysis<|message|>a ferret<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>',
        '<|channel|>analysis<|message|>a ferret<|end|><|start|>assistant<|channel|>final<|message|>Hello',
        '<|channel|>commentary<|message|>x<|call|><|start|>assistant<|channel|>FINAL<|message|>Hello<|end|>',
        'analysisThe user has a ferret.assistantfinalHello',
        '<longcat_think>It is a ferret.</longcat_think>Hello',
        '<deep-think>It is a ferret.</deep-think>Hello',
        '<ant_thinking>It is a ferret.</ant_thinking>Hello',
        '<thought_process>It is a ferret.</thought_process>Hello',
        '<reasoning_content>It is a ferret.</reasoning_content>Hello',
        '<seed:think>a<seed:cot_budget_reflect>b</seed:cot_budget_reflect>c</seed:think>Hello',
        '<chain_of_thought>It is a ferret.</chain_of_thought>Hello',
        '<rationale>It is a ferret.</rationale><final_answer>Hello</final_answer>',
        '<think>It is a ferret.</think><response>Hello</response>',
        '<think>It is a ferret.</think><|begin_of_box|>Hello<|end_of_box|>',
        '[Reasoning]It is a ferret.[/Reasoning]Hello',
        '<unused94>thought\nIt is a ferret.<unused95>Hello',
        'Here is my thought process: It is a ferret. Here is my response: Hello',
        'Here are my reasoning steps:\nIt is a ferret.\n[BEGIN FINAL RESPONSE]\nHello\n[END FINAL RESPONSE]',
    ],
)
def test_what_is_left_is_what_was_said(text):
    assert spoken_reply(text) == 'Hello'


@pytest.mark.parametrize(
    'text',
    [
        '<think>I have a ferret',
        'Hello <think>I have a ferret',
        '<think>a<think>b</think>c',
        '<think>a</think>Hello<Thinking>b',
        '[THINK] so \\boxed{3}',
        '<|begin_of_thought|>hm',
        '<|channel|>analysis<|message|>I have a ferret',
        '<|channel|>analysis<|message|>I have a ferret<|end|>',
        'analysisWe have a ferret',
        '<longcat_think>I have a ferret',
        "Here's my thought process: I have a ferret",
        'Here are my reasoning steps:\nI have a ferret',
    ],
)
def test_a_thought_that_does_not_end_says_nothing(text):
    assert spoken_reply(text) is None


@pytest.mark.parametrize(
    'text',
    [
        '',
        ' I think <3 of it \n',
        'think>',
        '<b>bold</b>',
        '<thinker>',
        'analysis of it',
        '[thinks]',
        '<profile>\n',
        '<apricot>',
        '<rethink>',
        'Here is my response: yes',
    ],
)
def test_other_text_stays_as_it_is(text):
    assert spoken_reply(text) == text


def test_a_thought_that_the_prompt_opened_is_seen_to_be_unfinished():
    for opening in ('<think>\n', '[THINK]', '<|START_THINKING|>'):
        prompt = f'<|im_start|>assistant\n{opening}'
        assert spoken_reply(completion_after(prompt, 'It is a ferret')) is None
        assert spoken_reply(completion_after(prompt, 'It is <think> a ferret')) is None
    assert spoken_reply(completion_after('assistant\n<think>\n', 'It is a ferret.</think>Hello')) == 'Hello'
    assert spoken_reply(completion_after('assistant\n<think>\n\n</think>\n\n', 'Hello')) == 'Hello'
    assert completion_after('assistant\n', 'Hello') == 'Hello'
