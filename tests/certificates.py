"""Certificates for tests: an authority, and whom it certifies; made by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Authority:
    """Has ca.pem in its folder, and NAME.pem with NAME.key of all whom it has certified."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command")
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder)
        made._run("req", "-x509", *_KEY, "-days", "2", "-subj", "/CN=authority",
                  "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
        return made

    def certify(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for 127.0.0.1 and localhost; another one each time."""
        (self.folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        self._run("req", *_KEY, "-subj", f"/CN={name}",
                  "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                  "-days", "2", "-extfile", "names", "-out", f"{name}.pem")  # fmt: skip
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def credentials(self, name: str | None = None) -> Any:
        """A channel's; of a caller that shows the certificate of ``name``, or none."""
        if name is None:
            return grpc.ssl_channel_credentials(self.ca.read_bytes())
        key, cert = (self.folder / f"{name}{end}" for end in (".key", ".pem"))
        return grpc.ssl_channel_credentials(
            self.ca.read_bytes(), key.read_bytes(), cert.read_bytes()
        )

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)
