//! What a net thread owns of watching. Matching and delivery are in the files beside.

pub mod ring;

use std::sync::Arc;

use ring::AppliedBatch;

/// What the loop of a net thread calls. After each wake: [`WatchTurn::handle_applied`] for each applied batch in the
/// mailbox, then [`WatchTurn::turn`] once. A turn that leaves work behind wakes the mailbox itself, so the loop has to
/// give other tasks their share between two turns.
pub trait WatchTurn {
    /// Moves the cursor and serves live watchers.
    fn handle_applied(&mut self, batch: Arc<AppliedBatch>);
    /// Serves those that are behind, within a budget.
    fn turn(&mut self);
}
