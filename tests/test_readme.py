"""The README and docs/ name only what exists.

Checked: links and anchors, commands with their flags and config keys, configs,
make targets, paths, tests and environment variables.
"""

import functools
import pathlib
import re
import subprocess
import sys

import pytest

from configs import default
from tests.support.workdirs import ROOT

PAGES = [
  *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
  *sorted((ROOT / 'docs').glob('*.md')),
]
# `rgpt train ARGS` or `python -m launch.train ARGS`, to the end of the command.
COMMAND = re.compile(r'(?:rgpt |launch\.)((?:bench\.)?[a-z_]+)\b([^\n|;#&]*)')
FLAG = re.compile(r'--([a-z][\w-]*)(?![\w.-])')


def name(page: pathlib.Path) -> str:
  return str(page.relative_to(ROOT))


@pytest.fixture(params=PAGES, ids=name)
def page(request) -> pathlib.Path:
  return request.param


def prose(page: pathlib.Path) -> str:
  """The text of a page without its code blocks."""
  return re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.M | re.S)


def code(page: pathlib.Path) -> list[str]:
  """The lines of its code blocks and its `spans`; a command is one line."""
  blocks = re.findall(r'^```.*?\n(.*?)^```$', page.read_text(), re.M | re.S)
  lines = '\n'.join(blocks).replace('\\\n', '').splitlines()
  spans = re.findall(r'`([^`]+)`', prose(page))
  return lines + [' '.join(span.split()) for span in spans]


def anchors(page: pathlib.Path) -> set[str]:
  """The anchors that GitHub gives the headings of a page."""
  headings = re.findall(r'^#+ (.+)$', prose(page), re.M)
  return {
    re.sub(r'[^\w -]', '', h.strip().lower()).replace(' ', '-')
    for h in headings
  }


def commands(page: pathlib.Path) -> list[tuple[str, str]]:
  """(module, arguments) of every command of ours."""
  return [
    (f'launch.{module}', arguments)
    for line in code(page)
    for part in line.split(' -- ')  # launch.local starts another command.
    for module, arguments in COMMAND.findall(part)
    if module != 'py'
  ]


# absl's flags are global, so each module is imported in a process of its own.
PRINT_FLAGS = """
import importlib, os, sys
from absl import flags

for name in sys.argv[1:]:
  child = os.fork()
  if not child:
    importlib.import_module(name)
    print(name, *sorted(flags.FLAGS), flush=True)
    os._exit(0)
  assert os.waitpid(child, 0)[1] == 0, name
"""


@functools.cache
def defined_flags() -> dict[str, set[str]]:
  """{module: flags} of every launcher that a page names."""
  modules = sorted({module for page in PAGES for module, _ in commands(page)})
  modules = [m for m in modules if source_of(m).exists()]
  out = subprocess.check_output(
    [sys.executable, '-c', PRINT_FLAGS, *modules], cwd=ROOT, text=True
  )
  found = {}
  for line in out.splitlines():
    module, *flags = line.split()
    found[module] = {'help', *flags}
    # Defined when the command line is read.
    if 'config_flag.define(' in source_of(module).read_text():
      found[module].add('config')
  assert sorted(found) == modules
  return found


def source_of(module: str) -> pathlib.Path:
  return ROOT / f'{module.replace(".", "/")}.py'


def test_readme_has_at_most_200_lines():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 200


def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
    if re.match(r'https?:|mailto:', target):
      continue
    path, _, anchor = target.partition('#')
    other = (page.parent / path).resolve() if path else page
    assert other.exists(), target
    assert not anchor or anchor in anchors(other), target


def test_every_page_is_linked_from_the_readme():
  readme = (ROOT / 'README.md').read_text()
  missing = [name(p) for p in PAGES[1:] if f']({name(p)}' not in readme]
  assert not missing


def test_commands_exist(page):
  for module, _ in commands(page):
    path = ROOT / module.replace('.', '/')
    assert path.is_dir() or path.with_suffix('.py').exists(), module


def test_commands_have_their_flags(page):
  unknown = [
    f'{module} --{flag}'
    for module, arguments in commands(page)
    for flag in FLAG.findall(arguments)
    if flag not in defined_flags()[module]
  ]
  assert not unknown


