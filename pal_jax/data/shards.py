"""The files that a source of rows names: a file, several with commas between, a glob, or a folder of shards."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from pal_jax.run import files

KINDS = '.jsonl', '.ndjson', '.json', '.csv', '.parquet'
# The kinds of files in words, for messages.
READ = 'JSON lines (.jsonl), a JSON array (.json), CSV with a header (.csv) and Parquet (.parquet)'
OF = re.compile(r'-of-0*(\d+)')


def files_of(source: str) -> list[Path]:
    """The files of a source in the order in which they are read. A path that is no folder is not looked for.

    Raises:
      ValueError: no file matches a glob, or a folder does not hold the shards of one set.
    """
    if os.path.isdir(source):
        return _shards(Path(source))
    # A file whose own name has a comma or a star is that file.
    if os.path.exists(source):
        return [Path(source)]
    # Each part may again be a folder or a glob.
    if ',' in source:
        return [path for part in source.split(',') for path in files_of(part.strip())]
    if glob.has_magic(source):
        matching = sorted(map(Path, glob.glob(source, recursive=True)))
        if not matching:
            raise ValueError(f'{source} is no file; check the pattern')
        return matching
    return [Path(source)]


def _shards(folder: Path) -> list[Path]:
    """The shards in a folder: files of rows whose names differ in their numbers alone, and which are all there."""
    if any(folder.glob('*.arrow')):
        raise ValueError(f'{folder} was written by save_to_disk; write its rows with to_parquet or to_json')
    paths = sorted(path for path in folder.iterdir() if files.format_of(path) in KINDS and path.name[0] != '.')
    names = {re.sub(r'\d+', '#', path.name): path.name for path in paths}
    # Files of several names may be parts for training and for tests, so one of them has to be named.
    if len(names) != 1:
        listed = f'files of several sets, {", ".join(sorted(names.values())[:3])}' if names else 'no file of rows'
        raise ValueError(f'{folder} is a folder with {listed}; name files of {READ}')
    # A name such as a-00000-of-00004 tells how many shards the set has.
    if (match := OF.search(paths[0].name)) and len(paths) != int(match[1]):
        raise ValueError(f'{folder} has {len(paths)} of {match[1]} files such as {paths[0].name}; get those missing')
    return paths
