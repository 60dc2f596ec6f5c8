"""Keys: whom nodes obey, whom they take for their server, and who can read what is private."""

import base64
import json
import os
import socket
import ssl
import stat
import threading

import pytest

import fedlearn
from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError
from fedlearn.deployment import folder as folders
from fedlearn.deployment import keys
from fedlearn.deployment.configuration import (
    CONFIGURATION,
    SIGNATURE,
    Configuration,
    read_configuration,
    signed,
)

JOB = Composed({"seed": 3, "name": "ä", "optimizer": {"lr": 0.1}}, {"continual": "naive"})


@pytest.fixture(scope="module")
def admin(tmp_path_factory):
    path = tmp_path_factory.mktemp("admin")
    keys.make_admin_key(path / "admin.key", path / "admin.pub")
    return path


def refusal(carried, admin_public):
    with pytest.raises(ConfigError) as caught:
        read_configuration(carried, admin_public)
    told = str(caught.value)
    assert "\n" not in told
    return told


# --- configurations -----------------------------------------------------------------------------


def test_what_the_admin_signed_arrives_as_it_was(admin):
    carried = signed("run-1", JOB, admin / "admin.key")
    told = read_configuration(carried, admin / "admin.pub")
    assert told == Configuration("run-1", fedlearn.__version__, JOB.tree, JOB.choices)
    assert told.composed == JOB
    told.composed.tree["optimizer"]["lr"] = 9  # a copy of its own
    assert told.composed == JOB


def test_any_change_of_text_or_signature_is_refused(admin):
    carried = signed("run-1", JOB, admin / "admin.key")
    for part in (CONFIGURATION, SIGNATURE):
        text = carried[part]
        changed = [text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :] for at in range(len(text))]
        changed += [text[:-1], text + " ", text + "\n", text[1:], text.swapcase()]
        for other in changed:
            told = refusal({**carried, part: other}, admin / "admin.pub")
            assert "not what this deployment's admin signed" in told
    for other in ("é", "\ud800", "A" * 88, "===="):
        refusal({**carried, SIGNATURE: other}, admin / "admin.pub")
        refusal({**carried, CONFIGURATION: other}, admin / "admin.pub")


def test_there_is_one_text_for_a_signature(admin):
    """The last digit of a signature in base64 has bits that mean nothing."""
    signature = signed("run-1", JOB, admin / "admin.key")[SIGNATURE]
    text = signed("run-1", JOB, admin / "admin.key")[CONFIGURATION]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    others = [signature[:-3] + digit + "==" for digit in alphabet]
    same = [other for other in others if base64.b64decode(other) == base64.b64decode(signature)]
    assert len(same) == 16
    assert [other for other in same if keys.is_signed(text, other, admin / "admin.pub")] == [
        signature
    ]


def test_a_configuration_without_signature_or_of_another_admin_is_refused(admin, tmp_path):
    keys.make_admin_key(tmp_path / "admin.key", tmp_path / "admin.pub")
    theirs = signed("run-1", JOB, tmp_path / "admin.key")
    assert "not what this deployment's admin signed" in refusal(theirs, admin / "admin.pub")
    assert read_configuration(theirs, tmp_path / "admin.pub").run == "run-1"
    ours = signed("run-1", JOB, admin / "admin.key")
    for carried in ({}, {CONFIGURATION: ours[CONFIGURATION]}, {**ours, SIGNATURE: ""}):
        assert "nobody signed it" in refusal(carried, admin / "admin.pub")


@pytest.mark.parametrize("more", [{}, {"a_field_of_tomorrow": 1}], ids=["same", "more"])
def test_a_configuration_for_another_version_is_refused(admin, more):
    text = json.dumps({"run": "r", "version": "99.0", "tree": {}, "choices": {}, **more})
    carried = {CONFIGURATION: text, SIGNATURE: keys.sign(text, admin / "admin.key")}
    for public in (admin / "admin.pub", None):
        told = refusal(carried, public)
        assert "99.0" in told
        assert fedlearn.__version__ in told


# --- certificates -------------------------------------------------------------------------------

