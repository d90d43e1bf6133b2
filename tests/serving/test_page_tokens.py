"""Tokens on the page: tints, alternatives, and what a request may ask for."""

import json

import pytest

from gpt.tokenizers import build_tokenizer
from tests.support.browser import (
  ENTER,
  ESCAPE,
  HOME,
  RIGHT,
  finish,
  open_page,
  set_fields,
)
from tests.support.lora_tools import write_adapters
from tests.support.serving_tools import (
  CHAT_TOKENS,
  make_random,
  serving,
  wait_until,
)

SPY = (
  'const old = fetch; window.sent = [];'
  'window.fetch = (url, o) => {'
  ' if (o && o.body) sent.push([url, o.body]); return old(url, o); }'
)
# Answers a request without the server.
FAKE = (
  'const old = fetch, data = arguments[0]; window.fetch = (url, o) => '
  'o && o.body ? Promise.resolve(new Response(data)) : old(url, o)'
)


def answer(*events):
  lines = [*map(json.dumps, events), '[DONE]']
  return ''.join(f'data: {line}\n\n' for line in lines)


def fake(browser, *events):
  """Makes the page's next requests get these events."""
  browser.run(FAKE, answer(*events))


def last_request(browser):
  path, body = browser.run('return sent.at(-1)')
  return path, json.loads(body)


def tip(browser):
  """[token, percent] of each row of the open tip; [] if none is open."""
  return browser.run(
    "const tip = document.getElementById('tip'); if (tip.hidden) return [];"
    "return [...tip.querySelectorAll('.token')].map(e => [e.textContent,"
    ' e.nextSibling.nextSibling.textContent])'
  )


def test_a_chat_is_tinted_token_by_token(browser, server):
  open_page(browser, server)
  browser.click('tab-chat')
  set_fields(browser, max_tokens=20, seed=2)
  browser.type('say', 'Who are you?' + ENTER)
  finish(browser)
  texts, classes = browser.run(
    "const s = [...document.querySelectorAll('.assistant span')];"
    'return [s.map(e => e.textContent), s.map(e => e.className)]'
  )
  with server.client() as client:
    body = {
      'messages': [{'role': 'user', 'content': 'Who are you?'}],
      'max_tokens': 20,
      'seed': 2,
      'logprobs': True,
    }
    choice = client.post('/v1/chat/completions', json=body).json()['choices'][0]
  scored = choice['logprobs']['content']
  assert texts == [t['token'] for t in scored]
  bounds = (0.5, 0.25, 0.12, 0.06, 0.03, 0.01)
  p = [2.718281828459045 ** t['logprob'] for t in scored]
  assert classes == [f'p{sum(x < b for b in bounds)}' for x in p]
  browser.click('tint')
  shown = "return getComputedStyle(document.querySelector('.assistant span'))"
  assert browser.run(shown + '.backgroundColor') == 'rgba(0, 0, 0, 0)'


def test_tokens_of_parts_of_characters_and_held_text_find_their_place(
  browser, server
):
  def chunk(content, *tokens):
    scored = [
      {'token': '?', 'bytes': list(b), 'logprob': -1.0, 'top_logprobs': []}
      for b in tokens
    ]
    delta = {'content': content}
    choice = {'index': 0, 'delta': delta, 'logprobs': {'content': scored}}
    return {'choices': [choice]}

  open_page(browser, server)
  browser.click('tab-chat')
  smile = '\U0001f600'.encode()
  # The first token's space is not part of the text; a character of two tokens;
  # a text of which one character came before its token.
  fake(
    browser,
    chunk('Hi', b' Hi'),
    chunk('\U0001f600', smile[:2], smile[2:]),
    chunk('x'),
    chunk('yz', b'xy', b'z'),
    {'choices': [{'index': 0, 'delta': {}, 'finish_reason': 'stop'}]},
  )
  browser.type('say', 'a' + ENTER)
  finish(browser)
  texts = browser.run(
    "return [...document.querySelector('.assistant').childNodes]"
    '.map(e => e.textContent)'
  )
  assert texts == ['Hi', '\U0001f600', 'xy', 'z']


