"""Certificates for a test, made by the openssl command."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, in PEM."""

    certificate: Path
    key: Path


class Authority:
    """A certification authority of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        own = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
        _openssl(
            "req",
            "-x509",
            *_new_key(own.key),
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-out",
            str(own.certificate),
        )
        self.certificate, self._key = own.certificate, own.key

    def issue(self, name: str, *, host: str | None = None) -> Certificate:
        """A certificate, for a server of this host name or for a client."""
        issued = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{host}\n" if host else "extendedKeyUsage=clientAuth\n")
        _openssl("req", *_new_key(issued.key), "-subj", f"/CN={name}", "-out", str(request))
        signed_by = ("-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial")
        sign = (
            "-days",
            "2",
            "-extfile",
            str(extensions),
            "-in",
            str(request),
            "-out",
            str(issued.certificate),
        )
        _openssl("x509", "-req", *signed_by, *sign)
        return issued


def _new_key(path: Path) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path))


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
