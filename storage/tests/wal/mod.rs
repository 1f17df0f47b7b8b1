//! The log: behaviour, recovery, damage, format. One helper per boundary; the disk is simulated except where said.

mod basics;
mod crash;
mod damage;
mod faults;
mod format;
mod model;
mod real;
mod support;
