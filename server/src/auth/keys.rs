//! The keys behind JSON web tokens: read from PEM files, signing and checking bytes with each of etcd's methods. Knows
//! nothing of what is signed.

use std::fs;

use p521::ecdsa::signature::{Signer as _, Verifier as _};
use pkcs8::der::{Decode, SliceReader, asn1::AnyRef};
use pkcs8::{PrivateKeyInfoRef, SubjectPublicKeyInfoRef};
use ring::rand::SystemRandom;
use ring::signature::{self as rs, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair, UnparsedPublicKey};
use ring::{hmac, signature};
use sec1::EcPrivateKey;

use crate::auth::token::TokenSpecError;
use crate::error::Error;
use crate::limits;

/// How tokens are signed, by the name that goes into them.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Method {
    name: &'static str,
    scheme: Scheme,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Scheme {
    Hmac(Bits),
    RsaPkcs1(Bits),
    RsaPss(Bits),
    Ecdsa(Bits),
    Ed25519,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Bits {
    B256,
    B384,
    B512,
}

const METHODS: [Method; 13] = [
    Method { name: "RS256", scheme: Scheme::RsaPkcs1(Bits::B256) },
    Method { name: "RS384", scheme: Scheme::RsaPkcs1(Bits::B384) },
    Method { name: "RS512", scheme: Scheme::RsaPkcs1(Bits::B512) },
    Method { name: "PS256", scheme: Scheme::RsaPss(Bits::B256) },
    Method { name: "PS384", scheme: Scheme::RsaPss(Bits::B384) },
    Method { name: "PS512", scheme: Scheme::RsaPss(Bits::B512) },
    Method { name: "ES256", scheme: Scheme::Ecdsa(Bits::B256) },
    Method { name: "ES384", scheme: Scheme::Ecdsa(Bits::B384) },
    Method { name: "ES512", scheme: Scheme::Ecdsa(Bits::B512) },
    Method { name: "HS256", scheme: Scheme::Hmac(Bits::B256) },
    Method { name: "HS384", scheme: Scheme::Hmac(Bits::B384) },
    Method { name: "HS512", scheme: Scheme::Hmac(Bits::B512) },
    Method { name: "EdDSA", scheme: Scheme::Ed25519 },
];

impl Method {
    /// The method of a `sign-method` option.
    pub fn by_name(name: &str) -> Result<Self, TokenSpecError> {
        METHODS.iter().find(|method| method.name == name).copied().ok_or_else(|| {
            let known: Vec<_> = METHODS.iter().map(|method| method.name).collect();
            TokenSpecError(format!("jwt option sign-method={name} is unknown; give one of {}", known.join(", ")))
        })
    }

    /// Its name in the header of a token.
    pub fn name(self) -> &'static str {
        self.name
    }
}

/// What signs, if this member may, and what checks.
pub struct Keys {
    signer: Option<Signer>,
    verifier: Verifier,
}

enum Signer {
    Hmac(hmac::Key),
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair),
    P521(Box<p521::ecdsa::SigningKey>),
    Ed25519(Ed25519KeyPair),
}

enum Verifier {
    Hmac(hmac::Key),
    /// The bytes that ring wants: `RSAPublicKey`, an uncompressed point, or an Ed25519 key.
    Ring(Vec<u8>),
    P521(Box<p521::ecdsa::VerifyingKey>),
}

