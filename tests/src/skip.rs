//! Tests that cannot run on this machine. libtest knows no "skipped", so each one says so past its capture of output, and
//! `test.sh` counts these lines and takes them off the tests that passed.

use std::io::Write;

/// Says that a test cannot run here, for a reason that nobody can install away: rights, devices, kernel.
pub fn unable(test: &str, why: &str) {
    // One write to the descriptor itself: libtest captures only the print macros.
    let line = format!("\nskipped: {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Says that a test needs a tool that is not there. On the gate (`CI=true`) that is a failure: `test.sh` installs it.
pub fn missing_tool(test: &str, tool: &str, remedy: &str) {
    let why = format!("{tool} is missing: {remedy}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: {why}");
    unable(test, &why);
}