HOSTS = ["fl.example.org", "server", "10.1.2.3", "fd00::7"]


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    made = []
    for name in ("ours", "theirs"):
        path = tmp_path_factory.mktemp(name)
        keys.make_authority(path / "ca.key", path / "ca.crt", "fedlearn deployment x")
        keys.make_server_certificate(
            path / "ca.key",
            path / "ca.crt",
            path / "server.key",
            path / "server.crt",
            keys.own_names(HOSTS),
        )
        made.append(path)
    return made


def handshake(server, host, trusted):
    """Shake hands over a socket; return the error that the client ends with, if any."""
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(server / "server.crt", server / "server.key")
    ours = ssl.create_default_context(cafile=str(trusted / "ca.crt"))
    ours.verify_flags |= ssl.VERIFY_X509_STRICT
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        with listener.accept()[0] as line:
            line.settimeout(10)
            try:
                with theirs.wrap_socket(line, server_side=True) as secure:
                    secure.sendall(secure.recv(5))
            except (ssl.SSLError, OSError):
                pass

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        with (
            socket.create_connection(listener.getsockname(), timeout=10) as line,
            ours.wrap_socket(line, server_hostname=host) as secure,
        ):
            secure.sendall(b"hello")
            assert secure.recv(5) == b"hello"
    except ssl.SSLCertVerificationError as error:
        return error
    finally:
        answering.join()
        listener.close()
    return None


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1", "::1", socket.gethostname()])
def test_the_server_is_known_under_each_of_its_names(authorities, host):
    assert handshake(authorities[0], host, authorities[0]) is None


@pytest.mark.parametrize("host", ["example.org", "x.fl.example.org", "10.1.2.4", "fd00::8"])
def test_no_other_host_is_taken_for_the_server(authorities, host):
    error = handshake(authorities[0], host, authorities[0])
    assert error is not None
    assert "mismatch" in error.verify_message


def test_the_server_of_another_deployment_of_the_same_name_is_not_ours(authorities):
    ours, theirs = authorities
    assert handshake(theirs, "localhost", theirs) is None
    assert handshake(theirs, "localhost", ours) is not None
    assert handshake(ours, "localhost", theirs) is not None


def test_the_servers_key_makes_no_certificates(authorities, tmp_path):
    """Who takes the server's key can be the server, and cannot name others."""
    ours = authorities[0]
    keys.make_server_certificate(
        ours / "server.key",
        ours / "server.crt",
        tmp_path / "server.key",
        tmp_path / "leaf.crt",
        ["localhost"],
    )
    chain = (tmp_path / "leaf.crt").read_bytes() + (ours / "server.crt").read_bytes()
    (tmp_path / "server.crt").write_bytes(chain)
    assert handshake(tmp_path, "localhost", ours) is not None


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_umask")
def test_what_is_private_is_so_from_the_first_moment(tmp_path, monkeypatch):
    seen = []

    opened = os.fdopen

    def fdopen(descriptor, *arguments):
        status = os.fstat(descriptor)  # before a byte is in it
        seen.append((status.st_size, stat.S_IMODE(status.st_mode)))
        return opened(descriptor, *arguments)

    monkeypatch.setattr(keys.os, "fdopen", fdopen)
    keys.write_secret(tmp_path / "secret", b"x")
    assert seen == [(0, 0o600)]
    assert mode(tmp_path / "secret") == 0o600
    with pytest.raises(FileExistsError):
        keys.write_secret(tmp_path / "secret", b"y")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        keys.write_secret(tmp_path / "link", b"y")
    assert (tmp_path / "secret").read_bytes() == b"x"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("open_umask")
def test_a_deployments_secrets_are_its_owners_whatever_the_umask(tmp_path):
    path = tmp_path / "fl"
    folders.init(path, 2, ["localhost"])
    private = [each for each in path.rglob("*") if each.suffix in (".key", ".secret")]
    assert len(private) >= 8  # authority, admin, server's two, two for each node
    assert {mode(each) for each in private} == {0o600}
    assert {mode(each) for each in (path, *(each.parent for each in private))} == {0o700}
    texts = [
        each.read_bytes() for each in path.rglob("*") if each.is_file() and each not in private
    ]
    assert not [text for text in texts if b"PRIVATE KEY" in text]
