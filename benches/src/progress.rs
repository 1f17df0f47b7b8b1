//! The progress bar on the terminal; nothing when there is no terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the bar is drawn, and the run looked after.
pub const PERIOD: Duration = Duration::from_millis(200);

pub struct Progress {
    bar: ProgressBar,
    last: (Instant, u64),
}

impl Progress {
    /// `total` 0: not known beforehand.
    pub fn new(total: u64) -> Self {
        // indicatif draws on standard error, and hides itself where that is not a terminal.
        let (bar, template) = match total {
            0 => (ProgressBar::no_length(), "{elapsed_precise} {human_pos} done, {msg}"),
            total => {
                (ProgressBar::new(total), "{elapsed_precise} [{bar:40}] {human_pos}/{human_len}, {msg}, {eta} left")
            }
        };
        bar.set_style(
            ProgressStyle::with_template(template).expect("constant template is valid").progress_chars("=> "),
        );
        Self { bar, last: (Instant::now(), 0) }
    }

    pub fn update(&mut self, done: u64) {
        let (then, before) = std::mem::replace(&mut self.last, (Instant::now(), done));
        let per_second = (done - before) as f64 / then.elapsed().as_secs_f64().max(1e-9);
        self.bar.set_message(format!("{per_second:.0}/s"));
        self.bar.set_position(done);
    }

    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