impl Keys {
    /// Reads the key files. Without a private key tokens are only checked.
    pub fn read(method: Method, public: Option<&str>, private: Option<&str>) -> Result<Self, TokenSpecError> {
        if let Scheme::Hmac(_) = method.scheme {
            let path = private.ok_or_else(|| {
                TokenSpecError(format!("{} needs a secret; name its file with priv-key=<file>", method.name))
            })?;
            let secret = read(path)?;
            if secret.is_empty() {
                return Err(wrong(path, "is empty; write a random secret into it, 32 bytes or more"));
            }
            return Ok(Self::from_secret(method, &secret));
        }
        let signer = private.map(|path| Signer::parse(method, path, &read(path)?)).transpose()?;
        let given = public.map(|path| Ok((path, public_key(path, &read(path)?)?))).transpose()?;
        let own = signer.as_ref().map(Signer::public_key);
        let key = match (given, own) {
            (Some((path, given)), Some(own)) if given != own => {
                return Err(wrong(path, "is not the public key of priv-key; give the one that belongs to it"));
            }
            (_, Some(own)) => own,
            (Some((path, given)), None) => {
                check_public_key(method, path, &given)?;
                given
            }
            (None, None) => {
                return Err(TokenSpecError(format!(
                    "{} needs a key; name a file with priv-key=<file>, or with pub-key=<file> to only check tokens",
                    method.name
                )));
            }
        };
        let verifier = Verifier::new(method, key)?;
        Ok(Self { signer, verifier })
    }

    /// Both sides of a shared secret.
    pub fn from_secret(method: Method, secret: &[u8]) -> Self {
        let algorithm = match method.scheme {
            Scheme::Hmac(Bits::B384) => hmac::HMAC_SHA384,
            Scheme::Hmac(Bits::B512) => hmac::HMAC_SHA512,
            _ => hmac::HMAC_SHA256,
        };
        let key = hmac::Key::new(algorithm, secret);
        Self { signer: Some(Signer::Hmac(key.clone())), verifier: Verifier::Hmac(key) }
    }

    /// The signature of a message.
    pub fn sign(&self, method: Method, message: &[u8]) -> Result<Vec<u8>, Error> {
        let random = SystemRandom::new();
        let failed = |_| Error::Internal("the system has no random bytes to sign a token with".into());
        Ok(match self.signer.as_ref().ok_or(Error::TokenVerifyOnly)? {
            Signer::Hmac(key) => hmac::sign(key, message).as_ref().to_vec(),
            Signer::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(rsa_encoding(method), &random, message, &mut signature).map_err(failed)?;
                signature
            }
            Signer::Ecdsa(pair) => pair.sign(&random, message).map_err(failed)?.as_ref().to_vec(),
            Signer::P521(key) => {
                let signature: p521::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Signer::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        })
    }

    /// Whether the signature is that of the message.
    pub fn verify(&self, method: Method, message: &[u8], signature: &[u8]) -> bool {
        match &self.verifier {
            Verifier::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
            Verifier::Ring(key) => match ring_algorithm(method) {
                Some(algorithm) => UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok(),
                None => false,
            },
            Verifier::P521(key) => p521::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
        }
    }
}

impl Verifier {
    fn new(method: Method, key: Vec<u8>) -> Result<Self, TokenSpecError> {
        if method.scheme != Scheme::Ecdsa(Bits::B512) {
            return Ok(Self::Ring(key));
        }
        let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(&key);
        key.map(|key| Self::P521(Box::new(key)))
            .map_err(|_| TokenSpecError("ES512 needs a key on the curve P-521".into()))
    }
}

impl Signer {
    fn parse(method: Method, path: &str, pem: &[u8]) -> Result<Self, TokenSpecError> {
        let (label, der) = decode_pem(path, pem)?;
        let unfit = || wrong(path, &format!("holds no private key for {}: {}", method.name, wanted(method)));
        match method.scheme {
            Scheme::RsaPkcs1(_) | Scheme::RsaPss(_) => {
                let pair = match label.as_str() {
                    "RSA PRIVATE KEY" => RsaKeyPair::from_der(&der),
                    _ => RsaKeyPair::from_pkcs8(&der),
                };
                pair.map(Self::Rsa).map_err(|_| unfit())
            }
            Scheme::Ecdsa(bits) => {
                let inner = match label.as_str() {
                    "EC PRIVATE KEY" => der.clone(),
                    _ => PrivateKeyInfoRef::from_der(&der).map_err(|_| unfit())?.private_key.as_bytes().to_vec().into(),
                };
                ecdsa_signer(bits, &inner).ok_or_else(unfit)
            }
            Scheme::Ed25519 => Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map(Self::Ed25519).map_err(|_| unfit()),
            Scheme::Hmac(_) => Err(unfit()),
        }
    }

