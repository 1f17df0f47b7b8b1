//! What is done to files while no member runs: `daymark snapshot save`, `status` and `restore`. Named like etcd's
//! (`etcdctl snapshot save`, `etcdutl snapshot`), with their flags.

mod etcd_file;
mod restore;
mod save;
mod status;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

pub use restore::{RestoreArgs, restore};
pub use save::SaveArgs;
pub use status::{Status, status};

/// `daymark snapshot`: the state of a cluster as one file, in etcd's form.
#[derive(Subcommand, Clone, Debug)]
pub enum SnapshotCommand {
    /// Get the state from one running member, of Daymark or etcd, into a file.
    Save(SaveArgs),
    /// Check a file and tell what is in it.
    Status(StatusArgs),
    /// Make a data directory out of a file: of one member, or of each member of a new cluster in turn.
    Restore(RestoreArgs),
}

#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// The file.
    file: PathBuf,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value = "simple")]
    write_out: Form,
}

#[derive(ValueEnum, Copy, Clone, Debug)]
enum Form {
    Simple,
    Table,
    Json,
}

/// Does what is asked for; what it prints is the answer, what it logs goes to stderr.
pub fn run(command: SnapshotCommand) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Save(args) => save::save(&args),
        SnapshotCommand::Restore(args) => restore(&args),
        SnapshotCommand::Status(args) => {
            let status = status(&args.file)?;
            let text = match args.write_out {
                Form::Simple => status.simple(),
                Form::Table => status.table(),
                Form::Json => status.json(),
            };
            println!("{text}");
            Ok(())
        }
    }
}

/// Shows how far something long is, if somebody looks.
fn progress(what: &'static str, bytes: u64) -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("{msg} [{bar:40}] {bytes}/{total_bytes} {eta}");
    let bar = indicatif::ProgressBar::new(bytes).with_message(what);
    // The template is a constant that is right.
    bar.with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))
}
