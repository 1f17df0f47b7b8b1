//! JSON web tokens: three pieces of base64, of which the last signs the other two. Knows the claims that etcd uses and the
//! options of `--auth-token=jwt`; keys and signatures are in [`super::keys`].

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::auth::keys::{Keys, Method};
use crate::auth::token::TokenSpecError;
use crate::error::Error;
use crate::limits;

/// A way to sign tokens and to check them: the options of `--auth-token=jwt`, their key files read.
pub struct Jwt {
    /// As given; names files, holds no secret.
    options: String,
    method: Method,
    keys: Keys,
    ttl: Duration,
}

/// What a token says, once its signature has been found right.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    pub user: Bytes,
    pub auth_revision: u64,
    /// Whole seconds since 1970; nothing: until the auth revision changes. Only other signers leave it out.
    expires_at_secs: Option<u64>,
}

impl Claims {
    /// Whether the token still counts at this time.
    pub fn is_alive(&self, now: SystemTime) -> bool {
        self.expires_at_secs.is_none_or(|expires_at| unix_secs(now) < expires_at)
    }
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Jwt").field(&self.options).finish()
    }
}

impl PartialEq for Jwt {
    fn eq(&self, other: &Self) -> bool {
        self.options == other.options
    }
}

impl Jwt {
    /// Options as in `sign-method=RS256,pub-key=<file>,priv-key=<file>,ttl=5m`. Unknown ones are warned of and ignored, as
    /// etcd does.
    pub fn parse(options: &str) -> Result<Self, TokenSpecError> {
        let (mut method, mut public, mut private, mut ttl) = (None, None, None, None);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let Some((name, value)) = option.split_once('=').filter(|(_, value)| !value.contains('=')) else {
                return Err(TokenSpecError(format!("jwt option {option:?} is not of the form name=value")));
            };
            let place = match name {
                "sign-method" => &mut method,
                "pub-key" => &mut public,
                "priv-key" => &mut private,
                "ttl" => &mut ttl,
                _ => {
                    tracing::warn!(option = name, "unknown jwt option ignored");
                    continue;
                }
            };
            if place.replace(value).is_some() {
                return Err(TokenSpecError(format!("jwt option {name} is given twice; leave one")));
            }
        }
        let method = Method::by_name(method.unwrap_or_default())?;
        let ttl = ttl.filter(|text| !text.is_empty()).map_or(Ok(limits::JWT_TTL), parse_ttl)?;
        let keys = Keys::read(method, public.filter(|f| !f.is_empty()), private.filter(|f| !f.is_empty()))?;
        Ok(Self { options: options.to_owned(), method, keys, ttl })
    }

    /// HS256 with this secret; for tests.
    #[cfg(test)]
    pub fn with_secret(secret: &[u8], ttl: Duration) -> Self {
        let method = Method::by_name("HS256").expect("known");
        Self { options: "test".to_owned(), method, keys: Keys::from_secret(method, secret), ttl }
    }

    /// A token for the user, valid for the configured time from `now` on.
    pub fn sign(&self, user: &str, auth_revision: u64, now: SystemTime) -> Result<String, Error> {
        let header = json!({ "alg": self.method.name(), "typ": "JWT" });
        let expires_at = unix_secs(now + self.ttl);
        let claims = json!({ "username": user, "revision": auth_revision, "exp": expires_at });
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut token = format!("{}.{}", encode(header), encode(claims));
        let signature = self.keys.sign(self.method, token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    /// The claims of a token that was signed with the configured method and key and is alive at `now`.
    pub fn verify(&self, token: &[u8], now: SystemTime) -> Option<Claims> {
        if token.len() > limits::JWT_BYTES_MAX {
            return None;
        }
        let text = std::str::from_utf8(token).ok()?;
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header = decode_object(header)?;
        // Only the configured method: what the token says of itself must not choose how it is checked.
        if header.get("alg")?.as_str()? != self.method.name() || header.contains_key("crit") {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        if !self.keys.verify(self.method, signed.as_bytes(), &signature) {
            return None;
        }
        claims_of(&decode_object(claims)?, now)
    }
}

fn decode_object(piece: &str) -> Option<serde_json::Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(piece).ok()?).ok()
}

fn claims_of(claims: &serde_json::Map<String, Value>, now: SystemTime) -> Option<Claims> {
    let time = |name: &str| match claims.get(name) {
        None => Some(None),
        Some(value) => whole_number(value).map(Some),
    };
    let claims = Claims {
        user: Bytes::copy_from_slice(claims.get("username")?.as_str()?.as_bytes()),
        auth_revision: whole_number(claims.get("revision")?)?,
        expires_at_secs: time("exp")?,
    };
    let begun = time("nbf")?.is_none_or(|begin| unix_secs(now) >= begin);
    (begun && claims.is_alive(now)).then_some(claims)
}

/// A number that is not negative, without its fraction; large ones may have been written as floating point.
fn whole_number(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_f64().filter(|number| *number >= 0.0 && *number < 9e15).map(|number| number as u64))
}