    fn public_key(&self) -> Vec<u8> {
        match self {
            Self::Hmac(_) => Vec::new(),
            Self::Rsa(pair) => pair.public_key().as_ref().to_vec(),
            Self::Ecdsa(pair) => pair.public_key().as_ref().to_vec(),
            Self::P521(key) => key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
            Self::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
        }
    }
}

fn ecdsa_signer(bits: Bits, der: &[u8]) -> Option<Signer> {
    let key = EcPrivateKey::from_der(der).ok()?;
    let algorithm = match bits {
        Bits::B256 => &rs::ECDSA_P256_SHA256_FIXED_SIGNING,
        Bits::B384 => &rs::ECDSA_P384_SHA384_FIXED_SIGNING,
        Bits::B512 => {
            // Shorter ones are those of other curves.
            let secret = Some(key.private_key).filter(|secret| secret.len() == 66)?;
            let key = p521::ecdsa::SigningKey::from_slice(secret).ok()?;
            return Some(Signer::P521(Box::new(key)));
        }
    };
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, key.private_key, key.public_key?, &random);
    pair.ok().map(Signer::Ecdsa)
}

/// The key's own bytes out of a file that holds a public key or a certificate.
fn public_key(path: &str, pem: &[u8]) -> Result<Vec<u8>, TokenSpecError> {
    let (label, der) = decode_pem(path, pem)?;
    let key = match label.as_str() {
        "RSA PUBLIC KEY" => return Ok(der.to_vec()),
        "CERTIFICATE" => certificate_key(&der),
        _ => SubjectPublicKeyInfoRef::from_der(&der).ok().and_then(key_bytes),
    };
    key.ok_or_else(|| wrong(path, "holds no public key; give the PEM file of one, or of a certificate"))
}

fn key_bytes(info: SubjectPublicKeyInfoRef<'_>) -> Option<Vec<u8>> {
    info.subject_public_key.as_bytes().map(<[u8]>::to_vec)
}

/// The public key within a certificate: the seventh field of its first part, or the sixth if it is of version 1.
fn certificate_key(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = AnyRef::from_der(der).ok()?;
    let content = AnyRef::decode(&mut SliceReader::new(certificate.value()).ok()?).ok()?;
    let mut fields = SliceReader::new(content.value()).ok()?;
    let first = AnyRef::decode(&mut fields).ok()?;
    let has_version = pkcs8::der::Tagged::tag(&first).is_context_specific();
    for _ in 0..if has_version { 5 } else { 4 } {
        AnyRef::decode(&mut fields).ok()?;
    }
    SubjectPublicKeyInfoRef::decode(&mut fields).ok().and_then(key_bytes)
}

/// Whether ring and the method can do anything with a public key that comes alone: found out at the start, not at the
/// first login.
fn check_public_key(method: Method, path: &str, key: &[u8]) -> Result<(), TokenSpecError> {
    let length_fits = match method.scheme {
        Scheme::RsaPkcs1(_) | Scheme::RsaPss(_) => AnyRef::from_der(key).is_ok() && key.len() >= 256,
        Scheme::Ecdsa(Bits::B256) => key.len() == 65,
        Scheme::Ecdsa(Bits::B384) => key.len() == 97,
        Scheme::Ecdsa(Bits::B512) => key.len() == 133,
        Scheme::Ed25519 => key.len() == 32,
        Scheme::Hmac(_) => false,
    };
    if length_fits {
        return Ok(());
    }
    Err(wrong(path, &format!("holds no public key for {}: {}", method.name, wanted(method))))
}

fn wanted(method: Method) -> &'static str {
    match method.scheme {
        Scheme::RsaPkcs1(_) | Scheme::RsaPss(_) => "give an RSA key of 2048 to 4096 bits in PEM",
        Scheme::Ecdsa(Bits::B256) => "give a key on the curve P-256 in PEM, its public half included",
        Scheme::Ecdsa(Bits::B384) => "give a key on the curve P-384 in PEM, its public half included",
        Scheme::Ecdsa(Bits::B512) => "give a key on the curve P-521 in PEM",
        Scheme::Ed25519 => "give an Ed25519 key in PEM",
        Scheme::Hmac(_) => "give a file with a secret",
    }
}

