//! How flags are read, by the rules of Go's flag package: the low form, texts as given, checked for their form only.
//! Knows nothing of what values mean together; see the high form in [`super::Config`]. The flags are in `table.rs`.

use std::collections::BTreeMap;

use super::gates::FeatureGates;
use super::table::{self, Flag, GROUPS, Handling, find, find_setting};
use super::values::{self, NumberError, parse_bool, parse_duration, parse_signed, parse_unsigned, parse_urls};

/// What a flag's value looks like.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`; the bare flag means `true`.
    Bool,
    /// A number as Go writes it: digits, or `0x10`, `1_000`.
    Unsigned,
    /// The same of at most 32 bits.
    Unsigned32,
    /// The same, perhaps with a sign.
    Signed,
    /// Go's notation: `5s`, `1m30s`, `100ms`.
    Duration,
    /// URLs to listen on or to tell others, comma list.
    Urls,
    /// The same, or `*`.
    UrlsOrAny,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Feature gates: `Name=true,Other=false`. Repeats add up.
    Gates,
    /// A level of log lines.
    Level,
    /// Anything.
    Text,
    /// Anything or nothing: the bare flag takes no value.
    Ignored,
}

/// Where values come from; etcd's rules differ a little.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Flags and environment.
    #[default]
    CommandLine,
    /// A configuration file, and nothing else.
    File,
}

/// Values by flag, as given.
#[derive(Debug, Default)]
pub struct Given {
    values: BTreeMap<&'static str, String>,
    source: Source,
}

impl Given {
    /// Nothing given yet.
    pub fn new(source: Source) -> Self {
        Self { values: BTreeMap::new(), source }
    }

    /// Where the values come from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Flags that somebody set.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.values.keys().copied()
    }

    /// Whether somebody set the flag.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value of a flag, its default if nobody set it.
    ///
    /// # Panics
    /// If there is no such flag, a mistake in this crate.
    pub fn text(&self, name: &str) -> &str {
        let flag = find_setting(name).unwrap_or_else(|| panic!("no flag is named {name}"));
        self.values.get(name).map_or(flag.default, String::as_str)
    }

    /// Sets a value after a check of its form, or says why it is none; the last one wins.
    pub fn set(&mut self, flag: &'static Flag, value: String) -> Result<(), String> {
        well_formed(flag.kind, &value)?;
        let value = match self.values.get(flag.name) {
            Some(before) if flag.kind == Kind::Gates => format!("{before},{value}"),
            _ => value,
        };
        self.values.insert(flag.name, value);
        Ok(())
    }

    /// Flags that are set to something else than their default.
    pub fn changed(&self) -> impl Iterator<Item = &'static Flag> {
        table::all().filter(|flag| self.values.get(flag.name).is_some_and(|value| !same(flag, value)))
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// Start a member.
    Start(Given),
    Help,
    Version,
}

/// Why a command line is not one, by exit code.
#[derive(Debug, PartialEq, Eq)]
pub enum ParseError {
    /// An unknown flag or a bad value: exit code 2.
    Flag(String),
    /// A stray argument: exit code 1.
    Positional(String),
}

/// Reads a command line (without the program's name).
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Parsed, ParseError> {
    let mut given = Given::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let dashes = argument.len() - argument.trim_start_matches('-').len();
        if argument == "--" {
            match arguments.next() {
                Some(stray) => return Err(ParseError::Positional(stray)),
                None => break,
            }
        }
        if dashes == 0 || argument == "-" {
            return Err(ParseError::Positional(argument));
        }
        let body = &argument[dashes.min(2)..];
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(ParseError::Flag(format!("bad flag syntax: {argument}")));
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let Some(flag) = find(name) else {
            if name == "h" || name == "help" {
                return Ok(Parsed::Help);
            }
            return Err(ParseError::Flag(format!("flag provided but not defined: -{name}")));
        };
        let value = match inline {
            Some(value) => value,
            None if matches!(flag.kind, Kind::Bool | Kind::Ignored) => "true".to_owned(),
            None => arguments.next().ok_or(ParseError::Flag(format!("flag needs an argument: -{name}")))?,
        };
        given.set(flag, value.clone()).map_err(|why| ParseError::Flag(bad_value(flag, &value, &why)))?;
    }
    if parse_bool(given.text("version")) == Some(true) {
        return Ok(Parsed::Version);
    }
    Ok(Parsed::Start(given))
}

fn bad_value(flag: &Flag, value: &str, why: &str) -> String {
    match flag.kind {
        Kind::Bool => format!("invalid boolean value {value:?} for -{}: {why}", flag.name),
        _ => format!("invalid value {value:?} for flag -{}: {why}", flag.name),
    }
}

