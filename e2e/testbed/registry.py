"""A registry on the loopback address: Debian's docker-registry, in a private folder."""

import http.client
import json
import socket

from e2e.testbed import images
from e2e.wait import until

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Registry:
    def __init__(self, folder, start):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        config = folder / "registry.yml"
        # JSON is YAML.
        config.write_text(json.dumps({
            "version": 0.1, "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
            "http": {"addr": self.address},
        }))
        service = start("registry", ["docker-registry", "serve", config])
        until(lambda: service.poll() is not None or self._answers(), what="the registry")

    def push(self, image, name, tag="1"):
        """Builds an image and pushes it; gives its reference."""
        layer, config, manifest = images.build(image)
        for blob in (layer, config):
            location = self._request("POST", f"/v2/{name}/blobs/uploads/", want=202).getheader("Location")
            path = location.partition(self.address)[2] or location
            self._request("PUT", f"{path}&digest={images.digest(blob)}", blob, want=201)
        self._request("PUT", f"/v2/{name}/manifests/{tag}", manifest, MANIFEST, want=201)
        return f"{self.address}/{name}:{tag}"

    def _answers(self):
        try:
            return self._request("GET", "/v2/")
        except OSError:
            return False

    def _request(self, method, path, body=None, kind="application/octet-stream", want=200):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request(method, path, body, {"Content-Type": kind} if body else {})
        response = connection.getresponse()
        text = response.read()
        if response.status != want:
            raise OSError(f"registry: {method} {path}: {response.status} {text[:500]!r}")
        return response
