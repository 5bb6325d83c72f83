"""Files that a command line names and that are not there.

The module uses the standard library alone, so that a wrong name is told before libraries are imported for seconds.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from pal_jax.run.shipped import missing_config, with_config

# Keys of a config whose values name files that a run reads.
KEYS = (
    'data', 'data.train', 'data.test', 'dialogue.profiles', 'dialogue.personalities', 'dialogue.system',
    'dialogue.user', 'dialogue.slotter', 'reward.matcher', 'reward.judge', 'reward.function', 'play.games',
    'preferences', 'prompts.train', 'prompts.test', 'annotate.annotator', 'annotate.second', 'evaluate.judge',
    'rl.reward', 'rl.person', 'rl.game', 'dpo.loss', 'recipe', '*.source', 'texts.*', 'tables.*',
)  # fmt: skip
LISTS = 'texts', 'tables'  # keys whose values are lists of such names
# Keys and flags of commands whose values name files that may change while a run goes on.
OTHERS = 'eval.profiles', 'texts', 'tables', 'choices', 'ask', 'questions', 'history', 'rows'
NAME = re.compile(r'([^*?\[]+\.(?:jsonl|ndjson|json|csv|parquet|ya?ml|npz|py)(?:\.gz|\.xz)?)(?::\w+)?', re.IGNORECASE)
ELSEWHERE = 'hf:', 'tfds:', 'python:', '://'


def first_missing(arguments: Sequence[str]) -> str:
    """A line on the first config or file that arguments `--NAME=VALUE` name and that is not there; '' where all are."""
    for argument in with_config(arguments):
        flag, _, value = argument.lstrip('-').partition('=')
        if flag == 'config' and value and (line := missing_config(os.path.expanduser(value))):
            return line
        named = any(fnmatch(flag.removeprefix('config.'), pattern) for pattern in (*KEYS, *OTHERS))
        # A file whose own name has a comma is that file.
        if not named or os.path.exists(value):
            continue
        for text in re.split(r'[,()\'"]', value):
            match = None if any(mark in text for mark in ELSEWHERE) else NAME.fullmatch(text.strip())
            # A kind, such as `personas:`, may stand before the path.
            path = Path(os.path.expanduser(match[1].rpartition(':')[2])) if match else None
            if path and not path.exists():
                return f'--{flag}={value}: {_nothing(path)}'
    return ''


def _nothing(path: Path) -> str:
    """The words for a file that is not there, with the name in its folder that is most like its own."""
    if not path.parent.is_dir():
        return f'there is no folder {path.parent}; it is looked for in {Path.cwd()}'
    names = sorted(os.listdir(path.parent))
    # All files of one kind have the same ending, which makes no names alike.
    near = [name for name in difflib.get_close_matches(path.name, names, 5) if _likeness(path.name, name) >= 0.7]
    same = [name for name in names if name.endswith(path.suffix)]
    others = f'it has {", ".join(same[:3])}{", ..." if len(same) > 3 else ""}' if same else 'check the name'
    meant = f'did you mean {path.with_name(near[0])}?' if near else others
    return f'there is no file {path.name} in {path.parent.absolute()}; {meant}'


def _likeness(name: str, other: str) -> float:
    """The share of letters that the names of two files have in common, without their endings."""
    return difflib.SequenceMatcher(None, name.partition('.')[0], other.partition('.')[0]).ratio()