/// The text of `--help`.
pub fn help() -> String {
    let mut text = USAGE.to_owned();
    for group in GROUPS {
        if group.flags.iter().all(|flag| flag.handling == Handling::Silent) {
            continue;
        }
        text.push_str(&format!("\n{}:\n", group.title));
        for flag in group.flags {
            let note = match flag.handling {
                Handling::Used | Handling::Silent => String::new(),
                Handling::Accepted(why) => format!("\n    Accepted without effect: {why}."),
                Handling::Refused(why) => format!("\n    Refused: {why}."),
            };
            text.push_str(&format!("  --{} '{}'\n    {}.{note}\n", flag.name, flag.default, flag.meaning));
        }
    }
    text.push_str("\nFeature gates (--feature-gates):\n");
    text.push_str(&super::gates::help());
    text.push_str(
        "\nEach flag can be set by an environment variable instead: ETCD_ and its name, as in ETCD_DATA_DIR.\n",
    );
    text
}

/// What is printed when flags are wrong.
pub const USAGE: &str = "Usage:
  daymark [flags]            start a member
  daymark --config-file f    start a member with the settings of a YAML file
  daymark bench <load> ...   load a server and measure it
  daymark --version          show versions
  daymark -h | --help        show all flags
";

/// Checks the form of a value, or says what is wrong with it in the words of Go's flag package.
pub fn well_formed(kind: Kind, value: &str) -> Result<(), String> {
    let number = |error: NumberError| match error {
        NumberError::Syntax => "parse error".to_owned(),
        NumberError::Range => "value out of range".to_owned(),
    };
    match kind {
        Kind::Bool => parse_bool(value).map(|_| ()).ok_or("parse error".into()),
        Kind::Unsigned => parse_unsigned(value).map(|_| ()).map_err(number),
        Kind::Unsigned32 => match parse_unsigned(value) {
            Ok(count) if u32::try_from(count).is_ok() => Ok(()),
            Ok(_) | Err(NumberError::Range) => Err(format!("strconv.ParseUint: parsing {value:?}: value out of range")),
            Err(NumberError::Syntax) => Err(format!("strconv.ParseUint: parsing {value:?}: invalid syntax")),
        },
        Kind::Signed => parse_signed(value).map(|_| ()).map_err(number),
        // Negative ones count as none.
        Kind::Duration => {
            parse_duration(value.strip_prefix('-').unwrap_or(value)).map(|_| ()).ok_or("parse error".into())
        }
        Kind::Urls if value.is_empty() => Ok(()),
        Kind::Urls => parse_urls(value).map(|_| ()),
        Kind::UrlsOrAny if value == "*" || value.is_empty() => Ok(()),
        Kind::UrlsOrAny => values::parse_origins(value).map(|_| ()),
        Kind::Choice(choices) if !choices.contains(&value) => {
            let choices: Vec<_> = choices.iter().filter(|choice| !choice.is_empty()).copied().collect();
            Err(format!("invalid value, must be one of {}", choices.join(", ")))
        }
        Kind::Gates => FeatureGates::parse(value).map(|_| ()),
        Kind::Level => super::log::level(value).map(|_| ()),
        Kind::Choice(_) | Kind::Text | Kind::Ignored => Ok(()),
    }
}

