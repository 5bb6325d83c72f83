"""Marks in rows that say what is not to be learnt.

A turn of the assistant is not learnt where one of `LEARNT` is false, as `weight` in OpenAI's files, `loss` in
ms-swift's, `train` or `training` in Axolotl's, or one of `LEFT_OUT` is true. A row is not learnt where one of these
marks it, or where `label` (TRL's KTO) or `kto_tag` (LLaMA-Factory's) says that its completion is unwanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pal_jax.run import files

LEARNT = (
    *('weight', 'loss', 'loss_mask', 'loss_scale', 'loss_weight', 'compute_loss'),
    *('learn', 'train', 'training', 'trainable', 'train_on'),
)
LEFT_OUT = 'masked', 'ignore', 'ignored', 'no_loss'
# `label` is not among these keys: the label of a row that is one text is its class, and says nothing of a completion.
KTO = 'kto_tag', 'kto_label', 'desirable'
# Keys that say of a row with a completion that the completion is wanted.
WANTED = 'label', *KTO
OF_ROWS = *WANTED, *LEARNT, *LEFT_OUT
# Marks of parts, or of unclear sense, which are refused.
PARTIAL = (
    *('mask', 'loss_masks', 'token_mask', 'completion_mask', 'train_detail', 'training_detail'),
    *('assistant_mask', 'assistant_masks', 'assistant_tokens_mask'),
)

_VALUES: dict[str, bool] = dict.fromkeys(('true', 'yes', '1', '1.0', 'desirable', 'wanted', 'chosen'), True)
_VALUES |= dict.fromkeys(('false', 'no', '0', '0.0', '-1', '-1.0', 'undesirable', 'unwanted', 'rejected'), False)


def is_learnt(message: Mapping[str, Any], place: str) -> bool:
    """False for an assistant's message that is marked as not to be learnt.

    Raises:
      ValueError: a mark is neither true nor false (1 or 0), two contradict each other, or one says that a turn of
        another than the assistant is learnt.
    """
    for name in PARTIAL:
        if message.get(name) is not None:
            raise ValueError(f'{place}: {name!r} is not supported; whole turns are learnt or not, by weight=1 or 0')
    marks = {name: _mark(message[name]) for name in (*LEARNT, *LEFT_OUT) if message.get(name) is not None}
    for name, mark in marks.items():
        if mark is None:
            raise ValueError(f'{place}: {name}={files.short_repr(message[name])} must be 0 or 1, true or false')
    # Keys of two senses say the same where one is true and the other is false.
    learnt = {name: mark == (name in LEARNT) for name, mark in marks.items()}
    if len(set(learnt.values())) > 1:
        raise ValueError(f'{place}: {" and ".join(learnt)} contradict each other; leave one of them')
    if message.get('role') != 'assistant':
        if marks.get('weight') is False:
            raise ValueError(
                f'{place}: weight={files.short_repr(message["weight"])} is for the assistant alone; take it out'
            )
        if wrong := [name for name, value in learnt.items() if value and name != 'weight']:
            raise ValueError(
                f'{place}: {wrong[0]}={files.short_repr(message[wrong[0]])} asks to learn a turn of '
                f"{message.get('role')}, and the assistant's turns alone are learnt; take it out"
            )
        return True
    return all(learnt.values())


def check_row(record: Mapping[str, Any], wanted: Sequence[str] = ()) -> None:
    """Raise ValueError where a row, or parts of it, are marked as not learnt, or its completion as unwanted, by one of
    the keys `wanted`."""
    for name in (*LEARNT, *LEFT_OUT, *PARTIAL):
        if isinstance(record.get(name), list | dict):
            raise ValueError(f'{name!r} of a row is not supported; mark messages, each by weight=1 or 0')
    for name in (*wanted, *LEARNT, *LEFT_OUT):
        if _mark(record.get(name)) is (name in LEFT_OUT):
            raise ValueError(
                f'{name!r} is {files.short_repr(record[name])}, which marks the row as one that is not learnt, and '
                'nothing here learns from unwanted completions; delete the row, or the mark if it means something else'
            )


def check_part(part: Mapping[str, Any], place: str) -> None:
    """Raise ValueError where a part of a message's content has a mark of its own."""
    if marked := [name for name in (*LEARNT, *LEFT_OUT, *PARTIAL) if part.get(name) is not None]:
        raise ValueError(f'{place}: {marked[0]!r} of a part is not supported; whole turns are learnt, by weight=1 or 0')


def _mark(value: Any) -> bool | None:
    """A mark as True or False; None for a value that is neither."""
    return _VALUES.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
