//! `daymark bench report`: one page out of measurements, with a figure for each question, and the figures as files. It
//! measures nothing.

mod html;
mod input;
mod plots;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use html::{Block, Figure, Section, Table};
use input::{Comparison, Inputs, Run};
use plots::{Bars, Line, Scale, bars, lines, short};

/// Flags of `bench report`.
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// What `scripts/compare.py --json`, `scripts/aged.py --json` and `daymark bench ... --json` wrote.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Directory for index.html and the figures as SVG; it is made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Heading of the page.
    #[arg(long, default_value = "Daymark: measurements")]
    title: String,
}

/// Figures that are asked for in a comparison: what, in which unit, and how they are drawn.
const QUESTIONS: [(&str, &str, &str, Scale); 8] = [
    ("per_second", "Operations per second", "per second", Scale::Linear),
    ("server_cpu_us_per_op", "CPU of the server for an operation", "us", Scale::Linear),
    ("p50_us", "Latency: half of the operations are faster", "us", Scale::Logarithmic),
    ("p99_us", "Latency: 99 of 100 operations are faster", "us", Scale::Logarithmic),
    ("p999_us", "Latency: 999 of 1000 operations are faster", "us", Scale::Logarithmic),
    ("resident_mb", "Memory of the server afterwards", "MB", Scale::Linear),
    ("disk_mb", "Disk afterwards", "MB", Scale::Linear),
    ("written_mb", "Written to the disk meanwhile", "MB", Scale::Linear),
];

