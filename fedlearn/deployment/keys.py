"""Keys and certificates: who may serve, who may join, and whose configurations a node obeys.

Three kinds. A *certificate authority* of the deployment's own signs the server's certificate, so
that nodes know whom they talk to. Each *node* has a key pair by which the SuperLink knows it. The
*admin* signs configurations (Ed25519), so that a node runs nothing that anybody else made up.
"""

import base64
import ipaddress
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 3650
"""Days that certificates are valid for, from a day before they are made."""

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read.

    Raises:
        FileExistsError: There is one already.
    """
    # never readable by others, not even for a moment
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def make_authority(key_path: Path, certificate_path: Path, name: str) -> None:
    """Make a certificate authority.

    Args:
        key_path: Where its key goes.
        certificate_path: Where its certificate goes.
        name: What it is called.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _certificate(subject, subject, key.public_key(), key.public_key(), authority=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    write_secret(key_path, _pem(key))
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def make_server_certificate(
    authority_key: Path,
    authority: Path,
    key_path: Path,
    certificate_path: Path,
    hosts: Sequence[str],
) -> None:
    """Make a server's key and have the authority certify it.

    Args:
        authority_key: The authority's key.
        authority: The authority's certificate.
        key_path: Where the server's key goes.
        certificate_path: Where its certificate goes.
        hosts: Names and IP addresses by which the server is reached; at least one.
    """
    signer = serialization.load_pem_private_key(authority_key.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(authority.read_bytes()).subject
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    certificate = (
        _certificate(subject, issuer, key.public_key(), signer.public_key(), authority=False)
        .add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(signer, hashes.SHA384())
    )
    write_secret(key_path, _pem(key))
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def make_node_key(key_path: Path, public_path: Path) -> None:
    """Make a SuperNode's key pair, in OpenSSH's format, which is the one that Flower reads."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(
        key_path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    public_path.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )


def public_pem(public_path: Path) -> bytes:
    """Return a node's public key as Flower's SuperLink tells it."""
    key = serialization.load_ssh_public_key(public_path.read_bytes())
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def make_admin_key(key_path: Path, public_path: Path) -> None:
    """Make the key pair that signs configurations."""
    key = ed25519.Ed25519PrivateKey.generate()
    write_secret(key_path, _pem(key))
    public_path.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def sign(text: str, key_path: Path) -> str:
    """Return the admin's signature of a text."""
    key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return base64.b64encode(key.sign(text.encode())).decode()


def is_signed(text: str, signature: str, public_path: Path) -> bool:
    """Return whether the admin signed a text."""
    key = serialization.load_pem_public_key(public_path.read_bytes())
    assert isinstance(key, ed25519.Ed25519PublicKey)
    try:
        told = base64.b64decode(signature, validate=True)
        key.verify(told, text.encode())
    except (InvalidSignature, ValueError):
        return False
    return base64.b64encode(told).decode() == signature  # its last digit has bits of no meaning


def own_names(hosts: Sequence[str]) -> list[str]:
    """Return `hosts` and the names that a machine has for itself, each once."""
    return list(dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1", socket.gethostname()]))


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    authority: bool,
) -> x509.CertificateBuilder:
    since = datetime.now(UTC) - timedelta(days=1)  # clocks differ
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(since + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(authority, 0 if authority else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(  # Python 3.13 and later ask for it
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False
        )
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
