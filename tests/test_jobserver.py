"""Who is asked to run a job: only http, only where not everybody may, only a Ray that hfbatch can use."""

import datetime
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hfbatch.errors import AccessRefused, SpecError, SystemicError
from hfbatch.jobserver import connect
from tests.job_server import JobServer

SECRET = "TOPSECRET"


@pytest.fixture
def serving():
    """serving(**of a JobServer) -> the server, started."""
    servers = []

    def start(**options):
        servers.append(JobServer(**options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.mark.parametrize(
    "address",
    ["head:8265", "ray://head:10001", "auto", "os://path", "http://", "http://head:x", "http://head/?a=b", ""],
)
def test_an_address_that_is_none_is_refused_with_one_that_is(address):
    with pytest.raises(SpecError, match="write --address http://HEAD:8265"):
        connect(address)


@pytest.mark.parametrize("address", [f"http://me:{SECRET}@head:8265", f"https://{SECRET}@head"])
def test_credentials_in_the_address_are_refused_and_not_shown(address):
    with pytest.raises(AccessRefused, match="RAY_AUTH_TOKEN") as refused:
        connect(address)
    assert SECRET not in str(refused.value)


def outward(server):
    """The same server under an address that is not loopback's."""
    return server.url.replace("127.0.0.1", "0.0.0.0")


def test_a_cluster_that_is_open_to_everybody_is_used_only_on_loopback_or_on_demand(serving):
    server = serving()
    with pytest.raises(AccessRefused, match=r"whoever reaches this port runs code there.*--insecure-cluster"):
        connect(outward(server), insecure=False)
    assert not server.jobs
    assert connect(outward(server), insecure=True).get_address() == outward(server)
    assert connect(server.url + "/", insecure=False).get_address() == server.url
    localhost = server.url.replace("127.0.0.1", "localhost")
    assert connect(localhost, insecure=False).get_address() == localhost


def test_a_cluster_that_asks_for_a_token_needs_no_demand_but_the_token(serving, monkeypatch):
    server = serving(token=SECRET)
    with pytest.raises(AccessRefused, match="set RAY_AUTH_MODE=token"):
        connect(outward(server), insecure=False)
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"Authorization": "Bearer wrong"}')
    with pytest.raises(AccessRefused, match="the cluster refused the token"):
        connect(outward(server), insecure=False)
    monkeypatch.setenv("RAY_JOB_HEADERS", f'{{"Authorization": "Bearer {SECRET}"}}')
    assert connect(outward(server), insecure=False)


def test_who_may_is_asked_without_the_token(serving, monkeypatch):
    monkeypatch.setenv("RAY_JOB_HEADERS", f'{{"Authorization": "Bearer {SECRET}"}}')
    server = serving()
    with pytest.raises(AccessRefused, match="asks nobody for a token"):
        connect(outward(server), insecure=False)
    assert SECRET not in "".join(server.received)


@pytest.mark.parametrize("headers", ["Authorization: x", "[]", '{"a": 1}'])
def test_headers_that_are_none_are_told_and_not_shown(monkeypatch, headers):
    monkeypatch.setenv("RAY_JOB_HEADERS", headers)
    with pytest.raises(SpecError, match="RAY_JOB_HEADERS: is not a JSON object"):
        connect("http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_environment_names_no_other_cluster(serving, monkeypatch, name):
    monkeypatch.setenv(name, "http://192.0.2.77:8265")
    server = serving()
    assert connect(server.url).get_address() == server.url
    assert len(server.received) > 1


@pytest.mark.parametrize("version", ["2.9.3", "2.54.1"])
def test_a_cluster_with_another_ray_is_told_what_it_has_and_what_is_needed(serving, version):
    server = serving(ray_version=version)
    with pytest.raises(SystemicError, match=rf"the cluster has Ray {version}, and hfbatch \S+ needs ray.*2.55.*image"):
        connect(server.url)


def test_nobody_there_is_told_with_the_address():
    with pytest.raises(SystemicError, match=r"http://127.0.0.1:9: cannot be reached: .*refused.*is the cluster up"):
        connect("http://127.0.0.1:9")


def test_another_web_server_is_not_taken_for_a_job_server(serving):
    server = serving()
    with pytest.raises(SystemicError, match="is it the address of a Ray dashboard"):
        connect(f"{server.url}/elsewhere")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(file of a certificate for 127.0.0.1, signed by itself; its key)."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = made.add_extension(addresses, critical=False).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"


def test_https_is_checked_against_the_authorities_that_are_named(serving, certificate, monkeypatch):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    server = serving(tls=tls)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with pytest.raises(SystemicError, match="set REQUESTS_CA_BUNDLE"):
        connect(server.url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    assert connect(server.url).get_address() == server.url