def test_alternatives_are_shown_by_mouse_caret_and_arrow_keys(browser, server):
  open_page(browser, server)
  set_fields(browser, max_tokens=6, seed=5)
  browser.type('text', 'Hello')
  browser.click('go')
  finish(browser)
  text = browser.text('text')
  with server.client() as client:
    body = {'prompt': 'Hello', 'max_tokens': 6, 'seed': 5, 'logprobs': 5}
    given = client.post('/v1/completions', json=body).json()
  tops = given['choices'][0]['logprobs']['top_logprobs']

  def wanted(i):
    marks = str.maketrans({' ': '␣', '\n': '↵'})
    return sorted(t.translate(marks) for t in tops[i])

  def shown():
    rows = tip(browser)
    percents = [float(p[:-2]) for _, p in rows]
    assert percents == sorted(percents, reverse=True)
    assert all(p.endswith(' %') for _, p in rows)
    return sorted(t for t, _ in rows)

  browser.point_at('#tints span', 2)
  wait_until(lambda: tip(browser))
  assert shown() == wanted(2)
  browser.type('text', ESCAPE)
  assert tip(browser) == []
  browser.type('text', HOME + RIGHT * 5)
  assert shown() == wanted(0)
  assert browser.text('said').startswith(text[5].replace(' ', '␣'))
  browser.type('text', 'x')
  assert tip(browser) == []
  # What was typed has moved the tokens behind it.
  spans = browser.run("return document.querySelectorAll('#tints span').length")
  assert spans == len(text) - len('Hello')

  browser.click('tab-chat')
  browser.type('say', 'a' + ENTER)
  spans_of_answer = "return document.querySelectorAll('.assistant span').length"
  wait_until(lambda: browser.run(spans_of_answer) >= 2)
  wait_until(browser.idle)
  browser.run("document.querySelector('.assistant').id = 'answer'")
  browser.type('answer', RIGHT * 2)
  assert len(tip(browser)) >= 5
  second = "return document.querySelectorAll('.assistant span')[1].className"
  wait_until(lambda: browser.run(second).endswith(' at'))
  # Browsers say that a mouse at rest has moved when the page under it changes.
  rested = browser.run("""
    const rest = {clientX: 1, clientY: 1, pointerType: 'mouse', bubbles: true};
    const say = () => document.body.dispatchEvent(
      new PointerEvent('pointermove', rest));
    say();
    return new Promise(done => setTimeout(() => {
      document.activeElement.dispatchEvent(
        new KeyboardEvent('keydown', {key: 'Home', bubbles: true}));
      say();
      setTimeout(() => done(!document.getElementById('tip').hidden), 300);
    }, 300));
  """)
  assert rested
  browser.run('document.activeElement.blur()')
  assert tip(browser) == []


def test_settings_reach_the_server_and_defaults_do_not(browser, server):
  open_page(browser, server)
  browser.run(SPY)
  set_fields(browser, max_tokens=3)
  browser.click('go')
  finish(browser)
  assert last_request(browser) == (
    '/v1/completions',
    {
      'prompt': '',
      'temperature': 0.8,
      'top_p': 0.9,
      'top_k': 0,
      'max_tokens': 3,
      'stream': True,
      'logprobs': 5,
    },
  )
  browser.run("document.getElementById('more').open = true")
  penalties = {
    'min_p': 0.05,
    'repetition_penalty': 1.2,
    'frequency_penalty': 0.5,
    'presence_penalty': -0.5,
  }
  set_fields(browser, **penalties, stops='You:\n\\n\\n')
  browser.click('tint')
  browser.click('tab-chat')
  browser.run("document.getElementById('system-box').open = true")
  browser.type('system', 'Be brief')
  browser.type('say', 'Hi' + ENTER)
  wait_until(lambda: len(browser.run('return sent')) == 2 and browser.idle())
  assert browser.text('error') == ''
  path, body = last_request(browser)
  assert path == '/v1/chat/completions'
  assert body['messages'] == [
    {'role': 'system', 'content': 'Be brief'},
    {'role': 'user', 'content': 'Hi'},
  ]
  assert body.items() >= penalties.items()
  assert body['stop'] == ['You:', '\n\n'] and body['top_logprobs'] == 0


def test_what_a_request_lost_is_shown(browser, server):
  open_page(browser, server)
  set_fields(browser, max_tokens=3)
  browser.type('text', 'Grüße')
  browser.click('go')
  finish(browser)
  notice = (
    "Dropped 2 characters that are not in the vocabulary: 'ß' x1, 'ü' x1."
  )
  assert browser.text('notice') == notice
  browser.click('undo')
  assert browser.text('notice') == ''
  browser.click('tab-chat')
  browser.type('say', 'long ' * 10 + ENTER)
  finish(browser)
  assert 'oldest' in browser.text('notice')


@pytest.mark.slow
def test_one_of_several_models_is_chosen(browser, tmp_path):
  tokenizer = build_tokenizer('char', ['abc xyz'], 0, CHAT_TOKENS)
  make_random(tmp_path / 'base', tokenizer)
  write_adapters(tmp_path / 'poems', tmp_path / 'base', 1)
  flag = f'--adapter=poems={tmp_path / "poems"}'
  with serving(tmp_path / 'base', flag) as server:
    open_page(browser, server)
    browser.run(SPY)
    assert browser.text('name') == 'base'
    browser.type('model', 'poems')
    assert browser.text('name') == 'poems'
    set_fields(browser, max_tokens=3)
    browser.click('go')
    finish(browser)
    assert last_request(browser)[1]['model'] == 'poems'
    browser.reload()
    wait_until(lambda: browser.text('name') == 'poems')
