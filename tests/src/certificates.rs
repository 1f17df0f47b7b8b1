//! A certificate authority for one test: a certificate for a server on this machine, and one for a client whose common name
//! is `alice`. Made by the `openssl` command, so that they are not of the library that the server checks them with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// Files in PEM form, gone when dropped.
pub struct Certificates {
    home: TempDir,
}

impl Certificates {
    /// Makes all of them, valid for two days.
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("daymark-tls-").tempdir().expect("a temporary directory");
        let this = Self { home };
        let own = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority \
                   -keyout ca.key -out ca.crt";
        this.openssl(own);
        let uses = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
        fs::write(this.path("uses"), uses).expect("write");
        for (file, name) in [("server", "localhost"), ("client", "alice")] {
            this.openssl(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {file}.key -out {file}.csr"
            ));
            this.openssl(&format!(
                "x509 -req -in {file}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile uses -out {file}.crt"
            ));
        }
        this
    }

    /// `ca.crt`, `server.crt`, `server.key`, `client.crt` or `client.key`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Flags of a server that takes only clients with a certificate.
    pub fn server_flags(&self) -> Vec<String> {
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.path(name).display());
        vec![
            file("cert-file", "server.crt"),
            file("key-file", "server.key"),
            file("trusted-ca-file", "ca.crt"),
            "--client-cert-auth".to_owned(),
        ]
    }

    fn openssl(&self, args: &str) {
        run(self.home.path(), args);
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

fn run(folder: &Path, args: &str) {
    let out = Command::new("openssl").args(args.split_whitespace()).current_dir(folder).output();
    let out = out.expect("the openssl command; ./test.sh installs it");
    assert!(out.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&out.stderr));
}
