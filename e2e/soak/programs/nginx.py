"""Nginx with several workers: whole files and ranges of them over kept connections."""

import random

from e2e.soak.program import HttpSession, Image, Program, Wrong

CONFIG = b"""
worker_processes 4;
daemon off;
pid /tmp/nginx.pid;
error_log /dev/stderr warn;
events { worker_connections 256; }
http {
  access_log off;
  keepalive_requests 10000000;
  keepalive_timeout 600s;
  sendfile on;
  open_file_cache max=100;
  client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
  uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
  server { listen 8080; root /www; }
}
"""
SIZES = (1, 1000, 65_536, 1_000_003)
BODIES = {size: random.Random(size).randbytes(size) for size in SIZES}


class NginxSession(HttpSession):
    """Nginx keeps no count: this one counts the right answers itself."""

    def next(self):
        size = SIZES[self.asked % len(SIZES)]
        first = random.randrange(size)
        last = random.randrange(first, size)
        if self.asked % 2:
            response, body = self.get(f"/{size}", Range=f"bytes={first}-{last}")
            status, wanted = 206, BODIES[size][first:last + 1]
        else:
            response, body = self.get(f"/{size}")
            status, wanted = 200, BODIES[size]
        if response.status != status or body != wanted:
            raise Wrong(f"{size}: {response.status} with {len(body)} bytes, not {len(wanted)}")
        return self.last + 1

    def check(self):
        response, _ = self.get("/none")
        if response.status != 404:
            raise Wrong(f"/none: {response.status}")


def image():
    files = {"etc/soak/nginx.conf": CONFIG, "var/log/nginx/.keep": b"", "var/lib/nginx/.keep": b""}
    return Image(["nginx", "-c", "/etc/soak/nginx.conf", "-e", "/dev/stderr"],
                 programs=["/usr/sbin/nginx"], user="1000",
                 files={**files, **{f"www/{size}": body for size, body in BODIES.items()}})


PROGRAMS = [Program("nginx", image, NginxSession, sessions=6, needs=("/usr/sbin/nginx",))]
