"""The Debian package: the same bytes each time, and a node that is as it was when the package is gone."""

import os
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from e2e.paths import BIN, BUILD, CACHE, ROOT

KREW = CACHE / "bin" / "krew"
KUBECTL = sorted(CACHE.glob("kubernetes-*/kubectl"))
CONFIG = BUILD / "CPackConfig.cmake"
FLAGS = 'KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///run/containerd/containerd.sock"\n'

pytestmark = pytest.mark.skipif(not (BIN / "stasis-node").exists() or not CONFIG.exists(), reason="nothing is built")


def make(folder):
    subprocess.run(["cpack", "--config", CONFIG, "-G", "DEB", "-B", folder], check=True, capture_output=True,
                   env={**os.environ, "SOURCE_DATE_EPOCH": "1790000000"})
    (package,) = folder.glob("*.deb")
    return package


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return make(tmp_path_factory.mktemp("package"))


@pytest.fixture
def machine(tmp_path):
    """Runs a script on a copy of this machine that forgets everything."""
    def run(script):
        setup = (f"mount --make-rprivate / && mount -t tmpfs none {tmp_path} && cd {tmp_path} && mkdir up work root && "
                 "mount -t overlay o -o lowerdir=/,upperdir=up,workdir=work root && mount -t proc proc root/proc && "
                 "mount -t tmpfs none root/run && exec chroot root bash -euxc")
        return subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", f'{setup} "$0"', script],
                              capture_output=True, text=True, timeout=120)
    return run


def test_the_same_source_makes_the_same_bytes(package, tmp_path):
    assert make(tmp_path).read_bytes() == package.read_bytes()


def test_debians_checker_has_nothing_to_say_that_matters(package):
    said = subprocess.run(["lintian", "--allow-root", "--fail-on", "error,warning", package], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout


def test_a_node_is_as_it_was_when_the_package_is_gone(package, machine):
    done = machine(f"""
        mkdir -p /var/lib/kubelet /etc/default
        echo '[Service]' >/usr/lib/systemd/system/kubelet.service
        cat >/var/lib/kubelet/kubeadm-flags.env <<'END'\n{FLAGS}END
        cp -a /var/lib/kubelet /before
        dpkg -i {package}
        stasisd --version && stasis --version && test -x /usr/bin/stasis-placeholder
        test -s /usr/share/man/man8/stasis-node.8.gz
        stasis-node --offline install
        grep -q stasis.sock /var/lib/kubelet/kubeadm-flags.env
        systemctl --root=/ is-enabled stasisd.socket
        dpkg -r stasis
        diff -r /before /var/lib/kubelet
        dpkg -P stasis
        test ! -e /etc/stasis && test ! -e /var/lib/stasis && test ! -e /etc/systemd/system/sockets.target.wants/stasisd.socket
        echo as it was
    """)
    assert done.stdout.endswith("as it was\n"), done.stdout + done.stderr


def test_in_a_tree_without_proc_the_package_comes_and_goes(package, machine):
    """As in that of an image, in which nothing runs yet."""
    done = machine(f"""
        umount /proc
        dpkg -i {package}
        ! stasis-node --offline status >said 2>&1 && grep -q 'there is no /proc' said
        dpkg -P stasis
        echo all gone
    """)
    assert done.stdout.endswith("all gone\n"), done.stdout + done.stderr


def pack_for_krew(folder, **settings):
    """The archive of the plugin, and its manifest."""
    folder.mkdir()
    done = subprocess.run([ROOT / "deploy" / "krew.sh", BIN, folder], check=True, capture_output=True, text=True,
                          env={**os.environ, **settings})
    return Path(done.stdout.strip()), folder / "checkpoint.yaml"


portable = pytest.mark.skipif(not (BIN / "portable-kubectl-checkpoint").exists(), reason="the portable plugin is not built")


@portable
def test_the_plugin_for_krew_needs_no_library_and_is_the_same_bytes_every_time(tmp_path):
    archive, manifest = pack_for_krew(tmp_path / "one")
    again, same = pack_for_krew(tmp_path / "two")
    assert (archive.read_bytes(), manifest.read_text()) == (again.read_bytes(), same.read_text())
    spec = yaml.safe_load(manifest.read_text())["spec"]
    (tmp_path / "root").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "root", "-xf", archive], check=True)
    said = subprocess.run(["chroot", tmp_path / "root", "/" + spec["platforms"][0]["bin"], "--version"],
                          capture_output=True, text=True)
    assert spec["version"] == "v" + said.stdout.strip()


@pytest.fixture
def krew(tmp_path):
    """kubectl with krew and what that installs, in a folder of its own; its index is `tmp_path`/index."""
    if not KREW.exists() or not KUBECTL:
        pytest.skip("krew and kubectl are not built: ./dev test builds them")
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "kubectl-krew").symlink_to(KREW)
    path = [tmp_path / "programs", tmp_path / "krew" / "bin", KUBECTL[0].parent, KREW.parent]
    env = {**os.environ, "KREW_ROOT": str(tmp_path / "krew"), "KREW_DEFAULT_INDEX_URI": f"{tmp_path}/index",
           "PATH": ":".join(map(str, [*path, os.environ["PATH"]]))}

    def run(*words):
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    return run


@portable
def test_krew_installs_the_plugin_from_its_files(krew, tmp_path):
    archive, manifest = pack_for_krew(tmp_path / "made")
    krew("kubectl", "krew", "install", f"--manifest={manifest}", f"--archive={archive}")
    assert "kubectl checkpoint POD" in krew("kubectl", "checkpoint", "--help")


@portable
def test_krew_finds_and_downloads_the_plugin_by_an_index_that_has_it(krew, tmp_path):
    (tmp_path / "index" / "plugins").mkdir(parents=True)
    serve = partial(SimpleHTTPRequestHandler, directory=tmp_path / "made")
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _, manifest = pack_for_krew(tmp_path / "made", STASIS_URL=f"http://127.0.0.1:{server.server_port}")
        krew("validate-krew-manifest", "-manifest", manifest)  # what the index asks of those who propose a plugin
        shutil.copy(manifest, tmp_path / "index" / "plugins")
        git = ["git", "-C", tmp_path / "index", "-c", "user.name=a", "-c", "user.email=a@localhost"]
        for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "checkpoint"]):
            krew(*git, *words)
        krew("kubectl", "krew", "update")
        assert "Checkpoint the containers of a pod" in krew("kubectl", "krew", "search", "checkpoint")
        krew("kubectl", "krew", "install", "checkpoint")
        server.shutdown()
    assert krew("kubectl", "krew", "list").split() == ["checkpoint"]
    krew("kubectl", "krew", "uninstall", "checkpoint")
    assert not (tmp_path / "krew" / "bin" / "kubectl-checkpoint").exists()
