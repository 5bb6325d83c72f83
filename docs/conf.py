"""The site: Sphinx with MyST reads the pages of this folder; `make docs` builds it without a network.

The pages of commands, keys and metrics are written here before Sphinx reads them, from the commands' own help, the
settings' dataclasses and the glossary of figures, into `reference/`; git ignores them.
"""

from __future__ import annotations

import ast
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
logging.getLogger('absl').setLevel(logging.WARNING)
DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from pal_jax import __version__  # noqa: E402
from pal_jax.__main__ import COMMANDS  # noqa: E402

project, author, release = 'pal_jax', 'the authors of pal_jax', __version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton']
html_theme = 'furo'
html_title = 'pal_jax'
html_show_copyright = False
html_static_path = html_css_files = ['site.css']  # lines of code are broken where they are too long
exclude_patterns = ['_build']
napoleon_use_ivar = True
myst_heading_anchors = 4  # links to headings, as on GitHub
myst_linkify_fuzzy_links = False
default_role = 'code'
autodoc_typehints = 'signature'
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
autodoc_member_order = 'bysource'
# A block of JSON may have ... in it, and a page may leave a level of headings out.
suppress_warnings = ['misc.highlighting_failure', 'myst.header']


def commands_page() -> str:
    """The help of every command."""
    lines = [
        '# Commands',
        '',
        '`pal-jax NAME --help` prints what stands here.',
    ]
    for name, module in COMMANDS.items():
        path = DOCS.parent / f'{module.replace(".", "/")}.py'
        usage = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
        lines += ['', f'## {name}', '', '```text', usage, '```']
    return '\n'.join(lines) + '\n'


def keys_page(config: Path) -> str:
    """Every key of a config with its default, its meaning and its choices."""
    import runpy

    from pal_jax.run import keys

    settings = runpy.run_path(str(config))['get_config']('')
    name = config.stem
    lines = [f'# {name}', '', f'The keys of `--config={name}`; `--config.KEY=VALUE` changes one.']
    for section in keys.sections(settings):
        if not section.keys:
            continue
        title = section.name[:-1] or 'the run'
        lines += ['', f'## {title}', '', f'{keys.title_of(section)} (`{section.place}`).', '']
        lines += ['| key | default | meaning |', '|---|---|---|']
        lines += [
            f'| `{key.name}` | {cell(keys.plain_text(key.value))} | {escaped(keys.with_choices(key))} |'
            for key in section.keys
        ]
    return '\n'.join(lines) + '\n'


def metrics_page() -> str:
    """The words of every figure: those of all methods, then those that a method adds."""
    from pal_jax.run import glossary

    lines = [
        '# Metrics',
        '',
        'The figures of `metrics.jsonl`, `evals.jsonl` and reports. A part in braces stands for any word. All figures '
        f'may have the endings {", ".join(f"`{ending}`" for ending in glossary.ENDINGS)}.',
    ]
    methods = sorted(path.parent.name for path in glossary.RECIPES.glob('*/figures.py'))
    parts = {'All methods': glossary.CORE} | {name: glossary.words_of(name) for name in methods}
    for title, words in parts.items():
        lines += ['', f'## {title}']
        for group, figures in words.figures.items():
            known = {} if words is glossary.CORE else glossary.CORE.figures[group]
            added = {name: said for name, said in figures.items() if known.get(name) != said}
            if added:
                lines += ['', f'**{group}**', '', '| figure | meaning |', '|---|---|']
                lines += [f'| `{name}` | {escaped(said)} |' for name, said in added.items()]
    return '\n'.join(lines) + '\n'


def cell(text: str) -> str:
    return f'`{text}`'.replace('|', '\\|') if text else ''


def escaped(text: str) -> str:
    """A text as it is, in a cell of a table."""
    for letter in '\\|<>*_[]$':
        text = text.replace(letter, f'\\{letter}')
    return text


def write_reference(_: object) -> None:
    """Write the generated pages; those that have not changed keep their time."""
    configs = sorted((DOCS.parent / 'configs').glob('[!_]*.py'))
    pages = {'commands.md': commands_page(), 'metrics.md': metrics_page()} | {
        f'keys/{path.stem}.md': keys_page(path) for path in configs
    }
    names = '\n'.join(path.stem for path in configs)
    pages['keys/index.md'] = (
        '# Keys of configs\n\nA page for each config. `pal-jax train --config=NAME --help` prints the same.\n\n'
        f'```{{toctree}}\n{names}\n```\n'
    )
    for name, text in pages.items():
        path = DOCS / 'reference' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding='utf-8') != text:
            path.write_text(text, encoding='utf-8')


def mark_examples(_app: object, what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """Make code of the indented blocks of a module's docstring."""
    if what == 'module':
        before = ['', *lines]
        marks = [['::', ''] if line[:2] == '  ' and not before[k] else [] for k, line in enumerate(lines)]
        lines[:] = [part for mark, line in zip(marks, lines, strict=True) for part in (*mark, line)]


def setup(app: object) -> None:
    app.connect('builder-inited', write_reference)  # type: ignore[attr-defined]
    app.connect('autodoc-process-docstring', mark_examples)  # type: ignore[attr-defined]
