"""Certificates for the tests, made by the openssl program: one authority, servers and clients that it has signed."""

import subprocess
from pathlib import Path

DAYS = "2"


class Authority:
    """A certificate authority in a folder; `ca` is the certificate that clients and servers must trust."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", DAYS,
                 "-subj", "/CN=onecount test authority", "-keyout", self._key, "-out", self.ca)  # fmt: skip

    def certify(self, name: str, password: str = "") -> tuple[Path, Path]:
        """A certificate with CN=`name`, valid for this machine's loopback, and its key (PKCS#8, encrypted where there
        is a password); the two files.
        """
        certificate, key, request = (self.folder / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        extension = self.folder / f"{name}.cnf"
        extension.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        protection = ["-passout", f"pass:{password}"] if password else ["-nodes"]
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *protection,
                 "-subj", f"/CN={name}", "-keyout", key, "-out", request)  # fmt: skip
        _openssl("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-CAcreateserial",
                 "-days", DAYS, "-extfile", extension, "-out", certificate)  # fmt: skip
        return certificate, key

    def keystore(self, name: str) -> Path:
        """A server's key and certificate in one file, as Kafka takes it (ssl.keystore.type=PEM)."""
        certificate, key = self.certify(name)
        joined = self.folder / f"{name}.keystore.pem"
        joined.write_text(key.read_text() + certificate.read_text() + self.ca.read_text())
        return joined


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
