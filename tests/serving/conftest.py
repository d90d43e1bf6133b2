"""Server processes that several files of tests share: each takes seconds."""

import pytest

from tests.support.browser import BROWSER, DRIVER, Browser
from tests.support.serving_tools import keyed_serving, make_random, serving

# Little of everything, and guarded.
FLAGS = (
  '--slots=1',
  '--max_queue=0',
  '--max_per_client=4',
  '--body_limit=4096',
  '--context_overflow=error',
  '--model_name=tiny',
  '--strict_model',
  '--allowed_hosts=api.example',
  '--cors_origins=https://good.example',
)


@pytest.fixture(scope='session')
def guarded_server(tmp_path_factory):
  """A server with keys, narrow limits, allowed hosts and origins."""
  with keyed_serving(tmp_path_factory.mktemp('guarded'), *FLAGS) as server:
    yield server


@pytest.fixture(scope='session')
def browser():
  """A headless Chromium."""
  if not (DRIVER and BROWSER):
    pytest.skip('needs chromium and chromedriver on the PATH')
  browser = Browser()
  yield browser
  browser.close()


@pytest.fixture(scope='session')
def structured_server(tmp_path_factory):
  """A chat model whose vocabulary has all of JSON and whose template, tools."""
  from tests.support.grammar_tools import templated

  workdir = tmp_path_factory.mktemp('structured') / 'run'
  make_random(workdir, templated(), spread=0.6, block_size=1024)
  with serving(workdir) as server:
    server.workdir = workdir
    yield server
