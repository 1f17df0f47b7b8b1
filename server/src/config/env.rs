//! Settings out of `ETCD_*` environment variables. A setting in both places is an error, as in etcd: silently preferring
//! one would surprise.

use super::flags::Given;
use super::table;

/// Variables that are not flags and are left alone.
const TOLERATED: &[&str] = &["ETCD_VERSION", "ETCD_UNSUPPORTED_ARCH", "ETCD_VERIFY"];

/// The variable that names a configuration file.
pub const CONFIG_FILE: &str = "ETCD_CONFIG_FILE";

/// Adds what the environment says to what the command line said. Returns warnings.
pub fn merge(given: &mut Given, variables: impl Iterator<Item = (String, String)>) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    let on_the_command_line: Vec<&str> = given.names().collect();
    for (variable, value) in variables.filter(|(name, _)| name.starts_with("ETCD_")) {
        let name = variable["ETCD_".len()..].to_ascii_lowercase().replace('_', "-");
        let flag = table::find(&name).filter(|flag| environment_name(flag.name) == variable);
        match flag {
            _ if TOLERATED.contains(&variable.as_str()) => {}
            // Even an empty one: whoever sets both means something that does not happen.
            Some(flag) if on_the_command_line.contains(&flag.name) => {
                return Err(format!(
                    "conflicting environment variable {variable:?} is shadowed by corresponding command-line flag \
                     (either unset environment variable or disable flag)"
                ));
            }
            // etcd, too, takes an empty variable for an absent one.
            Some(_) if value.is_empty() => {}
            Some(flag) => given
                .set(flag, value.clone())
                .map_err(|why| format!("invalid value {value:?} for {variable}: {why}"))?,
            None => warnings.push(format!("unrecognized environment variable {variable}")),
        }
    }
    Ok(warnings)
}

/// The variable that stands for a flag.
pub fn environment_name(flag: &str) -> String {
    format!("ETCD_{}", flag.to_ascii_uppercase().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::flags;

    fn merged(arguments: &[&str], variables: &[(&str, &str)]) -> Result<(Given, Vec<String>), String> {
        let flags::Parsed::Start(mut given) = flags::parse(arguments.iter().map(|a| (*a).to_owned())).expect("flags")
        else {
            panic!("not a start");
        };
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        merge(&mut given, variables).map(|warnings| (given, warnings))
    }

    #[test]
    fn a_variable_sets_its_flag() {
        let (given, warnings) = merged(&[], &[("ETCD_DATA_DIR", "x"), ("PATH", "y")]).expect("merged");
        assert_eq!(given.text("data-dir"), "x");
        assert!(warnings.is_empty());
    }

    #[test]
    fn flag_and_variable_together_are_an_error() {
        let error = merged(&["--data-dir=x"], &[("ETCD_DATA_DIR", "x")]).expect_err("shadowed");
        assert!(error.contains("\"ETCD_DATA_DIR\" is shadowed"), "{error}");
        assert!(merged(&["--data-dir=x"], &[("ETCD_DATA_DIR", "")]).is_err(), "an empty one as well, as in etcd");
    }

    #[test]
    fn an_unknown_variable_is_a_warning_and_tolerated_ones_are_not() {
        let (_, warnings) =
            merged(&[], &[("ETCD_NONSENSE", "1"), ("ETCD_VERSION", "3"), ("ETCD_NAME", "")]).expect("ok");
        assert_eq!(warnings, ["unrecognized environment variable ETCD_NONSENSE"]);
    }

    #[test]
    fn a_bad_value_names_its_variable() {
        let error = merged(&[], &[("ETCD_HEARTBEAT_INTERVAL", "x")]).expect_err("bad");
        assert!(error == "invalid value \"x\" for ETCD_HEARTBEAT_INTERVAL: parse error", "{error}");
    }
}
