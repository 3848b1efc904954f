"""What a stand-in of the Hub knows: repositories, commits, branches, large files, who may what."""

import fnmatch
import hashlib
import itertools
import threading
from dataclasses import dataclass, field

LARGE = 10 << 20
ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs\n"
"""What the Hub puts into a new repository, cut short."""


@dataclass
class Commit:
    """An immutable tree. Large files lie in the Hub's storage; the tree holds their bytes too."""

    oid: str
    message: str
    files: dict[str, bytes]
    large: set[str]


@dataclass
class Repo:
    """One repository: its branches point at commits."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, message, files, large, branch="main"):
        seed = repr((message, sorted(files), len(self.commits), branch)).encode()
        oid = hashlib.sha1(seed).hexdigest()
        self.commits[oid] = Commit(oid, message, files, large)
        self.branches[branch] = oid
        return oid

    def at(self, revision):
        """The commit of a branch or its own name; None where there is none."""
        return self.commits.get(self.branches.get(revision, revision))

    @property
    def head(self):
        return self.at("main")


@dataclass
class Fault:
    """Something that goes wrong with the next `times` requests that it fits, after `after`."""

    method: str
    path: str
    """A pattern of fnmatch over path and query."""
    status: int = 0
    """Answer this. 0: see `drop`."""
    drop: str = ""
    """'before': hang up without doing it; 'after': do it, hang up without an answer; 'half': send
    half of a body; 'spoil': another byte in the middle."""
    times: int = 1
    after: int = 0
    headers: dict = field(default_factory=dict)
    call: object = None
    """Done first."""


class HubState:
    """Everything. Tokens: `writer` may write to `org`, `reader` may read, `other` sees no private
    repository."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.users = {"hf_writer": {"org"}, "hf_reader": set(), "hf_other": set()}
        self.members = {"hf_writer", "hf_reader"}
        self.chunk = 0
        """Bytes of a part; 0: large files are uploaded in one piece."""
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict, int]] = []
        """(method, path, headers, bytes of the body) of every request."""
        self.lock = threading.Lock()
        self.busy = 0
        """Requests being answered."""
        self.numbers = itertools.count()

    def add(self, name, files, *, large=(), **how):
        """A repository with one commit, by whatever tool."""
        repo = self.repos[name] = Repo(**how)
        repo.commit("initial commit", {".gitattributes": ATTRIBUTES.encode()}, set())
        for path in large:
            self.storage[hashlib.sha256(files[path]).hexdigest()] = files[path]
        repo.commit("files", {**repo.head.files, **files}, set(large))
        return repo

    def fault(self, method, path):
        """The fault that this request meets."""
        with self.lock:
            for fault in self.faults:
                fits = fault.method == method and fnmatch.fnmatchcase(path, fault.path)
                if fits and fault.after:
                    fault.after -= 1
                elif fits and fault.times:
                    fault.times -= 1
                    return fault
        return None

    def asked(self, method, pattern):
        """Paths of the requests that fit."""
        return [
            p for m, p, _, _ in self.requests if m == method and fnmatch.fnmatchcase(p, pattern)
        ]

    def settled(self):
        """Wait until nothing is being answered."""
        while self.busy:
            threading.Event().wait(0.01)

    def uploaded(self):
        """Bytes that arrived in request bodies for files."""
        return sum(n for m, p, _, n in self.requests if m == "PUT" or "/commit/" in p)


def is_large(path, sample, size):
    """As the Hub decides: patterns of .gitattributes, size, or bytes that are no text."""
    return path.endswith((".safetensors", ".bin")) or size > LARGE or b"\0" in sample


def git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
