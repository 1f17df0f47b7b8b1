//! Who may do what: replicated users and roles with the one place that decides, and tokens and passwords, by which a
//! user is recognised. Knows no transport, no raft and no keyspace.
//!
//! Reading order: [`intervals`] (sets of keys), [`table`] (users, roles, rights), [`authorize`] (a rule for every
//! request), [`token`], [`jwt`] and [`keys`] behind it, [`password`].

pub mod intervals;
pub mod table;

pub mod authorize;

#[allow(clippy::disallowed_methods, reason = "tokens are chosen by chance, and have an end")]
pub mod token;

pub mod jwt;
#[allow(clippy::disallowed_methods, reason = "keys are files")]
pub mod keys;

#[allow(clippy::disallowed_methods, reason = "who waits too long is refused")]
pub mod password;