fn unix_secs(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A duration as in Go: numbers with units, as in `1h30m` or `1.5s`.
fn parse_ttl(text: &str) -> Result<Duration, TokenSpecError> {
    let wrong = || TokenSpecError(format!("jwt option ttl={text} is no duration; write one as in 5m, 90s or 1h30m"));
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
    let mut rest = text;
    let mut secs = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        let (unit, factor) = UNITS.iter().find(|(unit, _)| rest[end..].starts_with(unit)).ok_or_else(wrong)?;
        secs += number * factor;
        rest = &rest[end + unit.len()..];
    }
    Duration::try_from_secs_f64(secs).ok().filter(|ttl| !ttl.is_zero()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn sign_raw(jwt: &Jwt, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = jwt.keys.sign(jwt.method, signed.as_bytes()).expect("signs");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn a_token_carries_user_revision_and_expiry() {
        let jwt = Jwt::with_secret(b"secret", Duration::from_secs(300));
        let token = jwt.sign("alice", 7, at(1000)).expect("signs");
        let claims = jwt.verify(token.as_bytes(), at(1299)).expect("alive");
        assert_eq!((claims.user.as_ref(), claims.auth_revision), (&b"alice"[..], 7));
        assert_eq!(jwt.verify(token.as_bytes(), at(1300)), None, "over");
        let other = Jwt::with_secret(b"another secret", Duration::from_secs(300));
        assert_eq!(other.verify(token.as_bytes(), at(1000)), None, "signed by somebody else");
        assert!(!format!("{jwt:?}").contains("secret"));
    }

    #[test]
    fn what_is_not_exactly_right_is_refused() {
        let jwt = Jwt::with_secret(b"secret", Duration::from_secs(300));
        let good = r#"{"username":"a","revision":1,"exp":2000}"#;
        let header = r#"{"alg":"HS256","typ":"JWT"}"#;
        assert!(jwt.verify(sign_raw(&jwt, header, good).as_bytes(), at(1000)).is_some());
        let headers = [
            r#"{"alg":"none"}"#,
            r#"{"alg":"HS384"}"#,
            r#"{"alg":"RS256"}"#,
            r#"{"typ":"JWT"}"#,
            "{}",
            "[]",
            "",
            r#"{"alg":"HS256","crit":["exp"]}"#,
        ];
        for bad in headers {
            assert_eq!(jwt.verify(sign_raw(&jwt, bad, good).as_bytes(), at(1000)), None, "header {bad}");
        }
        let claims = [
            r#"{"revision":1,"exp":2000}"#,
            r#"{"username":1,"revision":1,"exp":2000}"#,
            r#"{"username":"a","exp":2000}"#,
            r#"{"username":"a","revision":"1","exp":2000}"#,
            r#"{"username":"a","revision":-1,"exp":2000}"#,
            r#"{"username":"a","revision":1,"exp":"2000"}"#,
            r#"{"username":"a","revision":1,"exp":1000}"#,
            r#"{"username":"a","revision":1,"exp":2000,"nbf":1001}"#,
            "null",
            "{",
        ];
        for bad in claims {
            assert_eq!(jwt.verify(sign_raw(&jwt, header, bad).as_bytes(), at(1000)), None, "claims {bad}");
        }
        let token = sign_raw(&jwt, header, good);
        for cut in 0..token.len() {
            assert_eq!(jwt.verify(&token.as_bytes()[..cut], at(1000)), None, "cut to {cut}");
        }
        for bad in [format!("{token}A"), format!("{token}."), format!(".{token}"), "..".into(), "a.b.c".into()] {
            assert_eq!(jwt.verify(bad.as_bytes(), at(1000)), None, "{bad}");
        }
        let unsigned = token.rsplit_once('.').expect("three pieces").0.to_owned() + ".";
        assert_eq!(jwt.verify(unsigned.as_bytes(), at(1000)), None);
    }

    #[test]
    fn foreign_signers_may_write_numbers_as_they_like() {
        let jwt = Jwt::with_secret(b"secret", Duration::from_secs(300));
        let header = r#"{"typ":"JWT","alg":"HS256","kid":"x"}"#;
        for claims in [
            r#"{"username":"a","revision":3.0,"exp":2e3,"iat":99999,"aud":"x","iss":"y"}"#,
            r#"{"username":"a","revision":3,"nbf":1000}"#,
        ] {
            let claims = jwt.verify(sign_raw(&jwt, header, claims).as_bytes(), at(1000)).expect(claims);
            assert_eq!(claims.auth_revision, 3);
        }
    }

    #[test]
    fn durations_are_read_as_in_go() {
        for (text, millis) in [("5m", 300_000), ("90s", 90_000), ("1h30m", 5_400_000), ("1.5s", 1500), ("250ms", 250)] {
            assert_eq!(parse_ttl(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["5", "m", "-5m", "5 m", "1d", "0s", "1e3s", "..s", "99999999999999999999h"] {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_say_what_is_wrong_with_them() {
        let wrong = [
            ("", "sign-method"),
            ("sign-method=RS1", "RS256"),
            ("sign-method", "name=value"),
            ("sign-method=RS256=x", "name=value"),
            ("sign-method=RS256,sign-method=RS256", "twice"),
            ("sign-method=RS256", "needs a key"),
            ("sign-method=HS256,pub-key=/nowhere", "priv-key"),
            ("sign-method=HS256,priv-key=/nowhere/key", "/nowhere/key"),
            ("sign-method=RS256,priv-key=/dev/null", "/dev/null"),
            ("sign-method=RS256,ttl=x", "5m"),
        ];
        for (options, words) in wrong {
            let error = Jwt::parse(options).expect_err(options);
            assert!(error.0.contains(words), "{options:?}: {error}");
        }
    }
}