fn same(flag: &Flag, value: &str) -> bool {
    match flag.kind {
        Kind::Bool => parse_bool(value) == parse_bool(flag.default),
        Kind::Duration => parse_duration(value) == parse_duration(flag.default),
        Kind::Unsigned | Kind::Unsigned32 => parse_unsigned(value) == parse_unsigned(flag.default),
        Kind::Signed => parse_signed(value) == parse_signed(flag.default),
        Kind::Urls | Kind::UrlsOrAny | Kind::Choice(_) | Kind::Gates | Kind::Level | Kind::Text | Kind::Ignored => {
            value == flag.default
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Parsed, ParseError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn given(line: &str) -> Given {
        match parse_line(line) {
            Ok(Parsed::Start(given)) => given,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn one_dash_or_two_and_three_ways_to_give_a_value() {
        let given = given("-name a --data-dir=b --pre-vote=false --socket-reuse-port --unsafe-no-fsync=1");
        assert_eq!(given.text("name"), "a");
        assert_eq!(given.text("data-dir"), "b");
        assert_eq!(given.text("pre-vote"), "false");
        assert_eq!(given.text("socket-reuse-port"), "true");
        assert_eq!(parse_bool(given.text("unsafe-no-fsync")), Some(true));
        assert_eq!(given.text("max-txn-ops"), "128", "not given: the default");
        assert!(!given.has("max-txn-ops"));
    }

    #[test]
    fn the_last_of_repeated_flags_wins() {
        assert_eq!(given("--name a --name b").text("name"), "b");
    }

    #[test]
    fn numbers_are_written_as_in_go_and_gates_add_up() {
        let given =
            given("--max-txn-ops 0x10 --feature-gates AllAlpha=true --feature-gates PriorityRequest=false --v=3 --vv");
        assert_eq!(given.text("max-txn-ops"), "0x10");
        assert_eq!(given.text("feature-gates"), "AllAlpha=true,PriorityRequest=false");
    }

    #[test]
    fn a_boolean_takes_no_separate_value() {
        assert_eq!(parse_line("--v 3").unwrap_err(), ParseError::Positional("3".into()));
        assert_eq!(parse_line("--pre-vote false").unwrap_err(), ParseError::Positional("false".into()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, message) in [
            ("--nonsense", "flag provided but not defined: -nonsense"),
            ("--name", "flag needs an argument: -name"),
            ("--heartbeat-interval=fast", "invalid value \"fast\" for flag -heartbeat-interval: parse error"),
            ("--pre-vote=maybe", "invalid boolean value \"maybe\" for -pre-vote: parse error"),
            ("--grpc-keepalive-min-time=5", "invalid value \"5\" for flag -grpc-keepalive-min-time: parse error"),
            (
                "--initial-cluster-state=x",
                "invalid value \"x\" for flag -initial-cluster-state: invalid value, must be one of new, existing",
            ),
            (
                "--quota-backend-bytes=99999999999999999999",
                "invalid value \"99999999999999999999\" for flag -quota-backend-bytes: value out of range",
            ),
            (
                "--max-concurrent-streams=4294967296",
                "invalid value \"4294967296\" for flag -max-concurrent-streams: strconv.ParseUint: parsing \"4294967296\": value out of range",
            ),
            (
                "--feature-gates=X=true",
                "invalid value \"X=true\" for flag -feature-gates: unrecognized feature gate: X",
            ),
            ("--cors=foo", "invalid value \"foo\" for flag -cors: URL scheme must be http, https, unix, or unixs: foo"),
            (
                "--listen-client-urls=localhost:1",
                "invalid value \"localhost:1\" for flag -listen-client-urls: URL scheme must be http, https, unix, or \
                 unixs: localhost:1",
            ),
            ("---name=a", "bad flag syntax: ---name=a"),
            ("--=a", "bad flag syntax: --=a"),
        ] {
            assert_eq!(parse_line(line).unwrap_err(), ParseError::Flag(message.into()), "{line}");
        }
        assert_eq!(parse_line("--name a stray").unwrap_err(), ParseError::Positional("stray".into()));
    }

    #[test]
    fn help_and_version_win_over_the_rest() {
        assert!(matches!(parse_line("-h"), Ok(Parsed::Help)));
        assert!(matches!(parse_line("--name a --help"), Ok(Parsed::Help)));
        assert!(matches!(parse_line("--version --name a"), Ok(Parsed::Version)));
        assert!(matches!(parse_line("--version=false"), Ok(Parsed::Start(_))));
    }

    #[test]
    fn names_are_unique_and_defaults_are_well_formed() {
        let mut names = std::collections::BTreeSet::new();
        for flag in table::all() {
            assert_eq!(well_formed(flag.kind, flag.default), Ok(()), "{}", flag.name);
            assert!(names.insert(flag.name), "{} twice", flag.name);
            assert!(!flag.meaning.is_empty() && !flag.meaning.ends_with('.'), "{}", flag.name);
            if let Handling::Accepted(why) | Handling::Refused(why) = flag.handling {
                assert!(!why.is_empty() && !why.ends_with('.'), "{}", flag.name);
            }
        }
    }

    /// The names of etcd's flags with their defaults, written down independently of the table.
    #[test]
    fn every_flag_of_etcd_is_there_with_its_default() {
        let expected = include_str!("etcd_flags.txt");
        let mut count = 0;
        for line in expected.lines().filter(|line| !line.starts_with('#')) {
            let (name, default) = line.split_once(' ').unwrap_or((line, ""));
            let flag = find_setting(name).unwrap_or_else(|| panic!("--{name} is missing"));
            assert!(same(flag, default), "--{name}: {} instead of {default}", flag.default);
            count += 1;
        }
        assert!(count > 120, "only {count} names in the list");
    }

    #[test]
    fn help_names_every_flag_that_is_not_silent() {
        let help = help();
        for flag in table::all().filter(|flag| flag.handling != Handling::Silent) {
            assert!(help.contains(&format!("\n  --{} '", flag.name)), "{}", flag.name);
        }
        for line in help.lines() {
            assert!(line.len() <= 200, "{line}");
        }
    }
}