fn ring_algorithm(method: Method) -> Option<&'static dyn signature::VerificationAlgorithm> {
    Some(match method.scheme {
        Scheme::RsaPkcs1(Bits::B256) => &rs::RSA_PKCS1_2048_8192_SHA256,
        Scheme::RsaPkcs1(Bits::B384) => &rs::RSA_PKCS1_2048_8192_SHA384,
        Scheme::RsaPkcs1(Bits::B512) => &rs::RSA_PKCS1_2048_8192_SHA512,
        Scheme::RsaPss(Bits::B256) => &rs::RSA_PSS_2048_8192_SHA256,
        Scheme::RsaPss(Bits::B384) => &rs::RSA_PSS_2048_8192_SHA384,
        Scheme::RsaPss(Bits::B512) => &rs::RSA_PSS_2048_8192_SHA512,
        Scheme::Ecdsa(Bits::B256) => &rs::ECDSA_P256_SHA256_FIXED,
        Scheme::Ecdsa(Bits::B384) => &rs::ECDSA_P384_SHA384_FIXED,
        Scheme::Ed25519 => &rs::ED25519,
        Scheme::Ecdsa(Bits::B512) | Scheme::Hmac(_) => return None,
    })
}

fn rsa_encoding(method: Method) -> &'static dyn rs::RsaEncoding {
    match method.scheme {
        Scheme::RsaPkcs1(Bits::B384) => &rs::RSA_PKCS1_SHA384,
        Scheme::RsaPkcs1(Bits::B512) => &rs::RSA_PKCS1_SHA512,
        Scheme::RsaPss(Bits::B256) => &rs::RSA_PSS_SHA256,
        Scheme::RsaPss(Bits::B384) => &rs::RSA_PSS_SHA384,
        Scheme::RsaPss(Bits::B512) => &rs::RSA_PSS_SHA512,
        _ => &rs::RSA_PKCS1_SHA256,
    }
}

fn read(path: &str) -> Result<zeroize::Zeroizing<Vec<u8>>, TokenSpecError> {
    let length = fs::metadata(path).map(|metadata| metadata.len());
    if length.as_ref().is_ok_and(|length| *length > limits::KEY_FILE_BYTES_MAX) {
        return Err(wrong(path, "is too large for a key"));
    }
    let bytes =
        fs::read(path).map_err(|error| wrong(path, &format!("cannot be read ({error}); name a readable file")))?;
    Ok(zeroize::Zeroizing::new(bytes))
}

fn decode_pem(path: &str, pem: &[u8]) -> Result<(String, zeroize::Zeroizing<Vec<u8>>), TokenSpecError> {
    let (label, der) = pkcs8::der::pem::decode_vec(pem.trim_ascii()).map_err(|error| {
        wrong(path, &format!("is no PEM file ({error}); give a key written by openssl, unencrypted"))
    })?;
    Ok((label.to_owned(), zeroize::Zeroizing::new(der)))
}

