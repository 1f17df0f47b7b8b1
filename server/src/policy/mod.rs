//! What looks at time and size and then acts: leases that are over, history that may go, log that may be released.
//! Proposes like any client; never part of apply.

pub mod compactor;
pub mod corruption;
pub mod fences;
pub mod lessor;
pub mod room;
pub mod size;
pub mod timer;
pub mod upkeep;
pub mod wheel;