pub fn run(args: &ReportArgs) -> Result<()> {
    let inputs = Inputs::read(&args.files)?;
    let sections = sections(&inputs)?;
    ensure!(!sections.is_empty(), "the files hold no measurement");
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let write = |name: &str, text: String| {
        let path = args.out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    for block in sections.iter().flat_map(|section| &section.blocks) {
        if let Block::Figure(figure) = block {
            write(&format!("{}.svg", figure.id), html::standalone(figure))?;
        }
    }
    write("index.html", html::page(&args.title, &about(&inputs), &sections))?;
    println!("{}", args.out.join("index.html").display());
    Ok(())
}

/// One sentence for each comparison: with what, where, when.
fn about(inputs: &Inputs) -> String {
    let mut sentences = Vec::new();
    for comparison in &inputs.comparisons {
        let about = &comparison.compare;
        let beside = about.etcd.as_ref().map_or(String::new(), |etcd| format!(" beside etcd {etcd}"));
        sentences.push(format!(
            "Daymark {}{beside}, on {} cores, Linux {}, {}: medians of {} rounds, in turn on fresh directories.",
            about.daymark,
            about.cores,
            about.kernel,
            date(about.unix_seconds),
            about.rounds
        ));
    }
    if let Some(run) = inputs.runs.first() {
        sentences.push(format!("{} single runs, the first of {}.", inputs.runs.len(), date(run.unix_seconds)));
    }
    sentences.join(" ")
}

fn sections(inputs: &Inputs) -> Result<Vec<Section>> {
    let mut sections = Vec::new();
    for (number, comparison) in inputs.comparisons.iter().enumerate() {
        let prefix = if number == 0 { String::new() } else { format!("{}-", number + 1) };
        sections.extend(compared(comparison, &prefix)?);
    }
    if !inputs.runs.is_empty() {
        sections.push(single_runs(&inputs.runs)?);
    }
    Ok(sections)
}

/// The sections of one comparison.
fn compared(comparison: &Comparison, prefix: &str) -> Result<Vec<Section>> {
    let mut figures = Vec::new();
    for sides in side_sets(comparison) {
        let names = sides.join("-");
        for (figure, title, unit, scale) in QUESTIONS {
            let loads = loads_with(comparison, figure, &sides);
            if loads.is_empty() {
                continue;
            }
            let bars_of = sides.iter().map(|side| Bars {
                name: side.clone(),
                values: loads.iter().map(|load| comparison.median(load, figure, side)).collect(),
            });
            let bars_of: Vec<_> = bars_of.collect();
            figures.push(Block::Figure(Figure {
                id: format!("{prefix}{names}-{}", figure.replace('_', "-")),
                title: format!("{title} ({unit})"),
                svg: bars(unit, &loads, &bars_of, scale)?,
                values: bar_values(&loads, &bars_of),
            }));
        }
    }
    let courses = courses(comparison, prefix)?;
    let mut sections = vec![overview(comparison)];
    sections.push(Section {
        title: "Side by side".into(),
        about: "Medians over the rounds. Latencies are drawn by orders of magnitude.".into(),
        blocks: figures,
    });
    if !courses.is_empty() {
        let about = "Operations in each second of the last round: a dip is a pause that clients saw.".into();
        sections.push(Section { title: "Throughput over time".into(), about, blocks: courses });
    }
    sections.retain(|section| !section.blocks.is_empty());
    Ok(sections)
}

/// The different sets of sides that loads were run on: etcd and Daymark, for one.
fn side_sets(comparison: &Comparison) -> Vec<Vec<String>> {
    let mut sets: Vec<Vec<String>> = Vec::new();
    for load in comparison.load_names() {
        let sides = comparison.sides(load);
        if !sides.is_empty() && !sets.contains(&sides) {
            sets.push(sides);
        }
    }
    sets
}

/// Loads that were run on just these sides and have something above zero to show.
fn loads_with(comparison: &Comparison, figure: &str, sides: &[String]) -> Vec<String> {
    let has = |load: &&str| {
        let value = |side: &String| comparison.median(load, figure, side).is_some_and(|value| value > 0.0);
        comparison.sides(load) == sides && sides.iter().any(value)
    };
    comparison.load_names().into_iter().filter(has).map(str::to_owned).collect()
}

fn bar_values(groups: &[String], sides: &[Bars]) -> Table {
    let head = ["load".to_owned()].into_iter().chain(sides.iter().map(|side| side.name.clone())).collect();
    let cell = |value: &Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    let row = |(place, group): (usize, &String)| {
        let cells = sides.iter().map(|side| cell(&side.values[place]));
        [group.clone()].into_iter().chain(cells).collect()
    };
    Table { head, rows: groups.iter().enumerate().map(row).collect() }
}

/// Every figure of every load, with the ratio of the second side to the first.
fn overview(comparison: &Comparison) -> Section {
    let mut blocks = Vec::new();
    for load in comparison.load_names() {
        let sides = comparison.sides(load);
        let mut head = vec![load.to_owned()];
        head.extend(sides.iter().cloned());
        head.push("ratio".into());
        let row = |figure: &String| {
            let values: Vec<_> = sides.iter().map(|side| comparison.median(load, figure, side)).collect();
            let ratio = match values[..] {
                [Some(first), Some(second), ..] if first != 0.0 => format!("{:.3}", second / first),
                _ => "-".to_owned(),
            };
            let cells = values.iter().map(|value| value.map_or("-".to_owned(), short));
            [figure.replace('_', " ")].into_iter().chain(cells).chain([ratio]).collect()
        };
        let rows: Vec<_> = comparison.loads[load].keys().map(row).collect();
        if !rows.is_empty() {
            blocks.push(Block::Table(Table { head, rows }));
        }
    }
    let mut about = "Ratio is the second column to the first one: less is better for seconds, us and MB.".to_owned();
    if let Some(floor) = &comparison.floor {
        about += &format!(
            " Puts keep {:.3} of the throughput of a server that answers at once (wanted: {}, {}).",
            floor.put_to_floor,
            floor.gate,
            if floor.met { "met" } else { "missed" }
        );
    }
    Section { title: "All figures".into(), about, blocks }
}

/// Operations second by second.
fn courses(comparison: &Comparison, prefix: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    for load in comparison.load_names() {
        let Some(series) = comparison.series.get(load) else { continue };
        let of = |side: &String| series.get(side).map(|seconds| by_second(side, seconds));
        let courses: Vec<_> = comparison.sides(load).iter().filter_map(of).collect();
        blocks.extend(line_figure(
            format!("{prefix}{load}-over-time"),
            &format!("{load}: operations per second"),
            "per second",
            courses,
        )?);
    }
    Ok(blocks)
}

/// Values of one second after the other. The last second is never a whole one and left out, unless it is the only one.
fn by_second(name: &str, seconds: &[f64]) -> Line {
    let whole = &seconds[..seconds.len().saturating_sub(1).max(seconds.len().min(1))];
    let points = whole.iter().enumerate().map(|(second, value)| (second as f64 + 1.0, *value)).collect();
    Line { name: name.to_owned(), points }
}

/// A figure of lines over the seconds of a run; none if no line has two points.
fn line_figure(id: String, title: &str, unit: &str, of: Vec<Line>) -> Result<Option<Block>> {
    if of.iter().all(|line| line.points.len() < 2) {
        return Ok(None);
    }
    let longest = of.iter().map(|line| line.points.len()).max().unwrap_or(0);
    let head = ["second".to_owned()].into_iter().chain(of.iter().map(|line| line.name.clone())).collect();
    let row = |place: usize| {
        let second = of.iter().find_map(|line| line.points.get(place)).map_or(0.0, |point| point.0);
        let cells = of.iter().map(|line| line.points.get(place).map_or("-".to_owned(), |point| short(point.1)));
        [format!("{second:.0}")].into_iter().chain(cells).collect()
    };
    let values = Table { head, rows: (0..longest).map(row).collect() };
    let svg = lines("seconds", unit, &of)?;
    Ok(Some(Block::Figure(Figure { id, title: title.to_owned(), svg, values })))
}

/// Runs of `daymark bench`, beside each other.
fn single_runs(runs: &[Run]) -> Result<Section> {
    let mut blocks = vec![Block::Table(run_table(runs))];
    let over_time = |value: &dyn Fn(&Run) -> Line| runs.iter().map(value).collect::<Vec<_>>();
    let samples = |run: &Run, of: &dyn Fn(&input::Sample) -> f64| Line {
        name: run.name.clone(),
        points: run.samples.iter().map(|sample| (sample.at_seconds, of(sample))).collect(),
    };
    let cpu = |run: &Run| Line {
        name: run.name.clone(),
        points: run.samples.windows(2).map(|two| (two[1].at_seconds, cores_used(&two[0], &two[1]))).collect(),
    };
    let courses = [
        (
            "throughput",
            "Operations per second",
            "per second",
            over_time(&|run| by_second(&run.name, &run.succeeded_by_second)),
        ),
        (
            "slowest",
            "Slowest operation of each second (us)",
            "us",
            over_time(&|run| by_second(&run.name, &run.slowest_micros_by_second)),
        ),
        (
            "memory",
            "Memory of the servers (MB)",
            "MB",
            over_time(&|run| samples(run, &|sample| sample.resident_bytes / 1e6)),
        ),
        ("cores", "Cores that the servers use", "cores", over_time(&cpu)),
        (
            "written",
            "Written by the servers since their start (MB)",
            "MB",
            over_time(&|run| samples(run, &|sample| sample.written_bytes / 1e6)),
        ),
    ];
    for (id, title, unit, of) in courses {
        blocks.extend(line_figure(format!("runs-{id}"), title, unit, of)?);
    }
    let quantiles = ["p50", "p90", "p99", "p99.9", "max"].map(str::to_owned);
    let latencies = runs.iter().map(|run| {
        let latency = run.latency_micros;
        let values = [latency.p50, latency.p90, latency.p99, latency.p999, latency.max];
        Bars { name: run.name.clone(), values: values.map(Some).into() }
    });
    blocks.push(bar_figure("runs-latency", "Latency (us)", &quantiles, latencies.collect(), Scale::Logarithmic)?);
    let processes = ["servers", "load generator"].map(str::to_owned);
    let costs = runs.iter().map(|run| {
        let servers = run.servers.iter().map(|server| server.cpu_micros_per_op).sum::<f64>();
        let servers = (!run.servers.is_empty()).then_some(servers);
        Bars { name: run.name.clone(), values: vec![servers, Some(run.harness.cpu_micros_per_op)] }
    });
    blocks.push(bar_figure("runs-cpu", "CPU for an operation (us)", &processes, costs.collect(), Scale::Linear)?);
    let about = "Runs of daymark bench, each by the name of its file.".into();
    Ok(Section { title: "Single runs".into(), about, blocks })
}

fn bar_figure(id: &str, title: &str, groups: &[String], of: Vec<Bars>, scale: Scale) -> Result<Block> {
    let svg = bars("us", groups, &of, scale)?;
    Ok(Block::Figure(Figure { id: id.into(), title: title.into(), svg, values: bar_values(groups, &of) }))
}

fn cores_used(from: &input::Sample, to: &input::Sample) -> f64 {
    (to.cpu_seconds - from.cpu_seconds) / (to.at_seconds - from.at_seconds).max(1e-3)
}

fn run_table(runs: &[Run]) -> Table {
    let head =
        ["run", "load", "connections", "clients", "seconds", "done", "failed", "per second", "memory MB", "written MB"];
    let row = |run: &Run| {
        let sum = |of: fn(&input::Cost) -> f64| short(run.servers.iter().map(of).sum::<f64>() / 1e6);
        vec![
            run.name.clone(),
            run.command.clone(),
            run.conns.to_string(),
            run.clients.to_string(),
            format!("{:.2}", run.elapsed_seconds),
            run.succeeded.to_string(),
            run.failed.to_string(),
            short(run.per_second),
            sum(|server| server.resident_bytes_after),
            sum(|server| server.written_bytes),
        ]
    };
    Table { head: head.map(str::to_owned).into(), rows: runs.iter().map(row).collect() }
}

/// The day, as `2026-01-31`, of a moment in UTC.
fn date(unix_seconds: u64) -> String {
    // Days are counted from the first of March of a year that begins a cycle of 400, so that leap days come last.
    let days = unix_seconds / 86_400 + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day_of_month:02}", cycle * 400 + year + next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        for (seconds, day) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_735_689_599, "2024-12-31"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date(seconds), day);
        }
    }

    #[test]
    fn the_last_second_is_not_a_whole_one() {
        let points = |seconds: &[f64]| by_second("x", seconds).points;
        assert_eq!(points(&[5.0, 6.0, 1.0]), [(1.0, 5.0), (2.0, 6.0)]);
        assert_eq!(points(&[5.0]), [(1.0, 5.0)]);
        assert_eq!(points(&[]), []);
    }
}
