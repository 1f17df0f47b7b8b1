//! Certificates for tests: an authority, what it issues, and files that hold them. Nothing here is kept or secret.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use tempfile::TempDir;

/// An authority with a directory for what it issues.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    /// A new one, its certificate in `ca.pem`.
    pub fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "an authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let directory = tempfile::Builder::new().prefix("daymark-pki-").tempdir().expect("a directory");
        fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("write");
        Self { issuer: Issuer::new(parameters, key), directory }
    }

    /// A file of this authority.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as text, for a command line.
    pub fn file(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// Issues a certificate for this machine and name: `<file>.pem` and `<file>.key`.
    pub fn issue(&self, file: &str, name: &str) {
        self.issue_with(file, name, |_| {});
    }

    /// The same, changed.
    pub fn issue_with(&self, file: &str, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let (certificate, key) = self.make(name, change);
        replace(&self.path(&format!("{file}.key")), &key);
        replace(&self.path(&format!("{file}.pem")), &certificate);
    }

    /// A certificate and its key, PEM.
    pub fn make(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut parameters = CertificateParams::new(["127.0.0.1".into(), "localhost".into()]).expect("names");
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut parameters);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// Issues a certificate that has expired.
    pub fn issue_expired(&self, file: &str, name: &str) {
        self.issue_with(file, name, |parameters| {
            parameters.not_before = date_time_ymd(2020, 1, 1);
            parameters.not_after = date_time_ymd(2021, 1, 1);
        });
    }

    /// Issues a certificate that expires at that time, in whole seconds.
    pub fn issue_until(&self, file: &str, name: &str, end: SystemTime) {
        let since_epoch = end.duration_since(SystemTime::UNIX_EPOCH).expect("later than 1970");
        self.issue_with(file, name, |parameters| {
            parameters.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(since_epoch.as_secs());
        });
    }

    /// Issues a certificate with this serial number.
    pub fn issue_numbered(&self, file: &str, name: &str, serial: u64) {
        self.issue_with(file, name, |parameters| parameters.serial_number = Some(serial.into()));
    }

    /// Writes a list of revoked serial numbers, DER as etcd wants it.
    pub fn revoke(&self, file: &str, serials: &[u64]) {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        replace(&self.path(file), list.signed_by(&self.issuer).expect("a list").der());
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes aside and moves into place, as those do who rotate certificates.
pub fn replace(path: &Path, bytes: impl AsRef<[u8]>) {
    let aside = path.with_extension("aside");
    fs::write(&aside, bytes).expect("write");
    fs::rename(&aside, path).expect("rename");
}
