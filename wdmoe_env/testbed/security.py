"""Who may talk to whom: loopback without more, everything else by mutual TLS or by an explicit word.

A folder of credentials holds ``ca.pem``, ``cert.pem`` and ``key.pem``. ``python -m wdmoe_env.testbed certificates``
makes one for the base station and one for each device, all of one authority.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wdmoe_env.optional import optional
from wdmoe_env.reading import read_bytes, shown_path
from wdmoe_env.writing import held_folder, write_files

with optional("grpcio", extra="testbed"):
    import grpc

STATION = "station"
"""Folder of the base station's credentials; also its name in its certificate."""

DAYS = 825
_FILES = ("ca.pem", "key.pem", "cert.pem")
_MOST_BYTES = 2**20


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``"HOST:PORT"``.

    Raises:
        ValueError: it is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"expected an address as HOST:PORT, got {address!r}")
    return host, int(port)


def check_exposure(address: str, tls: Path | None, insecure: bool) -> None:
    """Refuse to serve or to trust a network without TLS, unless the user says so.

    Raises:
        ValueError: the address is not loopback, and neither is there.
    """
    host, _ = split_address(address)
    if not (is_loopback(host) or tls or insecure):
        raise ValueError(
            f"expected --tls DIR for {address}, which others on the network reach; --insecure does without on a "
            "network that is yours alone"
        )


def server_credentials(folder: Path) -> Any:
    """Credentials of a device that serves base stations of its own authority alone.

    Raises:
        ValueError, OSError: a file is missing or cannot be read.
    """
    authority, key, certificate = _read(folder)
    return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)


def channel_credentials(folder: Path) -> Any:
    """Credentials of a base station that calls devices of its own authority alone.

    Raises:
        ValueError, OSError: a file is missing or cannot be read.
    """
    return grpc.ssl_channel_credentials(*_read(folder))


def make_certificates(out: Path, devices: Mapping[str, str]) -> None:
    """Make an authority, and a folder of credentials for the base station and for each device.

    Args:
        out: of the folders ``ca``, ``station`` and one for each device.
        devices: name of each device and the host name or address that the base station calls it by.

    Raises:
        ValueError: a device called ``ca`` or ``station``, or a folder that holds credentials already.
        OSError: nothing can be written there.
    """
    taken = {"ca", STATION} & devices.keys()
    if taken:
        raise ValueError(f"expected devices of other names than ca and {STATION}, got {min(taken)}")
    if (out / "ca").exists():
        raise ValueError(f"expected a folder without credentials, but {shown_path(out / 'ca')} is there")
    with optional("cryptography", extra="testbed"):
        from cryptography.hazmat.primitives.asymmetric import ec
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate(key, "wdmoe-testbed", None, None, key)
    with held_folder(out) as folder:
        for name, host in {STATION: None, **devices}.items():
            own = ec.generate_private_key(ec.SECP256R1())
            certificate = _certificate(own, name, host, authority, key)
            _write(folder / name, {"ca.pem": _pem(authority), "cert.pem": _pem(certificate), "key.pem": _key(own)})
        _write(folder / "ca", {"ca.pem": _pem(authority), "key.pem": _key(key)})


def _read(folder: Path) -> tuple[bytes, bytes, bytes]:
    """Authority, key and certificate of a folder."""
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"expected ca.pem, cert.pem and key.pem in {shown_path(folder)}, found no {missing[0]}")
    authority, key, certificate = (read_bytes(folder / name, _MOST_BYTES) for name in _FILES)
    return authority, key, certificate


def _certificate(own: Any, name: str, host: str | None, issuer: Any, key: Any) -> Any:
    """A certificate of a key; without an issuer that of the authority itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if host is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
    return builder.sign(key, hashes.SHA256())


def _names(host: str) -> list[Any]:
    from cryptography import x509

    try:
        return [x509.IPAddress(ipaddress.ip_address(host))]
    except ValueError:
        return [x509.DNSName(host)]


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _key(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write credentials that only their owner can read."""
    folder.mkdir(mode=0o700)
    write_files(folder, contents)
    (folder / "key.pem").chmod(0o600)
