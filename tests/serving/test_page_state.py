"""What the page remembers: undo, redo and reloads; and its keyboard."""

import re

from tests.support.browser import (
  CONTROL,
  ENTER,
  LEFT,
  RIGHT,
  SHIFT,
  finish,
  open_page,
  set_fields,
  wait_ready,
)
from tests.support.serving_tools import wait_until


def turns(browser):
  return browser.run(
    "return [...document.querySelectorAll('.turn')].map(e => e.textContent)"
  )


def tints(browser):
  return browser.run("return document.querySelectorAll('#tints span').length")


def is_on(browser, id):
  return browser.run(
    'return !document.getElementById(arguments[0]).disabled', id
  )


def test_undo_takes_back_generations_and_clear_and_redo_repeats_them(
  browser, server
):
  open_page(browser, server)
  assert not is_on(browser, 'undo') and not is_on(browser, 'redo')
  set_fields(browser, max_tokens=3, seed=5)
  browser.type('text', 'Hello')
  browser.click('go')
  finish(browser)
  once = browser.text('text')
  set_fields(browser, seed=6)
  browser.click('go')
  wait_until(lambda: 'seed 6' in browser.text('status'))
  finish(browser)
  assert len(browser.text('text')) > len(once)
  twice = browser.text('text')
  browser.click('clear')
  assert browser.text('text') == ''
  states = []
  for _ in range(3):
    browser.click('undo')
    states.append(browser.text('text'))
  assert states == [twice, once, 'Hello']
  assert not is_on(browser, 'undo') and tints(browser) == 0
  browser.click('redo')
  # The tokens come back with their text, and can be regenerated.
  assert browser.text('text') == once
  assert tints(browser) == len(once) - len('Hello')
  assert is_on(browser, 'again')


def test_control_z_undoes_typing_first_and_then_what_the_page_did(
  browser, server
):
  open_page(browser, server)
  set_fields(browser, max_tokens=5, seed=4)
  browser.type('text', 'Hello')
  browser.click('go')
  finish(browser)
  done = browser.text('text')
  browser.type('text', 'X')
  browser.type('text', CONTROL + 'z')
  assert browser.text('text') == done
  browser.type('text', CONTROL + 'z')
  assert browser.text('text') == 'Hello'
  browser.type('text', CONTROL + SHIFT + 'z')
  assert browser.text('text') == done


def test_a_chat_is_undone_with_the_message_that_was_sent(browser, server):
  open_page(browser, server)
  browser.click('tab-chat')
  set_fields(browser, max_tokens=9, seed=2)
  browser.type('say', 'Who are you?' + ENTER)
  finish(browser)
  was = turns(browser)
  assert len(was) == 2 and browser.text('say') == ''
  browser.click('clear')
  assert turns(browser) == []
  browser.click('undo')
  assert turns(browser) == was
  browser.click('undo')
  assert turns(browser) == [] and browser.text('say') == 'Who are you?'


def test_a_reload_keeps_text_conversation_and_settings(browser, server):
  open_page(browser, server)
  browser.run("document.getElementById('more').open = true")
  set_fields(browser, max_tokens=9, seed=2, temperature=0.5, min_p=0.1)
  browser.type('text', 'Hello')
  browser.click('go')
  finish(browser)
  text, count = browser.text('text'), tints(browser)
  browser.click('tab-chat')
  browser.type('say', 'Hi' + ENTER)
  wait_until(lambda: len(turns(browser)) == 2 and browser.idle())
  was = turns(browser)
  browser.type('say', 'unsent')
  browser.reload()
  wait_ready(browser)
  assert turns(browser) == was and browser.text('say') == 'unsent'
  assert browser.text('temperature') == '0.5'
  # What is not as usual is in sight.
  assert browser.text('min_p') == '0.1'
  assert browser.run("return document.getElementById('more').open")
  browser.click('tab-text')
  assert browser.text('text') == text and tints(browser) == count
  assert is_on(browser, 'again')
  browser.click('defaults')
  assert browser.text('min_p') == '0' and browser.text('seed') == ''


def test_enter_sends_and_shift_enter_or_an_input_method_does_not(
  browser, server
):
  open_page(browser, server)
  browser.click('tab-chat')
  set_fields(browser, max_tokens=3, seed=2)
  browser.type('say', 'One' + SHIFT + ENTER)
  browser.type('say', 'Two')
  # The Enter that ends a composition, as browsers report it.
  for how in ('isComposing: true', 'keyCode: 229'):
    browser.run(
      "document.getElementById('say').dispatchEvent(new KeyboardEvent("
      f"'keydown', {{key: 'Enter', bubbles: true, cancelable: true, {how}}}))"
    )
  assert turns(browser) == [] and browser.idle()
  assert browser.text('say') == 'One\nTwo'
  browser.type('say', ENTER)
  finish(browser)
  assert turns(browser)[0] == 'One\nTwo'
  assert browser.focused() == 'say'


def test_arrow_keys_change_tabs_and_the_focus_is_never_lost(browser, server):
  open_page(browser, server)
  stops = (
    "return [...document.querySelectorAll('[role=tab]')].map(e => e.tabIndex)"
  )
  assert browser.run(stops) == [0, -1]
  browser.type('tab-text', RIGHT)
  assert browser.focused() == 'tab-chat' and browser.run(stops) == [-1, 0]
  assert not browser.run("return document.getElementById('pane-chat').hidden")
  browser.type('tab-chat', LEFT)
  assert browser.focused() == 'tab-text'
  # A button that can no longer be used hands on the focus it had.
  set_fields(browser, max_tokens=3)
  browser.type('go', ENTER)
  finish(browser)
  assert browser.focused() in ('go', 'stop')
  assert is_on(browser, browser.focused())


def test_everything_has_a_name_and_fits_320_pixels(browser, server):
  open_page(browser, server)
  browser.click('tab-chat')
  browser.resize(320, 640)
  try:
    too_wide = 'return document.documentElement.scrollWidth > innerWidth'
    assert not browser.run(too_wide)
    browser.click('tab-text')
    assert not browser.run(too_wide)
  finally:
    browser.devtools('Emulation.clearDeviceMetricsOverride')
  unnamed = browser.run(
    "return [...document.querySelectorAll('button, input, select, textarea')]"
    '.filter(e => !(e.ariaLabel || e.textContent.trim()'
    ' || (e.labels && e.labels.length))).map(e => e.id)'
  )
  assert unnamed == []
  ids = browser.run(
    "return [...document.querySelectorAll('[id]')].map(e => e.id)"
  )
  assert len(ids) == len(set(ids))
  assert all(re.fullmatch(r'[a-z_-]+', id) for id in ids)
