"""What the README names exists: files, modules, configs, flags, tests."""

import importlib.util
import re

import pytest

from tests.support.workdirs import ROOT

README = (ROOT / 'README.md').read_text()


def named(pattern: str) -> list[str]:
  return sorted(set(re.findall(pattern, README)))


@pytest.mark.parametrize('link', named(r'\]\(([^)#:]+)\)'))
def test_links_lead_somewhere(link):
  assert (ROOT / link).exists()


@pytest.mark.parametrize('anchor', named(r'\]\(#([^)]+)\)'))
def test_anchors_are_headings(anchor):
  headings = re.findall(r'^#+ (.+)$', README, re.M)
  assert anchor in [
    re.sub(r'[^\w -]', '', h.lower()).replace(' ', '-') for h in headings
  ]


@pytest.mark.parametrize('test', named(r'`(test_\w+\.py::test_\w+)`'))
def test_tests_that_show_something_exist(test):
  file, name = test.split('::')
  assert f'\ndef {name}(' in (ROOT / 'tests' / file).read_text()


@pytest.mark.parametrize('config', named(r'configs/\w+\.py'))
def test_configs_exist(config):
  assert (ROOT / config).exists()


@pytest.mark.parametrize('module', named(r'(?:python -m |`)(launch(?:\.\w+)+)'))
def test_modules_exist(module):
  assert importlib.util.find_spec(module)


def used_flags() -> list[tuple[str, str]]:
  """(module, flag) of every command of ours in the README and the results."""
  text = README + (ROOT / 'RESULTS.md').read_text()
  text = text.replace('\\\n', '')  # One line a command.
  commands = re.findall(r'(launch(?:\.\w+)+)\b([^\n`|]*)', text)
  return sorted(
    {
      (module, flag)
      for module, arguments in commands
      for flag in re.findall(r'--([a-z_]+)\b(?![-.])', arguments)
    }
  )


def defined_flags(module: str) -> set[str]:
  """Flags that a module defines, or one beside it that it imports."""
  source = (ROOT / f'{module.replace(".", "/")}.py').read_text()
  flags = set(re.findall(r"DEFINE_\w+\(\s*'(\w+)'", source))
  if 'config_flag.define(' in source:
    flags.add('config')
  imports = re.findall(r'^from (launch\S*) import (.+)', source, re.M)
  for package, names in imports:
    for name in set(names.split(', ')) & {'sampling_flags', 'train'}:
      flags |= defined_flags(f'{package}.{name}')
  return flags


@pytest.mark.parametrize('module, flag', used_flags())
def test_flags_exist(module, flag):
  assert flag in defined_flags(module)


@pytest.mark.parametrize('key', named(r'--config\.([a-z][\w.]*)='))
def test_config_keys_exist(key):
  from configs import default

  value = default.get_config()
  for part in key.split('.'):
    value = value[part]
