"""The machine of etcd, the API server, the controllers, the scheduler, and a registry."""

import socket
import ssl

from e2e.cluster.machine import Machine
from e2e.testbed.registry import Registry
from e2e.wait import until

SERVICES = ["registry", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
API_PORT = 6443
REGISTRY_PORT = 5000


class ControlPlane(Machine):
    def __init__(self, name, folder, cgroup, addresses, authority, programs):
        super().__init__(name, folder, cgroup)
        self.addresses = addresses
        self.address = addresses.control_plane
        self.authority = authority
        self.programs = programs
        self.registry = Registry(f"{self.address}:{REGISTRY_PORT}")
        self.server = f"https://{self.address}:{API_PORT}"

    def issue_certificates(self):
        self.authority.make()
        service = self.addresses.api_service
        self.authority.issue("kube-apiserver", "kube-apiserver", names=[
            f"IP:{self.address}", f"IP:{service}", "IP:127.0.0.1", "DNS:kubernetes", "DNS:kubernetes.default",
            "DNS:kubernetes.default.svc"])
        # What kubeadm gives it, too. The role system:kubelet-api-admin has no right to nodes/checkpoint.
        self.authority.issue("kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"])
        self.authority.kubeconfig("admin", self.server, "kubernetes-admin", ["system:masters"])
        for name in ("kube-controller-manager", "kube-scheduler"):
            self.authority.kubeconfig(name, self.server, f"system:{name}")

    def start_registry(self):
        Registry.serve(self.folder, self.start, self.registry.address)

    def start_all(self):
        folder, secrets = self.folder, self.authority.folder
        self.start("etcd", [
            "etcd", "--data-dir", folder / "etcd", "--listen-client-urls", "http://127.0.0.1:2379",
            "--advertise-client-urls", "http://127.0.0.1:2379", "--listen-peer-urls", "http://127.0.0.1:2380",
            "--unsafe-no-fsync"])
        self.start("kube-apiserver", [
            self.programs / "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
            f"--bind-address={self.address}", f"--advertise-address={self.address}",
            f"--secure-port={API_PORT}", f"--service-cluster-ip-range={self.addresses.services}",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--client-ca-file={self.authority.certificate}",
            f"--tls-cert-file={secrets}/kube-apiserver.crt",
            f"--tls-private-key-file={secrets}/kube-apiserver.key",
            f"--kubelet-certificate-authority={self.authority.certificate}",
            f"--kubelet-client-certificate={secrets}/kubelet-client.crt",
            f"--kubelet-client-key={secrets}/kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={secrets}/service-accounts.pub",
            f"--service-account-signing-key-file={secrets}/service-accounts.key"])
        until(self.api_answers, 60, "kube-apiserver", every=0.1)
        self.start("kube-controller-manager", [
            self.programs / "kube-controller-manager", "--leader-elect=false",
            f"--kubeconfig={secrets}/kube-controller-manager.kubeconfig",
            f"--root-ca-file={self.authority.certificate}",
            f"--service-account-private-key-file={secrets}/service-accounts.key",
            "--use-service-account-credentials=true",
            # A node that is gone is seen soon, and its pods are replaced soon.
            "--node-monitor-period=2s", "--node-monitor-grace-period=20s"])
        self.start("kube-scheduler", [
            self.programs / "kube-scheduler", "--leader-elect=false",
            f"--kubeconfig={secrets}/kube-scheduler.kubeconfig"])

    def api_answers(self):
        if not self.runs("kube-apiserver"):
            raise RuntimeError(f"kube-apiserver ended:\n{self.log('kube-apiserver')}")
        context = ssl.create_default_context(cafile=self.authority.certificate)
        try:
            with socket.create_connection((self.address, API_PORT), timeout=5) as plain:
                with context.wrap_socket(plain, server_hostname=self.address) as tls:
                    tls.sendall(b"GET /readyz HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
                    return tls.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False
