"""The page in a real browser.

Skipped, with the reason, where there is no Chromium to drive.
"""

import json
import re
import shutil
import subprocess

import httpx
import pytest

from gpt.tokenizers import build_tokenizer
from tests.support.browser import finish, open_page, set_fields
from tests.support.serving_tools import (
  chat_tokenizer,
  make_random,
  serving,
  wait_until,
)
from tests.support.workdirs import make_parrot

MARKUP = '<img src=x onerror=alert(1)><script>alert(2)</script>&lt;b&gt;'


def test_a_prompt_is_continued_in_place(browser, server):
  open_page(browser, server)
  assert browser.text('name') == 'random'
  assert 'randygpt-1L-4H-32D' in browser.text('card')
  set_fields(browser, max_tokens=40, seed=5)
  browser.type('text', 'Hello')
  browser.click('go')
  finish(browser)
  with server.client() as client:
    wanted = client.post(
      '/v1/completions', json={'prompt': 'Hello', 'max_tokens': 40, 'seed': 5}
    ).json()
  text = wanted['choices'][0]['text']
  assert browser.text('text') == 'Hello' + text
  assert re.search(r'first after \d+ ms', browser.text('status'))
  assert 'seed 5' in browser.text('status')
  # The same text lies behind, in as many tinted pieces as it has tokens.
  assert browser.text('tints') == 'Hello' + text + '\n'
  spans = browser.run("return document.querySelectorAll('#tints span').length")
  assert spans == len(text)

  browser.click('again')
  wait_until(browser.idle)
  assert browser.text('text') == 'Hello' + text
  assert [m for m in browser.messages() if m['level'] == 'SEVERE'] == []


def test_stop_ends_the_request_on_the_server(browser, server):
  open_page(browser, server)
  set_fields(browser, max_tokens=1000000)
  browser.type('text', 'a')
  browser.run(
    'const old = fetch; window.fetch = (url, o) => old(url, o && o.body ? '
    "{...o, body: o.body.replace('{', '{\"ignore_eos\":true,')} : o)"
  )
  browser.click('go')
  wait_until(lambda: len(browser.text('text')) > 20)
  browser.click('stop')
  wait_until(browser.idle)
  assert 'stopped' in browser.text('status')
  wait_until(server.is_idle)


def test_chat_appears_for_chat_models(browser, server):
  open_page(browser, server)
  browser.click('tab-chat')
  set_fields(browser, max_tokens=20, seed=2)
  browser.type('say', 'Who are you?')
  browser.click('go')
  wait_until(browser.idle)
  turns = browser.run(
    "return [...document.querySelectorAll('.turn')].map(e => e.textContent)"
  )
  with server.client() as client:
    body = {
      'messages': [{'role': 'user', 'content': 'Who are you?'}],
      'max_tokens': 20,
      'seed': 2,
    }
    wanted = client.post('/v1/chat/completions', json=body).json()
  assert turns == ['Who are you?', wanted['choices'][0]['message']['content']]


def test_errors_are_shown_and_the_page_stays_usable(browser, server):
  open_page(browser, server)
  set_fields(browser, temperature=7)
  browser.type('text', 'a')
  browser.click('go')
  wait_until(lambda: 'temperature' in browser.text('error'))
  set_fields(browser, temperature=1, max_tokens=3)
  browser.click('go')
  finish(browser)
  assert browser.text('error') == ''


def test_regenerate_does_not_discard_later_edits(browser, server):
  open_page(browser, server)
  set_fields(browser, max_tokens=5, seed=1)
  browser.type('text', 'Once')
  browser.click('go')
  finish(browser)
  offered = "return !document.getElementById('again').disabled"
  assert browser.run(offered)
  first = browser.text('text')
  browser.type('text', ' and then')
  assert not browser.run(offered)
  browser.clear('text')
  browser.type('text', 'Something else')
  assert not browser.run(offered)
  browser.clear('text')
  browser.type('text', first)
  assert browser.run(offered)
  set_fields(browser, seed=1)
  browser.click('again')
  wait_until(browser.idle)
  assert browser.text('text') == first


def test_the_curl_command_works_as_it_is_shown(browser, server):
  open_page(browser, server)
  set_fields(browser, max_tokens=5, seed=1)
  browser.type('text', "a  b'c")
  browser.run('navigator.clipboard.writeText = () => Promise.reject()')
  browser.click('curl')
  # What a selection of it copies.
  command = browser.run("return document.getElementById('status').innerText")
  assert r"a  b'\''c" in command
  if shutil.which('curl'):
    out = subprocess.run(
      ['sh', '-c', command], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(out)['usage']['completion_tokens'] == 5


def test_a_message_without_an_answer_can_be_sent_again(browser, server):
  def turns():
    return browser.run(
      "return [...document.querySelectorAll('.turn')].map(e => "
      '[e.classList[1], e.textContent])'
    )

  def send(text):
    browser.type('say', text)
    browser.click('go')
    wait_until(browser.idle)

  open_page(browser, server)
  browser.click('tab-chat')
  set_fields(browser, temperature=7, max_tokens=9, seed=2)
  send('One')
  assert 'temperature' in browser.text('error')
  assert turns() == [['user', 'One']]
  set_fields(browser, temperature=0.8)
  browser.click('again')
  wait_until(browser.idle)
  assert browser.text('error') == ''
  assert [role for role, _ in turns()] == ['user', 'assistant']
  set_fields(browser, temperature=7)
  send('Two')
  set_fields(browser, temperature=0.8)
  send('Three')
  first, _, third, last = turns()
  assert (first[1], third[1], last[0]) == ('One', 'Three', 'assistant')


def test_markup_from_the_model_stays_text(browser, tmp_path):
  tokenizer = build_tokenizer('char', [MARKUP], 0)
  ids = tokenizer.encode(MARKUP).tolist()
  make_parrot(tmp_path / 'run', tokenizer, ids)
  with serving(tmp_path / 'run') as server:
    page = httpx.get(server.url, trust_env=False)
    policy = page.headers['content-security-policy']
    assert "default-src 'none'" in policy and 'unsafe' not in policy
    assert not re.search(r'(src|href)="?(http|//)', page.text)
    open_page(browser, server)
    assert browser.run("return document.querySelector('#tabs').hidden")
    set_fields(browser, temperature=0, max_tokens=len(ids))
    browser.click('go')
    finish(browser)
    assert browser.text('text') == MARKUP
    assert browser.run("return document.querySelectorAll('img').length") == 0
    scripts = browser.run("return document.querySelectorAll('script').length")
    assert scripts == 1
  wait_until(lambda: browser.text('state') == 'not reachable')


@pytest.mark.slow
def test_the_key_is_asked_for_and_used(browser, tmp_path):
  make_random(tmp_path / 'run', chat_tokenizer())
  with serving(tmp_path / 'run', env={'RGPT_API_KEY': 'secret'}) as server:
    browser.open(server.url)
    wait_until(lambda: 'API key' in browser.text('error'))
    browser.type('key', 'secret')
    browser.run("document.getElementById('key').blur()")
    wait_until(lambda: browser.text('card') != '')
    assert browser.text('error') == ''
