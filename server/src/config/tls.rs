//! TLS towards clients as configured: which files, which versions, which suites. Opens nothing; `net/tls.rs` does.

use std::path::PathBuf;

use super::flags::Given;
use super::values::Url;
use super::{number, truth};

/// How connections of clients are encrypted.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    pub certificate: CertificateSource,
    /// Demand certificates of clients that these CAs have signed.
    pub trusted_ca: Option<PathBuf>,
    /// The common name of a client's certificate is the user that asks (`--client-cert-auth`).
    pub names_are_users: bool,
    /// Revoked certificates of clients.
    pub revocations: Option<PathBuf>,
    /// Clients whose certificate has none of these names are refused; empty: all names are fine.
    pub allowed_hostnames: Vec<String>,
    /// The same for common names; only one of the two lists is filled.
    pub allowed_common_names: Vec<String>,
    /// Suites of TLS 1.2 by their names; empty: all that are served. Those of TLS 1.3 cannot be chosen, as in Go.
    pub cipher_suites: Vec<&'static str>,
    pub versions: Versions,
}

/// How connections between members are encrypted, in both roles.
#[derive(Clone, Debug)]
pub struct PeerTlsOptions {
    /// What is shown to and asked of a member that connects. Without CAs nobody is asked, and nobody's certificate is
    /// looked at (`--peer-auto-tls`).
    pub server: TlsOptions,
    /// Certificate and key towards members that this one connects to, if not the same.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Whether a member may come from an address that its certificate does not name.
    pub skip_origin_check: bool,
}

/// Where the server's own certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    Files {
        certificate: PathBuf,
        key: PathBuf,
    },
    /// Made at the first start and kept in `directory`.
    SelfMade {
        directory: PathBuf,
        hosts: Vec<String>,
        validity_years: u32,
    },
}

/// Which versions of TLS are spoken; at least one.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    pub tls12: bool,
    pub tls13: bool,
}

/// Suites of TLS 1.2 that are served.
pub const SERVED_SUITES: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// Other names of served suites, which etcd knows too.
const OLD_NAMES: [(&str, &str); 2] = [
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
];

/// Suites of TLS 1.3: known, and always on.
const ALWAYS_ON: [&str; 3] = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// Suites that Go knows and Daymark does not serve: without forward secrecy, or with ciphers that have known attacks.
const NOT_SERVED: [&str; 16] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_RC4_128_SHA",
];

/// TLS for clients, if there is a certificate. `listen` are the URLs of clients, HTTP included.
pub fn client_tls(
    given: &Given,
    listen: &[&Url],
    data_dir: &std::path::Path,
    warnings: &mut Vec<String>,
) -> Result<Option<TlsOptions>, String> {
    let versions = versions(given)?;
    let cipher_suites = cipher_suites(given, versions, warnings)?;
    both_or_none(given, "client-cert-file", "client-key-file")?;
    let Some(certificate) = certificate_of(given, &OF_CLIENTS, listen, data_dir, warnings)? else {
        return match listen.iter().find(|url| url.scheme.is_secure()) {
            Some(url) => Err(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            )),
            None => {
                let of_clients = ["trusted-ca-file", "client-crl-file", "client-cert-allowed-hostname"];
                let set = of_clients.into_iter().filter(|flag| !given.text(flag).is_empty());
                let set = set.chain(Some("client-cert-auth").filter(|flag| truth(given, flag)));
                warnings.extend(set.map(|flag| format!("--{flag} has no effect on connections without TLS")));
                Ok(None)
            }
        };
    };
    let path = |flag| Some(given.text(flag)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let options = TlsOptions {
        certificate,
        trusted_ca: path("trusted-ca-file"),
        names_are_users: truth(given, "client-cert-auth"),
        revocations: path("client-crl-file"),
        allowed_hostnames: list(given.text("client-cert-allowed-hostname")),
        allowed_common_names: list(given.text("client-cert-allowed-cn")),
        cipher_suites,
        versions,
    };
    if options.names_are_users && options.trusted_ca.is_none() {
        return Err("--client-cert-auth needs the CAs that clients' certificates are checked with; add \
                    --trusted-ca-file"
            .into());
    }
    if !options.allowed_hostnames.is_empty() && !options.allowed_common_names.is_empty() {
        return Err("allowed-cn and allowed-hostname are mutually exclusive; give one of them".into());
    }
    for (flag, given) in [
        ("client-crl-file", options.revocations.is_some()),
        ("client-cert-allowed-hostname", !options.allowed_hostnames.is_empty()),
        ("client-cert-allowed-cn", !options.allowed_common_names.is_empty()),
    ] {
        if given && options.trusted_ca.is_none() {
            warnings.push(format!("--{flag} has no effect without --trusted-ca-file: clients show no certificates"));
        }
    }
    for url in listen.iter().filter(|url| !url.scheme.is_secure()) {
        warnings.push(format!("{url} is served without TLS although there is a certificate; use https or unixs"));
    }
    Ok(Some(options))
}

