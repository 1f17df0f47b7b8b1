//! Who may do what: tokens and passwords, by which a user is recognised.
//!
//! Reading order: [`token`], [`jwt`] and [`keys`] behind it, [`password`].

pub mod token;

pub mod jwt;
pub mod keys;

pub mod password;