fn wrong(path: &str, what: &str) -> TokenSpecError {
    TokenSpecError(format!("the jwt key file {path} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> String {
        format!("{}/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    fn keys(method: &str, public: Option<&str>, private: Option<&str>) -> Result<Keys, TokenSpecError> {
        let (public, private) = (public.map(file), private.map(file));
        Keys::read(Method::by_name(method)?, public.as_deref(), private.as_deref())
    }

    /// Each method with every form in which its keys come.
    const FILES: &[(&str, &[&str], &[&str])] = &[
        ("RS256", &["rsa.pem", "rsa-pkcs1.pem"], &["rsa.pub.pem", "rsa-pkcs1.pub.pem", "rsa.crt.pem"]),
        ("RS384", &["rsa.pem"], &["rsa.pub.pem"]),
        ("RS512", &["rsa.pem"], &["rsa.pub.pem"]),
        ("PS256", &["rsa.pem", "rsa-pkcs1.pem"], &["rsa.pub.pem"]),
        ("PS384", &["rsa.pem"], &["rsa.pub.pem"]),
        ("PS512", &["rsa.pem"], &["rsa.pub.pem"]),
        ("ES256", &["p256.pem", "p256-sec1.pem"], &["p256.pub.pem"]),
        ("ES384", &["p384.pem", "p384-sec1.pem"], &["p384.pub.pem", "p384.crt.pem"]),
        ("ES512", &["p521.pem", "p521-sec1.pem"], &["p521.pub.pem"]),
        ("EdDSA", &["ed25519.pem"], &["ed25519.pub.pem"]),
    ];

    #[test]
    fn every_method_signs_and_checks_with_keys_in_every_form() {
        for (name, privates, publics) in FILES {
            let method = Method::by_name(name).expect("known");
            for private in *privates {
                let signing = keys(name, None, Some(private)).unwrap_or_else(|e| panic!("{name} {private}: {e}"));
                let signature = signing.sign(method, b"message").expect("signs");
                for public in *publics {
                    let both = keys(name, Some(public), Some(private));
                    assert!(both.is_ok(), "{name} {private} {public} belong together");
                    let checking = keys(name, Some(public), None).unwrap_or_else(|e| panic!("{name} {public}: {e}"));
                    assert!(checking.verify(method, b"message", &signature), "{name} {private} {public}");
                    assert!(!checking.verify(method, b"massage", &signature), "{name}: another message");
                    for bit in [0, signature.len() * 4, signature.len() * 8 - 1] {
                        let mut forged = signature.clone();
                        forged[bit / 8] ^= 1 << (bit % 8);
                        assert!(!checking.verify(method, b"message", &forged), "{name}: bit {bit} of the signature");
                    }
                    assert!(!checking.verify(method, b"message", &[]), "{name}: no signature");
                    assert_eq!(checking.sign(method, b"message"), Err(Error::TokenVerifyOnly), "{name}");
                }
            }
        }
        for name in ["HS256", "HS384", "HS512"] {
            let method = Method::by_name(name).expect("known");
            let keys = keys(name, None, Some("ed25519.pem")).expect("any file is a secret");
            let signature = keys.sign(method, b"message").expect("signs");
            assert!(keys.verify(method, b"message", &signature) && !keys.verify(method, b"massage", &signature));
            assert!(!Keys::from_secret(method, b"guessed").verify(method, b"message", &signature));
        }
    }

    #[test]
    fn keys_that_do_not_fit_are_refused_at_the_start_by_name() {
        let wrong: &[(&str, Option<&str>, Option<&str>, &str)] = &[
            ("RS256", None, Some("p256.pem"), "RSA key"),
            ("RS256", Some("p256.pub.pem"), None, "RSA key"),
            ("RS256", None, Some("rsa.pub.pem"), "RSA key"),
            ("ES256", None, Some("p384.pem"), "P-256"),
            ("ES384", Some("p256.pub.pem"), None, "P-384"),
            ("ES384", None, Some("p521-sec1.pem"), "P-384"),
            ("ES512", None, Some("p384.pem"), "P-521"),
            ("ES512", Some("p384.pub.pem"), None, "P-521"),
            ("ES256", None, Some("ed25519.pem"), "P-256"),
            ("EdDSA", None, Some("rsa.pem"), "Ed25519"),
            ("EdDSA", Some("rsa.pub.pem"), None, "Ed25519"),
            ("EdDSA", Some("ed25519.pub.pem"), Some("ed25519-other.pem"), "not the public key of priv-key"),
            ("RS256", Some("rsa.pem"), None, "no public key"),
            ("HS256", Some("ed25519.pub.pem"), None, "priv-key"),
            ("RS256", None, None, "priv-key"),
        ];
        for (method, public, private, words) in wrong {
            let Err(error) = keys(method, *public, *private) else {
                panic!("{method} {public:?} {private:?} accepted")
            };
            assert!(error.0.contains(words), "{method} {public:?} {private:?}: {error}");
        }
    }
}
