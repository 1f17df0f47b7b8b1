//! Who may do what: replicated users and roles with the one place that decides, and tokens and passwords, by which a
//! user is recognised. Knows no transport, no raft and no keyspace.
//!
//! Reading order: [`intervals`] (sets of keys), [`table`] (users, roles, rights), [`authorize`] (a rule for every
//! request), [`token`], [`jwt`] and [`keys`] behind it, [`password`].

pub mod intervals;
pub mod table;

pub mod authorize;

pub mod token;

pub mod jwt;
pub mod keys;

pub mod password;
