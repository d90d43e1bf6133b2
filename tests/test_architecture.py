"""The packages depend on each other in one direction; see docs/architecture.md.

All of it is read from the source, imports inside functions included.
"""

import ast
import collections
import functools
import importlib
import json
import pathlib
import re

import pytest

from launch.__main__ import COMMANDS
from tests.support.commands import run_all
from tests.support.workdirs import ROOT

# Everything that a package or module may import besides itself. `model` stands
# for gpt.model, and a module in the folder gpt/ for itself.
BASE = {'errors', 'files', 'fields', 'staging', 'unfinished'}
BASE |= {'terminal', 'logs', 'processor', 'devices', 'sharding', 'processes'}
MAY_IMPORT = {
  'errors': set(),
  'unfinished': set(),
  'files': {'errors', 'unfinished'},
  'staging': {'errors', 'unfinished'},
  'fields': {'errors', 'files'},
  'terminal': set(),
  'logs': {'terminal'},
  'processor': set(),
  'devices': {'errors', 'logs'},
  'sharding': {'errors', 'devices'},
  'processes': {'errors', 'logs'},
  'native': BASE,
  'model': BASE | {'native'},
  'kernels': BASE | {'model', 'native'},
  'tokenizers': BASE,
  'data': BASE | {'tokenizers'},
  'training': BASE | {'model', 'native'},
  'decoding': BASE | {'model', 'tokenizers', 'kernels'},
}
LEARNING = {*MAY_IMPORT}
MAY_IMPORT |= {
  'runs': LEARNING,
  'formats': LEARNING | {'runs'},
  'reports': LEARNING | {'runs', 'planning'},
  'planning': LEARNING | {'runs'},
  'due': set(),
  'config_check': LEARNING | {'runs'},
  'start': LEARNING | {'runs', 'formats'},
  'finish': LEARNING | {'runs', 'formats', 'trainer'},
  'trainer': LEARNING | {'runs', 'formats', 'start', 'planning', 'due'},
  'train': LEARNING
  | {'runs', 'formats', 'config_check', 'start', 'trainer', 'finish'}
  | {'planning'},
}
# Arrows between modules that the table forbids.
EXCEPTIONS = {
  ('gpt.runs.weights', 'gpt.formats.randygpt'),
  ('gpt.runs.weights_file', 'gpt.formats.tensor_files'),
}
SERVING_MAY_IMPORT = {
  'engine': {'metrics'},
  'service': {'engine', 'metrics', 'options'},
  'prompts': {'engine'},
  'generation': {'engine', 'metrics', 'prompts', 'service'},
  'http': {'engine', 'generation', 'metrics', 'options', 'prompts', 'service'},
}
# Files that run in another program's process, with its packages.
ELSEWHERE = ROOT / 'gpt' / 'formats' / 'hf_code'
MOST_LINES = 420
# Without comments and blank lines.
MOST_CPP_LINES = {'gpt/kernels': 700, 'gpt/native': 520}

# Overridden methods, which only a library calls.
CALLED_BY_LIBRARIES = {
  '_should_upgrade',  # uvicorn
  'alternatives_need_logprobs',  # pydantic
  'as_json',  # pydantic
  'collect',  # prometheus_client
  'emit',  # logging
  'few_choices',  # pydantic
  'fields_agree',  # pydantic
  'handle_exit',  # uvicorn
  'one_text',  # pydantic
  'preflight_response',  # starlette
  'read_format_and_includes',  # pydantic
  'readinto',  # io
  'read_structure',  # pydantic
  'read_tools',  # pydantic
  'refuse_foreign',  # pydantic
  'send_400_response',  # uvicorn
  'usage_needs_a_stream',  # pydantic
}
CALLED_BY_LIBRARIES |= {  # jinja2
  f'visit_{node}'
  for node in ('Call', 'Compare', 'Concat', 'Const', 'Filter', 'For')
  + ('Getitem', 'Operand', 'TemplateData', 'Dict', 'List', 'Tuple')
}


