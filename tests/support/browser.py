"""A headless Chromium, driven over WebDriver's HTTP."""

import base64
import shutil
import socket
import subprocess

import httpx

from tests.support.serving_tools import PATIENCE, wait_until

DRIVER = shutil.which('chromedriver')
BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
ELEMENT = 'element-6066-11e4-a52e-4f735466cecf'
# Keys without text; a modifier holds until the end of the text typed.
ENTER, SHIFT, CONTROL, ESCAPE = '\ue007', '\ue008', '\ue009', '\ue00c'
END, HOME, LEFT, RIGHT = '\ue010', '\ue011', '\ue012', '\ue014'


class Browser:
  """One session of a headless Chromium."""

  def __init__(self):
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    self._driver = subprocess.Popen(
      [DRIVER, f'--port={port}'],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    self._http = httpx.Client(
      base_url=f'http://127.0.0.1:{port}', timeout=PATIENCE, trust_env=False
    )
    wait_until(self._listens)
    arguments = [
      '--headless=new',
      '--no-sandbox',
      '--disable-dev-shm-usage',
      '--disable-gpu',
      '--window-size=1200,800',
    ]
    options = {'binary': BROWSER, 'args': arguments}
    wanted = {
      'goog:chromeOptions': options,
      'goog:loggingPrefs': {'browser': 'ALL'},
    }
    value = self._call(
      'POST', '/session', {'capabilities': {'alwaysMatch': wanted}}
    )
    self._session = f'/session/{value["sessionId"]}'

  def _listens(self):
    try:
      return self._http.get('/status').json()['value']['ready']
    except httpx.TransportError:
      return False

  def _call(self, method, path, body=None):
    response = self._http.request(
      method, path, json={} if body is None and method == 'POST' else body
    )
    value = response.json()['value']
    assert response.status_code == 200, value
    return value

  def open(self, url):
    """Opens a page in a new tab, which has no memory of other tabs."""
    tab = self._call('POST', f'{self._session}/window/new', {'type': 'tab'})
    self._call('DELETE', f'{self._session}/window')
    self._call('POST', f'{self._session}/window', {'handle': tab['handle']})
    self._call('POST', f'{self._session}/url', {'url': url})

  def reload(self):
    self._call('POST', f'{self._session}/refresh')

  def run(self, script, *args):
    return self._call(
      'POST', f'{self._session}/execute/sync', {'script': script, 'args': args}
    )

  def _element(self, id):
    value = self._call(
      'POST',
      f'{self._session}/element',
      {'using': 'css selector', 'value': f'#{id}'},
    )
    return f'{self._session}/element/{value[ELEMENT]}'

  def click(self, id):
    self._call('POST', f'{self._element(id)}/click')

  def focused(self):
    return self.run('return document.activeElement.id')

  def type(self, id, text):
    """Keys for an element; see the constants above for those without text."""
    self._call('POST', f'{self._element(id)}/value', {'text': text})

  def clear(self, id):
    self._call('POST', f'{self._element(id)}/clear')

  def text(self, id):
    return self.run(
      'const e = document.getElementById(arguments[0]);'
      'return e.value === undefined ? e.textContent : e.value',
      id,
    )

  def idle(self):
    return self.run("return document.getElementById('stop').disabled")

  def point_at(self, selector, number=0):
    """Moves the mouse over an element, of a selector's the n-th."""
    place = self.run(
      'const r = document.querySelectorAll(arguments[0])[arguments[1]]'
      '.getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2]',
      selector,
      number,
    )
    x, y = map(round, place)
    move = {'type': 'pointerMove', 'duration': 0, 'x': x, 'y': y}
    mouse = {'type': 'pointer', 'id': 'mouse', 'actions': [move]}
    self._call('POST', f'{self._session}/actions', {'actions': [mouse]})

  def resize(self, width, height):
    """The size of the page, in CSS pixels; windows cannot be this narrow."""
    self.devtools(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )

  def devtools(self, command, **params):
    self._call(
      'POST',
      f'{self._session}/goog/cdp/execute',
      {'cmd': command, 'params': params},
    )

  def messages(self):
    """What the browser's console complains about."""
    return self._call('POST', f'{self._session}/se/log', {'type': 'browser'})

  def screenshot(self):
    return base64.b64decode(self._call('GET', f'{self._session}/screenshot'))

  def close(self):
    try:
      self._call('DELETE', self._session)
    finally:
      self._http.close()
      self._driver.terminate()
      self._driver.wait(PATIENCE)


def open_page(browser, server):
  """The page of a server, in a tab of its own, once it is ready."""
  browser.open(server.url)
  wait_ready(browser)


def wait_ready(browser):
  wait_until(lambda: browser.text('state') == 'ready')
  wait_until(lambda: browser.text('card') != '')


def set_fields(browser, **fields):
  for id, value in fields.items():
    browser.clear(id)
    browser.type(id, str(value))


def finish(browser):
  """Waits for the end of a generation: the buttons can be used again."""
  wait_until(lambda: 'finished' in browser.text('status'))
  wait_until(browser.idle)
