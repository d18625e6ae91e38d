"""Container images made from what Debian's packages installed on this machine, without any tool.

An image is one uncompressed layer with some programs, the libraries that they link, a static busybox,
and users. Layers are kept in the cache folder, by what they were made of.
"""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from e2e.paths import CACHE, ROOT, TARGETS

USERS = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/data:/bin/sh\n"
GROUPS = "root:x:0:\nuser:x:1000:\n"
FOLDERS = {"dev": 0o755, "proc": 0o755, "sys": 0o755, "etc": 0o755, "root": 0o700, "usr": 0o755,
           "usr/bin": 0o755, "usr/sbin": 0o755, "usr/lib": 0o755, "usr/lib64": 0o755,
           "data": 0o777, "tmp": 0o1777, "run": 0o755, "var": 0o755}
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "../run"}


@dataclass
class Link:
    """A symbolic link among the files of an image."""

    target: str


@dataclass
class Image:
    """What goes into an image and what it runs."""

    command: list
    programs: list = field(default_factory=list)  # with the libraries that they link
    packages: list = field(default_factory=list)  # all their files but documentation
    files: dict = field(default_factory=dict)  # by path in the image: bytes, a Link, or the file to copy
    user: str = ""
    mode: int = 0o755  # of `files`
    bare: bool = False  # `files` alone, without a system around them


IMAGES = {
    "pause": Image(["/pause"], files={"pause": TARGETS / "pause"}, bare=True),
    "busybox": Image(["/bin/sh"]),
    "redis": Image(["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "",
                    "--dir", "/data"], programs=["/usr/bin/redis-server", "/usr/bin/redis-cli"],
                   user="1000"),
    "targets": Image(["/bin/sh"], programs=[TARGETS / "tree"]),  # its libraries
    "python": Image(["/usr/bin/python3"], programs=["/usr/bin/python3"],
                    packages=["libpython3.11-minimal", "libpython3.11-stdlib"]),
    "counter": Image(["/usr/bin/python3", "/counter.py"], programs=["/usr/bin/python3"],
                     packages=["libpython3.11-minimal", "libpython3.11-stdlib"],
                     files={"counter.py": ROOT / "e2e/cluster/counter.py"}),
}


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def libraries(path):
    """The shared libraries of a program, the dynamic loader included."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return {word for word in listed.split() if word.startswith("/")}


def package_files(name):
    listed = subprocess.run(["dpkg", "-L", name], capture_output=True, text=True, check=True).stdout
    return [path for path in listed.splitlines()
            if os.path.isfile(path) and not path.startswith("/usr/share/doc")]


def inside(path):
    """Where a file of this machine goes: Debian's /lib is a link to /usr/lib, so is the image's."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))[1:]


class Layer:
    """A tar without times or owners of this machine: the same content gives the same digest."""

    def __init__(self):
        self.bytes = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.bytes, mode="w", format=tarfile.PAX_FORMAT)
        self.names = set()

    def _add(self, name, mode, kind=tarfile.REGTYPE, content=b"", link=""):
        if name in self.names:
            return
        self.names.add(name)
        entry = tarfile.TarInfo(name)
        entry.mode, entry.type, entry.linkname, entry.size = mode, kind, link, len(content)
        self.tar.addfile(entry, io.BytesIO(content))

    def folder(self, name, mode=0o755):
        if name and name not in self.names:
            self.folder(os.path.dirname(name))
            self._add(name, mode, tarfile.DIRTYPE)

    def link(self, name, target):
        self.folder(os.path.dirname(name))
        self._add(name, 0o777, tarfile.SYMTYPE, link=target)

    def file(self, name, content, mode=0o644):
        self.folder(os.path.dirname(name))
        self._add(name, mode, content=content)

    def copy(self, path):
        self.file(inside(path), Path(path).read_bytes(), os.stat(path).st_mode & 0o7777)

    def finish(self):
        self.tar.close()
        return self.bytes.getvalue()


def build_layer(image):
    layer = Layer()
    for name, content in image.files.items():
        if isinstance(content, Link):
            layer.link(name, content.target)
        else:
            layer.file(name, content_of(content), image.mode)
    if image.bare:
        return layer.finish()
    for name, mode in FOLDERS.items():
        layer.folder(name, mode)
    for name, target in LINKS.items():
        layer.link(name, target)
    layer.file("etc/passwd", USERS.encode())
    layer.file("etc/group", GROUPS.encode())
    paths = [*image.programs, *(path for name in image.packages for path in package_files(name))]
    for path in paths:
        layer.copy(path)
    for path in sorted(set().union(*map(libraries, paths))) if paths else ():
        layer.copy(path)
    layer.copy("/bin/busybox")
    for applet in subprocess.run(["busybox", "--list"], capture_output=True, text=True,
                                 check=True).stdout.split():
        layer.link(f"usr/bin/{applet}", "busybox")
    return layer.finish()


def content_of(content):
    if isinstance(content, Link):
        return content.target.encode()
    return content if isinstance(content, bytes) else Path(content).read_bytes()


def layer_of(image):
    """The layer, from the cache when nothing that it is made of changed."""
    parts = [Path(__file__).read_bytes(), repr((image.programs, list(image.files), image.mode)).encode()]
    parts += map(content_of, [*image.files.values(), *([] if image.bare else ["/bin/busybox"]),
                              *image.programs])
    for package in image.packages:
        parts.append(subprocess.run(["dpkg-query", "-W", package], capture_output=True,
                                    check=True).stdout)
    name = digest("".join(map(digest, parts)).encode())[7:23]
    cached = CACHE / "images" / f"{name}.tar"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(build_layer(image))
        temporary.rename(cached)
    return cached.read_bytes()


def build(image):
    """The parts of an OCI image: layer, config and manifest, each as bytes."""
    layer = layer_of(image)
    config = json.dumps({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": image.command, "User": image.user,
                   "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    }).encode()
    describe = lambda kind, data: {"mediaType": f"application/vnd.oci.image.{kind}",
                                   "digest": digest(data), "size": len(data)}
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("config.v1+json", config), "layers": [describe("layer.v1.tar", layer)],
    }).encode()
    return layer, config, manifest