@functools.cache
def modules() -> dict[str, pathlib.Path]:
  """{'gpt.model.config': its file, ...} of all packages of the program."""
  found = {}
  for package in ('gpt', 'serving', 'launch', 'configs'):
    for path in sorted((ROOT / package).rglob('*.py')):
      if ELSEWHERE not in path.parents:
        parts = path.relative_to(ROOT).with_suffix('').parts
        name = '.'.join(parts).removesuffix('.__init__')
        found[name] = path
  return found


@functools.cache
def tree(path) -> ast.Module:
  return ast.parse(path.read_text(encoding='utf-8'))


def imported_names(source) -> set[str]:
  """Dotted names of all imports of a file or tree: 'gpt.model.GPT', ..."""
  names = set()
  parsed = source if isinstance(source, ast.Module) else tree(source)
  for node in ast.walk(parsed):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{source}: relative import'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


@functools.cache
def imports() -> dict[str, set[str]]:
  """{module: modules of the program that it imports}."""
  graph = {}
  for module, path in modules().items():
    graph[module] = set()
    for name in imported_names(path):
      while name and name not in modules():
        name = name.rpartition('.')[0]
      if name and name != module:
        graph[module].add(name)
  return graph


def arrows(package: str) -> list[tuple[str, str, str, str]]:
  """(part, other part, module, imported module) within a top package."""
  found = []
  for module, targets in imports().items():
    for target in targets:
      if module.startswith(f'{package}.') and target.startswith(f'{package}.'):
        parts = module.split('.')[1], target.split('.')[1]
        if parts[0] != parts[1]:
          found.append((*parts, module, target))
  return found


def test_every_part_of_gpt_imports_only_what_is_below_it():
  wrong = [
    f'{module} imports {target}'
    for part, other, module, target in arrows('gpt')
    if other not in MAY_IMPORT[part] and (module, target) not in EXCEPTIONS
  ]
  assert not wrong, '\n'.join(wrong)


