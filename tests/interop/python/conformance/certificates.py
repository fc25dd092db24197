"""Devices that prove themselves with a certificate, by azure-iot-device, and their identities by azure-iot-hub."""

import hashlib
import ssl

from azure.iot.device import X509, IoTHubDeviceClient, IoTHubModuleClient
from azure.iot.device.exceptions import CredentialError
from azure.iot.hub.models import CloudToDeviceMethod

from suite import Suite

from support import CA, DATA, create_device, equal, host_name, latch, on_methods, refused, registry

suite = Suite()


def file(name):
    """A certificate that the test has made."""
    return DATA / "devices-of-tests" / name


def thumbprint(name, digest="sha256"):
    first, _, _ = file(f"{name}.pem").read_text().partition("-----END CERTIFICATE-----")
    der = ssl.PEM_cert_to_DER_cert(f"{first}-----END CERTIFICATE-----\n")
    return hashlib.new(digest, der).hexdigest().upper()


def connect(device_id, name, module_id=None, **options):
    """A connected client of the device, or of a module of it, that shows this certificate."""
    kind, ids = (IoTHubModuleClient, [device_id, module_id]) if module_id else (IoTHubDeviceClient, [device_id])
    client = kind.create_from_x509_certificate(
        X509(cert_file=str(file(f"{name}.pem")), key_file=str(file(f"{name}.key"))),
        host_name(),
        *ids,
        server_verification_cert=CA,
        **options,
    )
    client.connect()
    return client


def works(device_id, client):
    """Whether the device is connected now and heard in both directions."""
    on_methods(client, {"ping": lambda payload: (200, "pong")})
    call = CloudToDeviceMethod(method_name="ping", response_timeout_in_seconds=20)
    equal(registry.invoke_device_method(device_id, call).payload, "pong")
    client.shutdown()


def not_let_in(device_id, name, **options):
    try:
        connect(device_id, name, connection_retry=False, **options)
    except CredentialError:
        return
    raise AssertionError("the device was let in")


def trust_factory():
    """The authority of the test's factory. Whoever comes second finds it there."""
    if "factory" not in latch("hub", "ca", "list"):
        latch("hub", "ca", "add", str(file("factory.pem")))


@suite.case("a thumbprint of SHA-1", "The certificate whose SHA-1 is the primary thumbprint lets the device in.")
def sha1(fresh):
    device_id = fresh()
    registry.create_device_with_x509(device_id, thumbprint("own", "sha1"), None, "enabled")
    works(device_id, connect(device_id, "own"))


@suite.case("a thumbprint of SHA-256", "SHA-256 is as good as SHA-1, and the secondary thumbprint as the primary.")
def sha256(fresh):
    device_id = fresh()
    registry.create_device_with_x509(device_id, thumbprint("other"), thumbprint("next"), "enabled")
    works(device_id, connect(device_id, "next"))


@suite.case("a certificate by WebSocket", "A certificate is shown on port 443 as on 8883.")
def websocket(fresh):
    device_id = fresh()
    registry.create_device_with_x509(device_id, thumbprint("own"), None, "enabled")
    works(device_id, connect(device_id, "own", websockets=True))
    not_let_in(device_id, "other", websockets=True)


@suite.case("a module's certificate", "A module's own thumbprint lets it in, its device's certificate does not.")
def module(fresh):
    device_id = fresh()
    registry.create_device_with_x509(device_id, thumbprint("other"), None, "enabled")
    registry.create_module_with_x509(device_id, "lock", "", thumbprint("own"), None)
    not_let_in(device_id, "other", module_id="lock")
    client = connect(device_id, "own", module_id="lock")
    on_methods(client, {"ping": lambda payload: (200, "pong")})
    call = CloudToDeviceMethod(method_name="ping", response_timeout_in_seconds=20)
    equal(registry.invoke_device_module_method(device_id, "lock", call).payload, "pong")
    client.shutdown()


