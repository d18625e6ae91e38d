"""The cluster's certificates and kubeconfig files, made by openssl."""

import json
import subprocess


class Authority:
    """A certificate authority in a folder, which signs for servers and clients."""

    def __init__(self, folder):
        self.folder = folder
        self.certificate = folder / "ca.crt"

    def make(self):
        self.folder.mkdir()
        self._key("ca")
        self._openssl("req", "-x509", "-new", "-key", self.folder / "ca.key", "-out", self.certificate, "-days", "30",
                      "-subj", "/CN=stasis test cluster", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        # Kubernetes signs service account tokens by a key without a certificate.
        self._key("service-accounts")
        self._openssl("pkey", "-in", self.folder / "service-accounts.key", "-pubout", "-out",
                      self.folder / "service-accounts.pub")

    def issue(self, file, common_name, groups=(), names=()):
        """A certificate for clients and servers in FILE.crt and FILE.key; `names` are those of a server,
        each as openssl wants it: "DNS:node1", "IP:10.0.0.1"."""
        self._key(file)
        request, extensions = self.folder / f"{file}.csr", self.folder / f"{file}.ext"
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={common_name}"
        self._openssl("req", "-new", "-key", self.folder / f"{file}.key", "-out", request, "-subj", subject)
        lines = ["keyUsage=critical,digitalSignature", "extendedKeyUsage=serverAuth,clientAuth"]
        lines += ["subjectAltName=" + ",".join(names)] if names else []
        extensions.write_text("\n".join(lines))
        self._openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.folder / "ca.key",
                      "-CAcreateserial", "-out", self.folder / f"{file}.crt", "-days", "30", "-sha256",
                      "-extfile", extensions)
        return self.folder / f"{file}.crt", self.folder / f"{file}.key"

    def kubeconfig(self, file, server, user, groups=()):
        """A kubeconfig file for a client with a certificate of its own; FILE.kubeconfig."""
        certificate, key = self.issue(file, user, groups)
        path = self.folder / f"{file}.kubeconfig"
        # JSON is YAML.
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "stasis",
            "clusters": [{"name": "stasis", "cluster": {
                "server": server, "certificate-authority": str(self.certificate)}}],
            "users": [{"name": user, "user": {
                "client-certificate": str(certificate), "client-key": str(key)}}],
            "contexts": [{"name": "stasis", "context": {"cluster": "stasis", "user": user}}],
        }, indent=2))
        path.chmod(0o600)
        return path

    def _key(self, file):
        self._openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out",
                      self.folder / f"{file}.key")

    @staticmethod
    def _openssl(*words):
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, stdin=subprocess.DEVNULL)
