//! Notations of single values: Go's booleans and durations, and URLs to listen on or to tell others. Opens and resolves
//! nothing.

use std::fmt;
use std::time::Duration;

/// Go's `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Why a text is no number.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum NumberError {
    Syntax,
    Range,
}

/// Go's `strconv.ParseUint` with base 0: digits, or with a prefix as in `0x1F`, `0b1`, `0o7`, `07`; `1_000` too.
pub fn parse_unsigned(text: &str) -> Result<u64, NumberError> {
    let lower = text.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    // An underscore stands between digits, or between a prefix and the first digit.
    let misplaced = text.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    let digits = digits.replace('_', "");
    if misplaced || digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(base)) {
        return Err(NumberError::Syntax);
    }
    // Only its size can be wrong now.
    u64::from_str_radix(&digits, base).map_err(|_| NumberError::Range)
}

/// Go's `strconv.ParseInt` with base 0.
pub fn parse_signed(text: &str) -> Result<i64, NumberError> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let size = i128::from(parse_unsigned(digits)?);
    i64::try_from(if negative { -size } else { size }).map_err(|_| NumberError::Range)
}

/// Go's `time.ParseDuration`, for durations that are not negative: `1h30m`, `1.5s`, `100ms`, `0`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut nanos = 0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let length = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..length] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        nanos += number * unit;
        rest = &rest[length..];
    }
    // Go's durations are 63 bits of nanoseconds.
    (nanos <= i64::MAX as f64).then(|| Duration::from_nanos(nanos.round() as u64))
}

/// The scheme of a [`Url`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
    Unix,
    Unixs,
}

impl Scheme {
    /// Whether connections are encrypted.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Https | Self::Unixs)
    }

    /// Whether it names a socket in the file system.
    pub fn is_unix(self) -> bool {
        matches!(self, Self::Unix | Self::Unixs)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Unix => "unix",
            Self::Unixs => "unixs",
        }
    }
}

/// Where a member listens or can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub scheme: Scheme,
    /// `host:port`; for sockets in the file system their name.
    pub address: String,
}

impl Url {
    /// Host without brackets and port; `None` for a socket in the file system.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        if self.scheme.is_unix() {
            return None;
        }
        let (host, port) = self.address.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some((host, port.parse().ok()?))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.text(), self.address)
    }
}

/// A comma list of URLs, not empty, sorted as etcd does (ids depend on the order).
pub fn parse_urls(text: &str) -> Result<Vec<Url>, String> {
    let mut urls = text.split(',').map(|url| parse_url(url.trim())).collect::<Result<Vec<_>, _>>()?;
    urls.sort_by_key(Url::to_string);
    Ok(urls)
}

/// A comma list of URLs as `--cors` takes them, or the word `*` alone.
pub fn parse_origins(text: &str) -> Result<Vec<String>, String> {
    match text {
        "" | "*" => Ok(Vec::new()),
        _ => Ok(parse_urls(text)?.iter().map(Url::to_string).collect()),
    }
}

/// One URL, by the rules of etcd's `types.NewURLs`.
pub fn parse_url(text: &str) -> Result<Url, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("URL scheme must be http, https, unix, or unixs: {text}"));
    };
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        "unix" => Scheme::Unix,
        "unixs" => Scheme::Unixs,
        _ => return Err(format!("URL scheme must be http, https, unix, or unixs: {text}")),
    };
    if scheme.is_unix() {
        if rest.is_empty() {
            return Err(format!("URL names no socket: {text}"));
        }
        return Ok(Url { scheme, address: rest.to_owned() });
    }
    let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if !path.is_empty() {
        return Err(format!("URL must not contain a path: {text}"));
    }
    let url = Url { scheme, address: address.to_owned() };
    let host_is_plain = |host: &str| !host.contains(':') || address.starts_with('[');
    match url.host_and_port() {
        Some((host, _)) if host_is_plain(host) => Ok(url),
        _ => Err(format!("URL address does not have the form \"host:port\": {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go() {
        for (text, expected) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("5s", Some(5_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("100ms", Some(100_000_000)),
            ("1h", Some(3_600_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("2us", Some(2_000)),
            ("2µs", Some(2_000)),
            ("7ns", Some(7)),
            ("5", None),
            ("", None),
            ("s", None),
            ("1x", None),
            ("1 s", None),
            ("1.2.3s", None),
            ("1000000h1000000h1000000h", None),
        ] {
            assert_eq!(parse_duration(text), expected.map(Duration::from_nanos), "{text}");
        }
    }

    #[test]
    fn numbers_are_written_as_in_go() {
        use NumberError::{Range, Syntax};
        for (text, expected) in [
            ("0", Ok(0)),
            ("42", Ok(42)),
            ("0x1F", Ok(31)),
            ("0b101", Ok(5)),
            ("0o17", Ok(15)),
            ("017", Ok(15)),
            ("1_000", Ok(1000)),
            ("0x_1", Ok(1)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("18446744073709551616", Err(Range)),
            ("", Err(Syntax)),
            ("-1", Err(Syntax)),
            ("1__0", Err(Syntax)),
            ("_1", Err(Syntax)),
            ("1_", Err(Syntax)),
            ("08", Err(Syntax)),
            ("0x", Err(Syntax)),
            ("1.5", Err(Syntax)),
            ("ten", Err(Syntax)),
        ] {
            assert_eq!(parse_unsigned(text), expected, "{text}");
        }
        assert_eq!(parse_signed("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(parse_signed("9223372036854775808"), Err(Range));
        assert_eq!(parse_signed("+0x10"), Ok(16));
        assert_eq!(parse_signed("--1"), Err(Syntax));
    }

    #[test]
    fn urls_are_taken_apart() {
        let url = parse_url("http://127.0.0.1:2379").expect("plain");
        assert_eq!(url.host_and_port(), Some(("127.0.0.1", 2379)));
        assert_eq!(url.to_string(), "http://127.0.0.1:2379");
        assert_eq!(parse_url("https://[::1]:1").expect("v6").host_and_port(), Some(("::1", 1)));
        assert_eq!(parse_url("http://:2379").expect("any").host_and_port(), Some(("", 2379)));
        let unix = parse_url("unix://localhost:m0").expect("unix");
        assert!(unix.scheme.is_unix() && unix.host_and_port().is_none());
        assert_eq!(parse_urls("http://b:1,http://a:1").expect("two")[0].address, "a:1", "sorted");
    }

    #[test]
    fn bad_urls_are_refused_in_etcds_words() {
        for (text, words) in [
            ("localhost:2379", "URL scheme must be"),
            ("ftp://localhost:2379", "URL scheme must be"),
            ("http://localhost", "does not have the form"),
            ("http://localhost:70000", "does not have the form"),
            ("http://::1:2379", "does not have the form"),
            ("http://localhost:2379/x", "must not contain a path"),
            ("unix://", "names no socket"),
            ("", "URL scheme must be"),
        ] {
            let error = parse_urls(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
