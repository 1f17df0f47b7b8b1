//! A certificate for `--auto-tls`: made at the first start, kept beside the data, and made anew only when it has expired.
//! It is its own authority and nobody else's: clients that want to check it are given the certificate itself.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tls::TlsError;

const REMEDY: &str = "make the data directory writable for this user, or give --cert-file and --key-file";

/// Paths of certificate and key, made if they are missing or expired.
pub(super) fn certificate(
    directory: &Path,
    hosts: &[String],
    validity_years: u32,
) -> Result<(PathBuf, PathBuf), TlsError> {
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    if is_current(&certificate) && key.exists() {
        return Ok((certificate, key));
    }
    let refused = |error: &dyn std::fmt::Display| TlsError {
        cause: format!("cannot make a certificate in {}: {error}", directory.display()),
        remedy: REMEDY,
    };
    fs::create_dir_all(directory).map_err(|error| refused(&error))?;
    let (certificate_pem, key_pem) = make(hosts, validity_years).map_err(|error| refused(&error))?;
    // The certificate last: a start that ends in between leaves nothing that looks complete.
    write(&key, key_pem.as_bytes(), 0o600).map_err(|error| refused(&error))?;
    write(&certificate, certificate_pem.as_bytes(), 0o644).map_err(|error| refused(&error))?;
    tracing::warn!(path = %certificate.display(), hosts = ?hosts, validity_years, "made a certificate for --auto-tls");
    Ok((certificate, key))
}

fn make(hosts: &[String], validity_years: u32) -> Result<(String, String), rcgen::Error> {
    let mut parameters = CertificateParams::new(hosts.to_vec())?;
    let mut name = DistinguishedName::new();
    // No common name: nobody is a user by it.
    name.push(DnType::OrganizationName, "etcd");
    parameters.distinguished_name = name;
    let now = SystemTime::now();
    parameters.not_before = now.into();
    parameters.not_after = (now + Duration::from_secs(u64::from(validity_years) * 365 * 24 * 3600)).into();
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = parameters.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Whether there is a certificate that has not expired.
fn is_current(path: &Path) -> bool {
    let Ok(chain) = super::tls::certificates("cert-file", path) else { return false };
    let first = chain.first().map(|certificate| X509Certificate::from_der(certificate));
    matches!(first, Some(Ok((_, certificate))) if certificate.validity().is_valid())
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    // A file that is there already keeps its mode otherwise.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
