"""A Hugging Face hub on this machine, as far as huggingface_hub asks one.

Listings, downloads with ranges, and uploads in commits: small files inside the
commit, large ones through git LFS. Xet, the hub's other storage, is left out:
`env` turns it off.
"""

import base64
import dataclasses
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

API = '/api/models/'
LARGE = ('.safetensors', '.gguf', '.bin')


@dataclasses.dataclass
class Repo:
  """A model repository.

  Attributes:
    commits: {hash: {path: content}}, the newest last.
    gated: only tokens of `readers` may download.
    private: others are told that there is no such repository.
  """

  commits: dict = dataclasses.field(default_factory=dict)
  license: str = ''
  gated: bool = False
  private: bool = False
  readers: tuple = ()

  def add(self, files) -> str:
    """Makes a commit; returns its hash."""
    text = repr(
      sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items())
    )
    commit = hashlib.sha1(f'{len(self.commits)}{text}'.encode()).hexdigest()
    self.commits[commit] = dict(files)
    return commit

  def find(self, revision):
    """The hash that a revision stands for; None if there is none."""
    if revision == 'main' and self.commits:
      return list(self.commits)[-1]
    return revision if revision in self.commits else None

  @property
  def files(self):
    return self.commits[self.find('main')]


class FakeHub:
  """The server; `with FakeHub() as hub`.

  Attributes:
    repos: {'owner/name': Repo}.
    tokens: {token: user}; a user may write to repositories of the same owner.
    asked: (method, path, Range header or '') of every request so far.
    uploads: {sha256: content} of files that no commit may hold yet.
    breaks, break_after: so many downloads of a large file break off after so
      many bytes.
    stall_after: if set, downloads of large files stop there, set `stalled`, and
      wait for `proceed`.
    status, fail_commit, fail_upload: if set, the answer to everything, to a
      commit, or to the upload of a large file.
  """

  def __init__(self):
    self.tokens = {'hf_ann': 'ann'}
    self.reset()
    handler = type('Handler', (Handler,), {'hub': self})
    self._server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    self.url = f'http://127.0.0.1:{self._server.server_address[1]}'

  def reset(self):
    """Forgets all repositories and requests, and behaves well again."""
    self.repos, self.asked, self.uploads = {}, [], {}
    self.break_after = self.breaks = self.stall_after = self.status = 0
    self.fail_commit = self.fail_upload = 0
    self.stalled, self.proceed = threading.Event(), threading.Event()

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *_):
    self._server.shutdown()
    self._server.server_close()

  def add(self, repo, files, **options) -> str:
    """Adds a commit to a repository, new or not; returns the commit's hash."""
    found = self.repos.setdefault(repo, Repo(**options))
    return found.add(files)

  def env(self, home, **more):
    """Variables for a process that shall use this hub."""
    return {
      'HF_ENDPOINT': self.url,
      'HF_HOME': str(home),
      'HF_HUB_DISABLE_XET': '1',
      'HF_HUB_DISABLE_TELEMETRY': '1',
      **more,
    }

  def use(self, monkeypatch, home):
    """Lets huggingface_hub, within this process, use this hub."""
    from huggingface_hub import constants

    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'):
      monkeypatch.delenv(name, raising=False)
    # It reads the environment when it is imported.
    for name, value in {
      'ENDPOINT': self.url,
      'HUGGINGFACE_CO_URL_TEMPLATE': (
        self.url + '/{repo_id}/resolve/{revision}/{filename}'
      ),
      'HF_HOME': str(home),
      'HF_HUB_CACHE': str(home / 'hub'),
      'HF_TOKEN_PATH': str(home / 'token'),
      'HF_STORED_TOKENS_PATH': str(home / 'stored_tokens'),
      'HF_HUB_OFFLINE': False,
      'HF_HUB_DISABLE_XET': True,
    }.items():
      monkeypatch.setattr(constants, name, value)

  def paths(self, method):
    """The paths of all requests of a method, without their queries."""
    return [path.partition('?')[0] for m, path, _ in self.asked if m == method]


