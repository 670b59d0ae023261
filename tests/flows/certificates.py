# SPDX-License-Identifier: Apache-2.0
"""Authorities and certificates for tests, made by openssl in a directory of the test."""
import os
import subprocess

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(directory, *arguments):
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def make_authority(directory, name):
    openssl(directory, "req", "-x509", *KEY, "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out",
            f"{name}.pem")


def make_certificate(directory, authority, name, address):
    (directory / f"{name}.ext").write_text(f"subjectAltName=IP:{address}")
    openssl(directory, "req", *KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    openssl(directory, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    os.chmod(directory / f"{name}.key", 0o600)


def tls_options(directory, authority, name):
    return ["--tls-cacert", directory / f"{authority}.pem", "--tls-cert", directory / f"{name}.pem",
            "--tls-key", directory / f"{name}.key"]