def imported_at_start(module: str) -> set[str]:
  """Top-level packages that importing a module imports, directly or not."""
  seen, queue, packages = set(), [module], set()
  while queue:
    module = queue.pop()
    if module in seen:
      continue
    seen.add(module)
    body = [
      node
      for node in tree(modules()[module]).body
      if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    for name in imported_names(ast.Module(body, [])):
      packages.add(name.split('.')[0])
      while name and name not in modules():
        name = name.rpartition('.')[0]
      queue += [name] if name else []
  return packages


@pytest.mark.parametrize(
  'module',
  ['gpt.runs.load', 'gpt.decoding.generation', 'serving.server', 'launch.cli'],
)
def test_using_a_model_does_not_import_what_training_needs(module):
  """Each of these packages takes 0.1 s or more to import."""
  slow = {'optax', 'orbax', 'matplotlib', 'google', 'safetensors'}
  assert not imported_at_start(module) & slow


@pytest.mark.parametrize(
  'command',
  'train generate chat serve evaluate export info import_model publish'.split(),
)
def test_a_command_checks_its_flags_before_slow_imports(command):
  """Wrong flags and --help are answered at once."""
  slow = {'numpy', 'jax', 'flax', 'optax', 'jinja2', 'tokenizers', 'pydantic'}
  assert not imported_at_start(f'launch.{command}') & slow


def test_the_engine_knows_nothing_of_http():
  """Service and generation neither: serving/http alone translates errors."""
  wrong = [
    f'{module} imports {target}'
    for part, other, module, target in arrows('serving')
    if part in SERVING_MAY_IMPORT and other not in SERVING_MAY_IMPORT[part]
  ]
  assert not wrong, '\n'.join(wrong)
  for module, path in modules().items():
    libraries = {name.split('.')[0] for name in imported_names(path)}
    if not module.startswith('serving.http'):
      assert 'pydantic' not in libraries, module
      if module != 'serving.server':
        assert not libraries & {'starlette', 'uvicorn', 'h11'}, module


@pytest.mark.parametrize(
  'package, others',
  [
    ('gpt', {'gpt'}),
    ('serving', {'serving', 'gpt'}),
    ('configs', {'configs'}),
  ],
)
def test_packages_are_layered(package, others):
  wrong = [
    f'{module} imports {target}'
    for module, targets in imports().items()
    for target in targets
    if module.split('.')[0] == package and target.split('.')[0] not in others
  ]
  assert not wrong, '\n'.join(wrong)


def test_imports_have_no_cycle():
  finished, path = set(), []

  def visit(module):
    assert module not in path, ' -> '.join([*path, module])
    if module not in finished:
      path.append(module)
      for target in sorted(imports()[module]):
        visit(target)
      finished.add(path.pop())

  for module in modules():
    visit(module)


def test_only_launchers_read_command_line_flags():
  wrong = [
    module
    for module, path in modules().items()
    if not module.startswith('launch.')
    and any(name.startswith('absl') for name in imported_names(path))
  ]
  assert not wrong


def test_every_module_can_be_imported():
  for module in modules():
    if not module.startswith('launch'):
      importlib.import_module(module)
  # Launchers define flags of the same names: each in a process of its own.
  launchers = [f'launch.{name}' for name in COMMANDS]
  ended = run_all([[name, '--help'] for name in launchers])
  assert not {
    name: done.err for name, done in zip(launchers, ended) if done.code
  }


def test_no_file_is_long():
  long = {
    str(path.relative_to(ROOT)): lines
    for path in modules().values()
    if (lines := len(path.read_text().splitlines())) > MOST_LINES
  }
  assert not long


@pytest.mark.parametrize('folder', MOST_CPP_LINES)
def test_the_kernels_stay_a_small_cpp_source(folder):
  sources = [x for x in (ROOT / folder).iterdir() if x.suffix in ('.h', '.cc')]
  lines = [x.strip() for path in sources for x in path.read_text().splitlines()]
  code = [x for x in lines if x and not x.startswith('//')]
  assert 0 < len(code) <= MOST_CPP_LINES[folder]


def names_in(source: str) -> collections.Counter:
  """The number of occurrences of each identifier in Python code."""
  found = collections.Counter()
  for node in ast.walk(ast.parse(source)):
    match node:
      case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
        found[name] += 1
      case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
        found[node.name] += 1
      case ast.alias(name=name):
        found.update(name.split('.'))
      case ast.keyword(arg=str(name)):
        found[name] += 1
  return found


def definitions(path):
  """Names of a module's functions, classes, constants and methods."""
  for node in tree(path).body:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      yield node.name
    elif isinstance(node, ast.ClassDef):
      yield node.name
      for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
          yield child.name
    elif isinstance(node, ast.Assign):
      yield from (t.id for t in node.targets if isinstance(t, ast.Name))


def notebook_code() -> str:
  cells = [
    cell
    for path in sorted((ROOT / 'notebooks').glob('*.ipynb'))
    for cell in json.loads(path.read_text())['cells']
    if cell['cell_type'] == 'code'
  ]
  source = '\n'.join(''.join(cell['source']) for cell in cells)
  return re.sub(r'(?m)^( *)[%!].*$', r'\1pass', source)  # IPython's commands.


def test_nothing_is_defined_for_tests_alone():
  used, defined = names_in(notebook_code()), collections.Counter()
  where = {}
  for module, path in modules().items():
    source = path.read_text()
    if path.name == '__init__.py':  # A re-export is no use.
      source = '\n'.join(
        ast.unparse(node)
        for node in tree(path).body
        if not isinstance(node, ast.ImportFrom)
      )
    used += names_in(source)
    for name in definitions(path):
      defined[name] += 1
      where[name] = module
  dead = {
    f'{where[name]}: {name}'
    for name, count in defined.items()
    if used[name] <= count
    and not (name.startswith('__') and name.endswith('__'))
    and name not in CALLED_BY_LIBRARIES
  }
  assert CALLED_BY_LIBRARIES <= defined.keys()
  assert not dead, '\n'.join(sorted(dead))