@suite.case("another certificate", "A certificate with neither of the thumbprints is the SDK's CredentialError.")
def other(fresh):
    device_id = fresh()
    registry.create_device_with_x509(device_id, thumbprint("own"), thumbprint("next"), "enabled")
    not_let_in(device_id, "other")


@suite.case("an expired certificate", "A certificate whose time is over is refused, though its thumbprint is right.")
def expired(fresh):
    device_id = fresh()
    registry.create_device_with_x509(device_id, thumbprint("expired"), None, "enabled")
    not_let_in(device_id, "expired")


@suite.case("a certificate in place of a key", "A device with keys cannot connect with a certificate.")
def in_place_of_a_key(fresh):
    device_id = fresh()
    create_device(device_id)
    not_let_in(device_id, "own")


@suite.case("an identity with thumbprints", "Thumbprints are kept as they are given; there are no keys beside them.")
def identity(fresh):
    device_id = fresh()
    thumbprints = (thumbprint("own", "sha1"), thumbprint("next"))
    registry.create_device_with_x509(device_id, *thumbprints, "disabled", status_reason="spare")
    device = registry.get_device(device_id)
    shown = device.authentication.x509_thumbprint
    equal((shown.primary_thumbprint, shown.secondary_thumbprint), thumbprints)
    equal((device.authentication.type, device.status), ("selfSigned", "disabled"))
    equal(device.authentication.symmetric_key.primary_key, None)
    twin = registry.get_twin(device_id)
    equal((twin.authentication_type, twin.x509_thumbprint.primary_thumbprint), ("selfSigned", thumbprints[0]))


@suite.case("certificates are rolled over", "An update of the thumbprints counts from the next connection on.")
def rolled_over(fresh):
    device_id = fresh()
    device = registry.create_device_with_x509(device_id, thumbprint("own"), None, "enabled")
    updated = registry.update_device_with_x509(device_id, device.etag, thumbprint("next"), None, "enabled")
    assert updated.etag != device.etag
    not_let_in(device_id, "own")
    works(device_id, connect(device_id, "next"))
    again = (device_id, device.etag, thumbprint("own"), None, "enabled")
    assert "PreconditionFailed" in refused(412, registry.update_device_with_x509, *again)


# One after the other, as they share the authority and its devices.
@suite.case("a certificate of an authority", "A known authority's certificate in the device's name lets it in.", alone=True)
def signed(_):
    trust_factory()
    device = registry.create_device_with_certificate_authority("signed", "enabled")
    equal((device.authentication.type, device.authentication.symmetric_key.primary_key), ("certificateAuthority", None))
    works("signed", connect("signed", "signed"))
    registry.create_device_with_certificate_authority("signed-elsewhere", "enabled")
    not_let_in("signed-elsewhere", "signed-elsewhere")


@suite.case("a certificate of an authority below", "A client may show those that lead to the authority.", alone=True)
def signed_below(_):
    trust_factory()
    registry.create_device_with_certificate_authority("signed-below", "enabled")
    works("signed-below", connect("signed-below", "signed-below"))
    works("signed-below", connect("signed-below", "signed-below", websockets=True))


@suite.case("a certificate of another device", "The common name of a signed certificate is the device's id.", alone=True)
def of_another_device(fresh):
    trust_factory()
    device_id = fresh()
    registry.create_device_with_certificate_authority(device_id, "enabled")
    not_let_in(device_id, "signed")


@suite.case("a signed certificate that has expired", "A signed certificate whose time is over is refused.", alone=True)
def signed_expired(_):
    trust_factory()
    registry.create_device_with_certificate_authority("signed-expired", "enabled")
    not_let_in("signed-expired", "signed-expired")


@suite.case("a device changes to an authority", "An update may change how a device proves itself.", alone=True)
def changes(_):
    trust_factory()
    name = "signed-below"
    registry.update_device_with_x509(name, "*", thumbprint("own"), None, "enabled")
    not_let_in(name, "signed-below")
    works(name, connect(name, "own"))
    registry.update_device_with_certificate_authority(name, "*", "enabled")
    not_let_in(name, "own")
    works(name, connect(name, "signed-below"))


suite.run()