class Handler(BaseHTTPRequestHandler):
  """One connection."""

  protocol_version = 'HTTP/1.1'
  hub: FakeHub

  def log_message(self, *_):
    pass

  def setup(self):
    super().setup()
    self.user = None

  def handle_one_request(self):
    try:
      super().handle_one_request()
    except ConnectionError:  # The client was killed.
      self.close_connection = True

  def _answer(self, status, body=b'', **headers):
    if not isinstance(body, bytes):
      body = json.dumps(body).encode()
      headers.setdefault('Content-Type', 'application/json')
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    if 'Content-Length' not in headers:
      self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def _error(self, status, code='', message=''):
    self._answer(
      status,
      {'error': message or code},
      **({'X-Error-Code': code} if code else {}),
      **({'X-Error-Message': message} if message else {}),
    )

  def _begin(self) -> str:
    """Notes the request; returns its path without query, unquoted."""
    self.hub.asked.append(
      (self.command, self.path, self.headers.get('Range', ''))
    )
    token = self.headers.get('Authorization', '').removeprefix('Bearer ')
    self.user = self.hub.tokens.get(token)
    self.token = token
    path = urllib.parse.unquote(self.path.partition('?')[0])
    # Data sets have addresses of their own; here they are repositories, too.
    return re.sub('^(/api)?/datasets/', lambda m: API if m[1] else '/', path)

  def _refused(self, repo) -> bool:
    """Answers what must not be read by this client."""
    found = self.hub.repos.get(repo)
    if self.hub.status:
      self._error(self.hub.status)
    elif self.token and not self.user:
      self._error(401, message='Invalid credentials in Authorization header')
    elif not found or (found.private and self.user not in found.readers):
      # As the hub does: whether a private repository exists is not told.
      self._error(*((404, 'RepoNotFound') if self.user else (401, '')))
    elif found.gated and self.user not in found.readers:
      self._error(403 if self.user else 401, 'GatedRepo')
    else:
      return False
    return True

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path = self._begin()
    if path == '/api/whoami-v2':
      if self.user:
        self._answer(200, {'type': 'user', 'name': self.user, 'orgs': []})
      else:
        self._error(401, message='Invalid credentials in Authorization header')
      return
    if found := re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path):
      self._file(*found.groups())
    elif found := re.fullmatch(
      API + r'([^/]+/[^/]+)/tree/([^/]+)', path
    ) or re.fullmatch(API + r'([^/]+/[^/]+)(?:/revision/(.+))?', path):
      self._listing(found[1], found[2] or 'main', '/tree/' in path)
    else:
      self._error(404)

  def _listing(self, name, revision, tree):
    if name in self.hub.repos and self.hub.repos[name].gated:
      pass  # What a gated repository holds may be seen by all.
    elif self._refused(name):
      return
    if self.hub.status:
      self._error(self.hub.status)
      return
    repo = self.hub.repos[name]
    commit = repo.find(revision)
    if commit is None:
      self._error(404, 'RevisionNotFound')
      return
    listed = []
    for path, data in repo.commits[commit].items():
      large = {}
      if path.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        large = {
          'lfs': {
            'sha256': digest,
            'oid': digest,
            'size': len(data),
            'pointerSize': 134,
          }
        }
      blob = hashlib.sha1(data).hexdigest()
      if tree:
        listed.append(
          {
            'type': 'file',
            'path': path,
            'size': len(data),
            'oid': blob,
            **large,
          }
        )
      else:
        listed.append(
          {'rfilename': path, 'size': len(data), 'blobId': blob, **large}
        )
    if tree:
      self._answer(200, listed)
      return
    self._answer(
      200,
      {
        '_id': '1',
        'id': name,
        'sha': commit,
        'private': repo.private,
        'gated': 'auto' if repo.gated else False,
        'tags': [],
        'cardData': {'license': repo.license} if repo.license else {},
        'siblings': listed,
      },
    )

  def _file(self, name, revision, path):
    if self._refused(name):
      return
    repo = self.hub.repos[name]
    commit = repo.find(revision)
    if commit is None:
      self._error(404, 'RevisionNotFound')
      return
    if path not in repo.commits[commit]:
      self._answer(
        404, **{'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': commit}
      )
      return
    data = repo.commits[commit][path]
    large = path.endswith(LARGE)
    hash = hashlib.sha256 if large else hashlib.sha1
    headers = {
      'ETag': f'"{hash(data).hexdigest()}"',
      'X-Repo-Commit': commit,
      'Accept-Ranges': 'bytes',
      **({'X-Linked-Size': str(len(data))} if large else {}),
    }
    asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
    start, status = (int(asked[1]), 206) if asked else (0, 200)
    if asked:
      headers['Content-Range'] = f'bytes {start}-{len(data) - 1}/{len(data)}'
    part = data[start:]
    headers['Content-Length'] = str(len(part))
    breaks = large and self.command == 'GET' and self.hub.breaks > 0
    if breaks:
      self.hub.breaks -= 1
      part = part[: self.hub.break_after]
      self.close_connection = True
    if large and self.command == 'GET' and self.hub.stall_after:
      self._answer(status, part[: self.hub.stall_after], **headers)
      self.wfile.flush()
      self.hub.stalled.set()
      self.hub.proceed.wait(60)
      self.close_connection = True
      return
    self._answer(status, part, **headers)

  def do_PUT(self):
    path = self._begin()
    data = self._body()
    digest = path.removeprefix('/lfs/')
    if self.hub.fail_upload:
      self._error(self.hub.fail_upload)
      return
    if hashlib.sha256(data).hexdigest() != digest:
      self._error(400)
      return
    self.hub.uploads[digest] = data
    self._answer(200)

  def do_POST(self):
    path = self._begin()
    data = self._body()
    if not self.user:
      self._error(401, message='Invalid credentials in Authorization header')
      return
    if self.hub.status:
      self._error(self.hub.status)
      return
    if path == '/api/repos/create':
      self._create(json.loads(data))
      return
    if path == '/api/validate-yaml':  # The head of a model card.
      card = json.loads(data)['content']
      wrong = [] if card.startswith('---\n') else [{'message': 'no metadata'}]
      self._answer(400 if wrong else 200, {'errors': wrong, 'warnings': []})
      return
    if path == '/lfs-verify':
      self._answer(200, {})
      return
    found = re.fullmatch(
      r'/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?/'
      r'(preupload|commit|info/lfs/objects/batch)(?:/[^/]+)?',
      path,
    )
    if not found:
      self._error(404)
    elif not found[1].startswith(f'{self.user}/'):
      self._error(403, message='You have no permission to write here')
    elif found[2] == 'preupload':
      files = json.loads(data)['files']
      self._answer(200, {'files': [self._mode(file['path']) for file in files]})
    elif found[2] == 'commit':
      self._commit(found[1], [json.loads(line) for line in data.splitlines()])
    else:
      objects = [
        {
          'oid': thing['oid'],
          'size': thing['size'],
          'actions': {
            'upload': {'href': f'{self.hub.url}/lfs/{thing["oid"]}'},
            'verify': {'href': f'{self.hub.url}/lfs-verify'},
          },
        }
        for thing in json.loads(data)['objects']
      ]
      self._answer(
        200,
        {'transfer': 'basic', 'objects': objects},
        **{'Content-Type': 'application/vnd.git-lfs+json'},
      )

  @staticmethod
  def _mode(path):
    mode = 'lfs' if path.endswith(LARGE) else 'regular'
    return {'path': path, 'uploadMode': mode, 'shouldIgnore': False}

  def _create(self, wanted):
    owner = wanted.get('organization') or self.user
    name = f'{owner}/{wanted["name"]}'
    if owner != self.user:
      self._error(403, message='You have no permission to create it')
    elif name in self.hub.repos:
      self._answer(409, {'error': 'exists', 'url': f'{self.hub.url}/{name}'})
    else:
      # `visibility` since huggingface_hub 2.
      private = wanted.get('private') or wanted.get('visibility') == 'private'
      self.hub.repos[name] = Repo(private=bool(private), readers=(self.user,))
      self.hub.repos[name].add({'.gitattributes': b''})
      self._answer(200, {'url': f'{self.hub.url}/{name}', 'name': name})

  def _commit(self, name, lines):
    if self.hub.fail_commit:
      self._error(self.hub.fail_commit)
      return
    repo = self.hub.repos[name]
    files = dict(repo.files)
    for line in lines:
      value = line['value']
      if line['key'] == 'file':
        files[value['path']] = base64.b64decode(value['content'])
      elif line['key'] == 'lfsFile':
        files[value['path']] = self.hub.uploads[value['oid']]
      elif line['key'] == 'deletedFile':
        files.pop(value['path'])
    commit = repo.add(files)
    self._answer(
      200,
      {
        'success': True,
        'commitOid': commit,
        'commitUrl': f'{self.hub.url}/{name}/commit/{commit}',
        'pullRequestUrl': None,
        'hookOutput': '',
      },
    )

  def _body(self) -> bytes:
    if self.headers.get('Transfer-Encoding') == 'chunked':
      data = b''
      while size := int(self.rfile.readline(), 16):
        data += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
      return data
    return self.rfile.read(int(self.headers.get('Content-Length') or 0))