/// TLS between members, if there is a certificate.
pub fn peer_tls(
    given: &Given,
    listen: &[&Url],
    data_dir: &std::path::Path,
    warnings: &mut Vec<String>,
) -> Result<Option<PeerTlsOptions>, String> {
    let versions = versions(given)?;
    // Warned of once, with those of clients.
    let cipher_suites = cipher_suites(given, versions, &mut Vec::new())?;
    let (client_certificate, client_key) = both_or_none(given, "peer-client-cert-file", "peer-client-key-file")?;
    let Some(certificate) = certificate_of(given, &OF_PEERS, listen, data_dir, warnings)? else {
        return match listen.iter().find(|url| url.scheme.is_secure()) {
            Some(url) => Err(format!(
                "TLS key/cert (--peer-cert-file, --peer-key-file) must be provided for peer url {url} with HTTPS scheme"
            )),
            None => Ok(None),
        };
    };
    let path = |flag| Some(given.text(flag)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let server = TlsOptions {
        certificate,
        trusted_ca: path("peer-trusted-ca-file"),
        names_are_users: false,
        revocations: path("peer-crl-file"),
        allowed_hostnames: list(given.text("peer-cert-allowed-hostname")),
        allowed_common_names: list(given.text("peer-cert-allowed-cn")),
        cipher_suites,
        versions,
    };
    if server.trusted_ca.is_none() && matches!(server.certificate, CertificateSource::Files { .. }) {
        return Err("members check each other's certificates; add --peer-trusted-ca-file, or use --peer-auto-tls \
                    for connections that are encrypted only"
            .into());
    }
    if server.trusted_ca.is_none() && truth(given, "peer-client-cert-auth") {
        return Err("--peer-client-cert-auth needs the CAs that certificates are checked with; add \
                    --peer-trusted-ca-file"
            .into());
    }
    if !server.allowed_hostnames.is_empty() && !server.allowed_common_names.is_empty() {
        return Err("peer allowed-cn and allowed-hostname are mutually exclusive; give one of them".into());
    }
    for url in listen.iter().filter(|url| !url.scheme.is_secure()) {
        warnings.push(format!("{url} is served without TLS although members have a certificate; use https"));
    }
    Ok(Some(PeerTlsOptions {
        server,
        client_certificate: (!client_certificate.is_empty()).then(|| (client_certificate.into(), client_key.into())),
        skip_origin_check: truth(given, "peer-skip-client-san-verification")
            || truth(given, "experimental-peer-skip-client-san-verification"),
    }))
}

/// The flags of a certificate, and where a self-made one is kept.
struct CertificateFlags {
    certificate: &'static str,
    key: &'static str,
    auto: &'static str,
    directory: &'static str,
}

const OF_CLIENTS: CertificateFlags =
    CertificateFlags { certificate: "cert-file", key: "key-file", auto: "auto-tls", directory: "client" };
const OF_PEERS: CertificateFlags =
    CertificateFlags { certificate: "peer-cert-file", key: "peer-key-file", auto: "peer-auto-tls", directory: "peer" };

fn certificate_of(
    given: &Given,
    flags: &CertificateFlags,
    listen: &[&Url],
    data_dir: &std::path::Path,
    warnings: &mut Vec<String>,
) -> Result<Option<CertificateSource>, String> {
    let CertificateFlags { auto, directory, .. } = flags;
    let (certificate, key) = both_or_none(given, flags.certificate, flags.key)?;
    if !certificate.is_empty() {
        if truth(given, auto) {
            let (certificate, key) = (flags.certificate, flags.key);
            warnings.push(format!("--{auto} is ignored, since --{certificate} and --{key} are given"));
        }
        return Ok(Some(CertificateSource::Files { certificate: certificate.into(), key: key.into() }));
    }
    if !truth(given, auto) {
        return Ok(None);
    }
    let validity_years = number(given, "self-signed-cert-validity")?;
    if validity_years == 0 || validity_years > 100 {
        return Err("--self-signed-cert-validity must be 1 to 100 years".into());
    }
    let hosts = listen.iter().filter_map(|url| url.host_and_port()).map(|(host, _)| host.to_owned());
    let hosts: std::collections::BTreeSet<_> = hosts.filter(|host| !host.is_empty()).collect();
    Ok(Some(CertificateSource::SelfMade {
        directory: data_dir.join("fixtures").join(directory),
        hosts: hosts.into_iter().collect(),
        validity_years: validity_years as u32,
    }))
}

/// A certificate and its key, which make sense only together.
fn both_or_none<'a>(given: &'a Given, certificate: &str, key: &str) -> Result<(&'a str, &'a str), String> {
    match (given.text(certificate), given.text(key)) {
        (cert_file, key_file) if cert_file.is_empty() == key_file.is_empty() => Ok((cert_file, key_file)),
        (cert_file, key_file) => Err(format!(
            "--{certificate} and --{key} must both be present or both absent: {cert_file:?} and {key_file:?} are given"
        )),
    }
}