def test_configs_exist(page):
  text = page.read_text()
  names = set(re.findall(r'configs/(\w+)\.py', text))
  names |= set(re.findall(r'--config=([a-z]\w*)\b(?![./])', text))
  assert not [n for n in names if not (ROOT / f'configs/{n}.py').exists()]


def test_config_keys_exist(page):
  """`--config.a.b`, and spans such as `opt.clip` or `opt.clip='none'`."""
  config = default.get_config()
  groups = '|'.join(k for k, v in config.items() if hasattr(v, 'keys'))
  keys = set(re.findall(r'--config\.([a-z][\w.]*\w)', page.read_text()))
  for span in code(page):
    keys |= set(re.findall(rf'^((?:{groups})\.[a-z]\w*)(?:=.*)?$', span))
  keys = {key for key in keys if not re.search(r'\.(py|json|bin|md)$', key)}
  for key in keys:
    value = config
    for part in key.split('.'):
      assert part in value, key
      value = value[part]


def test_paths_exist(page):
  """Spans that begin with a folder of this repository; NAME is a new file's."""
  folders = r'(?:gpt|configs|launch|serving|tests|docs|notebooks|\.ci|\.github)'
  for span in code(page):
    if re.fullmatch(rf'{folders}/[\w./*-]*', span) and 'NAME' not in span:
      assert list(ROOT.glob(span.rstrip('/'))), span


def tree_of_architecture() -> set[str]:
  """Paths in the block under "The tree": folders by indentation, files."""
  text = (ROOT / 'docs/architecture.md').read_text()
  block = re.search(r'^## The tree\n+```\n(.*?)^```', text, re.M | re.S)
  paths, folders = set(), []
  for line in block.group(1).splitlines():
    depth = (len(line) - len(line.lstrip())) // 2
    for file in re.findall(r'[\w.]+(?:/|\.py)(?=[\s,;]|$)', line):
      folders[depth:] = [file] if file.endswith('/') else []
      paths.add(''.join(folders[:depth]) + file)
  return paths


def test_architecture_names_existing_files_and_every_package():
  paths = tree_of_architecture()
  assert not [path for path in paths if not (ROOT / path).exists()]
  packages = {
    f'{init.parent.relative_to(ROOT)}/'
    for folder in ('gpt', 'launch', 'serving')
    for init in (ROOT / folder).rglob('__init__.py')
  }
  assert not packages - {'launch/bench/peers/'} - paths


def test_tests_exist(page):
  """`tests/data/test_x.py::test_y`, with or without the folder tests/."""
  for span in code(page):
    if match := re.fullmatch(r'(?:tests/)?([\w/]*\.py)::(test_\w+)', span):
      file, test = match.groups()
      assert f'def {test}(' in (ROOT / 'tests' / file).read_text(), span


def test_make_targets_exist(page):
  makefile = (ROOT / 'Makefile').read_text()
  for span in code(page):
    if match := re.match(r'make ([a-z-]+)\b', span):
      target = match.group(1)
      assert re.search(rf'^{target}:', makefile, re.M), target


@functools.cache
def program() -> str:
  """All our source, each string literal on one line."""
  source = '\n'.join(
    path.read_text()
    for folder in ('gpt', 'launch', 'serving')
    for path in (ROOT / folder).rglob('*.py')
  )
  return re.sub(r"""['"]\s*\n\s*f?['"]""", '', source)


def test_environment_variables_exist(page):
  variables = set(re.findall(r'\bRGPT_[A-Z_]+\b', page.read_text()))
  assert not [v for v in variables if v not in program()]


def test_messages_that_are_explained_exist():
  """The headings `message` of troubleshooting, N, M and ... being anything."""
  page = (ROOT / 'docs/troubleshooting.md').read_text()
  messages = re.findall(r'^\*\*`(.+?)`\*\*', page, re.M)
  assert messages
  for message in messages:
    for fixed in re.split(r'\b[NM]\b|\.\.\.', message):
      assert fixed.strip(' ().') in program(), message
