//! Certificates of clients: whether one is good (signed by a trusted CA, in time, not revoked, with an allowed name) and
//! whom it names. What etcd accepts is accepted, as far as the library can read it.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use x509_parser::prelude::{ASN1Time, CertificateRevocationList, FromDer, X509Certificate};

use super::tls::TlsError;
use crate::config::tls::TlsOptions;

/// Looks at the certificates that clients show.
#[derive(Debug)]
pub(super) struct ClientCertificates {
    by_authorities: Arc<dyn ClientCertVerifier>,
    /// The trusted certificates themselves: a client may show one of them.
    trusted: Vec<CertificateDer<'static>>,
    revocations: Option<Revocations>,
    /// One of them must be in the certificate; empty: no matter.
    allowed_names: Vec<ServerName<'static>>,
    /// Likewise.
    allowed_common_names: Vec<String>,
}

impl ClientCertificates {
    pub fn new(
        path: &Path,
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
        revocations: Option<Revocations>,
        options: &TlsOptions,
    ) -> Result<Self, TlsError> {
        let by_authorities = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let by_authorities = by_authorities.map_err(|error| TlsError::file("trusted-ca-file", path, error))?;
        let trusted = super::tls::certificates("trusted-ca-file", path)?;
        let name = |name: &String| {
            ServerName::try_from(name.clone())
                .map_err(|error| TlsError::file("client-cert-allowed-hostname", Path::new(name), error))
        };
        let allowed_names = options.allowed_hostnames.iter().map(name).collect::<Result<_, _>>()?;
        let allowed_common_names = options.allowed_common_names.clone();
        Ok(Self { by_authorities, trusted, revocations, allowed_names, allowed_common_names })
    }

    /// Whether a certificate has one of the names that are allowed, if only some are.
    fn is_allowed(&self, shown: &CertificateDer<'_>) -> Result<bool, rustls::Error> {
        let mut allowed = self.allowed_names.is_empty() && self.allowed_common_names.is_empty();
        if !self.allowed_names.is_empty() {
            let shown = ParsedCertificate::try_from(shown)?;
            let matches = |name| rustls::client::verify_server_name(&shown, name).is_ok();
            allowed = self.allowed_names.iter().any(matches);
        }
        if !self.allowed_common_names.is_empty() {
            let name = common_name(shown);
            allowed |= self.allowed_common_names.iter().any(|allowed| name.as_deref() == Some(allowed));
        }
        Ok(allowed)
    }
}

impl ClientCertVerifier for ClientCertificates {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.by_authorities.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let by_authorities = self.by_authorities.verify_client_cert(end_entity, intermediates, now);
        // One of the trusted certificates itself needs no other that vouches for it, as in Go.
        if by_authorities.is_err() && !(self.trusted.contains(end_entity) && is_current_client(end_entity, now)) {
            return by_authorities;
        }
        if let Some(revocations) = &self.revocations {
            std::iter::once(end_entity).chain(intermediates).try_for_each(|shown| revocations.check(shown))?;
        }
        if !self.is_allowed(end_entity)? {
            return Err(rustls::Error::General("client certificate authentication failed".into()));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authorities.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authorities.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authorities.supported_verify_schemes()
    }
}

/// Whether a certificate is in time, and for clients if it says what for.
fn is_current_client(certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(now) = ASN1Time::from_timestamp(now.as_secs().cast_signed()) else { return false };
    let for_clients = match certificate.extended_key_usage() {
        Ok(Some(usage)) => usage.value.any || usage.value.client_auth,
        Ok(None) => true,
        Err(_) => false,
    };
    for_clients && certificate.validity().is_valid_at(now)
}

/// Serial numbers of revoked certificates. As in etcd they count whoever issued the certificate, and the file itself is
/// trusted: its signature and age are not looked at.
#[derive(Debug)]
pub(super) struct Revocations {
    /// Big-endian, without leading zeros.
    serials: HashSet<Vec<u8>>,
}

impl Revocations {
    /// Reads a list, DER as etcd takes it, or PEM.
    pub fn read(path: &Path) -> Result<Self, TlsError> {
        let refused = |error: &dyn std::fmt::Display| TlsError::file("client-crl-file", path, error);
        let bytes = std::fs::read(path).map_err(|error| refused(&error))?;
        let der = match CertificateRevocationListDer::from_pem_slice(&bytes) {
            Ok(der) => der.to_vec(),
            Err(_) => bytes,
        };
        let (rest, list) = CertificateRevocationList::from_der(&der).map_err(|error| refused(&error))?;
        if !rest.is_empty() {
            return Err(refused(&"there is something behind the list"));
        }
        let serials = list.iter_revoked_certificates().map(|revoked| number(revoked.raw_serial()).to_vec()).collect();
        Ok(Self { serials })
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
        if self.serials.contains(number(certificate.raw_serial())) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(())
    }
}

/// A number without the zeros that it may be written with.
fn number(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

/// The common name of a certificate, the last one where there are several, as Go takes it; `None` if it is empty.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate.subject().iter_common_name().last()?.as_str().ok()?;
    Some(name).filter(|name| !name.is_empty()).map(Arc::from)
}