fn versions(given: &Given) -> Result<Versions, String> {
    let version = |flag| match given.text(flag) {
        "" => Ok(None),
        "TLS1.2" => Ok(Some(2)),
        "TLS1.3" => Ok(Some(3)),
        other => Err(format!("unexpected TLS version {other:?} (must be one of: TLS1.2, TLS1.3)")),
    };
    let (min, max) = (version("tls-min-version")?.unwrap_or(2), version("tls-max-version")?.unwrap_or(3));
    if min > max {
        let (min, max) = (given.text("tls-min-version"), given.text("tls-max-version"));
        return Err(format!("min version ({min}) is greater than max version ({max})"));
    }
    Ok(Versions { tls12: min == 2, tls13: max == 3 })
}

fn cipher_suites(given: &Given, versions: Versions, warnings: &mut Vec<String>) -> Result<Vec<&'static str>, String> {
    let names = list(given.text("cipher-suites"));
    if !names.is_empty() && !versions.tls12 {
        return Err("cipher suites cannot be configured when only TLS1.3 is enabled".into());
    }
    let mut suites = Vec::new();
    for name in &names {
        let old = OLD_NAMES.iter().find(|(old, _)| old == name).map(|(_, present)| *present);
        if let Some(suite) = old.or(SERVED_SUITES.iter().find(|suite| *suite == name).copied()) {
            suites.push(suite);
        } else if NOT_SERVED.contains(&name.as_str()) {
            warnings.push(format!("--cipher-suites: {name} is not served, since it is not safe any more"));
        } else if !ALWAYS_ON.contains(&name.as_str()) {
            return Err(format!("unexpected TLS cipher suite {name:?}"));
        }
    }
    if !names.is_empty() && suites.is_empty() && !(versions.tls13 && names.iter().any(|n| ALWAYS_ON.contains(&&**n))) {
        return Err(format!("--cipher-suites: none of these is served; choose from {}", SERVED_SUITES.join(", ")));
    }
    Ok(suites)
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}
