"""The Debian package: the same bytes each time, and a node that is as it was when the package is gone."""

import hashlib
import os
import subprocess

import pytest
import yaml

from e2e.paths import BIN, BUILD, ROOT

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


@pytest.mark.skipif(not (BIN / "portable-kubectl-checkpoint").exists(), reason="the portable plugin is not built")
def test_the_plugin_for_krew_is_the_archive_of_its_manifest_and_needs_no_library(tmp_path):
    def pack(name):
        (tmp_path / name).mkdir()
        done = subprocess.run([ROOT / "deploy" / "krew.sh", BIN, tmp_path / name], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    archive = pack("one")
    manifest = yaml.safe_load((tmp_path / "one" / "checkpoint.yaml").read_text())
    (platform,) = manifest["spec"]["platforms"]
    with open(archive, "rb") as file, open(pack("two"), "rb") as again:
        content = file.read()
        assert content == again.read()
    assert platform["sha256"] == hashlib.sha256(content).hexdigest() and platform["uri"].endswith(os.path.basename(archive))
    (tmp_path / "root").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "root", "-xf", archive], check=True)
    said = subprocess.run(["chroot", tmp_path / "root", "/" + platform["bin"], "--version"], capture_output=True, text=True)
    assert manifest["spec"]["version"] == "v" + said.stdout.strip()
