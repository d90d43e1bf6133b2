"""What the README names exists: files, modules, configs, flags, tests."""

import importlib.util
import re

import pytest
from workdirs import ROOT

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


@pytest.mark.parametrize(
  'module', named(r'(?:python -m |`)(launch(?:\.\w+)+)')
)
def test_modules_exist(module):
  assert importlib.util.find_spec(module)


@pytest.mark.parametrize('key', named(r'--config\.([a-z][\w.]*)='))
def test_config_keys_exist(key):
  from configs import default

  value = default.get_config()
  for part in key.split('.'):
    value = value[part]
