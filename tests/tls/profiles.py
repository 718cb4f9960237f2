"""Holds Fantail's TLS against Mozilla's profiles with sslyze: the intermediate one as shipped, the modern one by its key.

profiles.py BINARY
"""

import datetime
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from sslyze import (
    CertificateInfoExtraArgument,
    ScanCommandsExtraArguments,
    Scanner,
    ServerNetworkConfiguration,
    ServerNetworkLocation,
    ServerScanRequest,
)
from sslyze.mozilla_tls_profile.tls_config_checker import (
    SCAN_COMMANDS_NEEDED_BY_MOZILLA_CHECKER,
    MozillaTlsConfiguration,
    ServerNotCompliantWithTlsConfiguration,
    TlsConfigurationEnum,
    check_server_against_tls_configuration,
)

from fantail import Fantail

NAME = "test.example"


def certificates(folder, make_key):
    """An authority's file, and a certificate for NAME with its key, as an operator would have them."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), make_key()
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    now = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)

    def issue(name, public_key, extensions):
        made = x509.CertificateBuilder().subject_name(name).issuer_name(authority_name).public_key(public_key)
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now)
        made = made.not_valid_after(now + datetime.timedelta(days=30))
        for extension, critical in extensions:
            made = made.add_extension(extension, critical)
        return made.sign(authority_key, hashes.SHA256())

    usage = dict.fromkeys(
        ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"], False)
    authority_id = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = issue(authority_name, authority_key.public_key(), [
        (x509.BasicConstraints(True, None), True),
        (x509.KeyUsage(**{**usage, "key_cert_sign": True, "crl_sign": True}), True),
        (authority_id, False),
    ])
    leaf = issue(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)]), key.public_key(), [
        (x509.BasicConstraints(False, None), True),
        (x509.KeyUsage(**{**usage, "digital_signature": True}), True),
        (x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([x509.DNSName(NAME)]), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), False),
    ])
    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(authority.public_bytes(pem))
    (folder / f"{NAME}.crt").write_bytes(leaf.public_bytes(pem) + authority.public_bytes(pem))
    (folder / f"{NAME}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return folder / "authority.pem"


def complaints(port, authority, profile):
    """What is not as the profile says."""
    request = ServerScanRequest(
        server_location=ServerNetworkLocation(hostname=NAME, ip_address="127.0.0.1", port=port),
        network_configuration=ServerNetworkConfiguration(tls_server_name_indication=NAME),
        scan_commands=SCAN_COMMANDS_NEEDED_BY_MOZILLA_CHECKER,
        scan_commands_extra_arguments=ScanCommandsExtraArguments(
            certificate_info=CertificateInfoExtraArgument(custom_ca_file=authority)),
    )
    scanner = Scanner()
    scanner.queue_scans([request])
    (result,) = scanner.get_results()
    attempts = vars(result.scan_result or object).items()
    broken = {name: str(each.error_trace or each.status) for name, each in attempts if each.error_reason}
    if broken or result.connectivity_error_trace:
        return broken or {"connectivity": str(result.connectivity_error_trace)}
    try:
        check_server_against_tls_configuration(result, MozillaTlsConfiguration.get(profile))
    except ServerNotCompliantWithTlsConfiguration as failure:
        return failure.issues
    return {}


def main(binary):
    failed = False
    ecdsa = lambda: ec.generate_private_key(ec.SECP256R1())
    rsa_2048 = lambda: rsa.generate_private_key(65537, 2048)
    for profile, kind, make_key, settings in [
        (TlsConfigurationEnum.MOZILLA_INTERMEDIATE, "ECDSA", ecdsa, {}),
        (TlsConfigurationEnum.MOZILLA_INTERMEDIATE, "RSA", rsa_2048, {}),
        (TlsConfigurationEnum.MOZILLA_MODERN, "ECDSA", ecdsa, {"FANTAIL_TLS__PROFILE": "modern"}),
    ]:
        with tempfile.TemporaryDirectory() as name:
            authority = certificates(pathlib.Path(name), make_key)
            # Without a name, too: sslyze asks both ways.
            flags = ["--tls-listen", "127.0.0.1:0", "--cert", f"{name}/{NAME}.crt", "--key", f"{name}/{NAME}.key"]
            server = Fantail(binary, ["* test"], environment=settings, arguments=flags)
            _, port = server.tls
            issues = complaints(port, authority, profile)
            server.stop()
        print(f"{profile.value}, {kind}: {issues or 'as Mozilla has it'}")
        failed |= bool(issues)
    return failed


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1])))
