//! Figures as SVG: lines over time, and bars in groups. Colours are given as they look on white; `html` has the others for
//! dark surroundings. Knows nothing of benchmarks.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Size of a figure in its own units; it scales with the page.
const WIDTH: u32 = 720;
const HEIGHT: u32 = 320;
/// Below the axis, for names.
const LABELS: i32 = 26;

/// Text and axes, and the lines behind the figure: `html` finds them by these colours.
pub const INK: RGBColor = RGBColor(1, 1, 1);
pub const GRID: RGBColor = RGBColor(221, 221, 220);

/// Series are told apart by these, also by those who see no difference between red and green (Okabe and Ito).
pub const COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(154, 122, 0),
    RGBColor(90, 90, 90),
];

/// Values in order of x.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Values of one side in all groups; a side may lack some.
pub struct Bars {
    pub name: String,
    pub values: Vec<Option<f64>>,
}

/// How values are laid out along the upright axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Linear,
    /// By orders of magnitude; values of 0 and less have no place on it.
    Logarithmic,
}

/// Lines over the same x.
///
/// # Errors
/// Nothing to draw.
pub fn lines(x_name: &str, y_name: &str, lines: &[Line]) -> Result<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x_max = points().map(|point| point.0).fold(0.0, f64::max);
    let y_max = points().map(|point| point.1).fold(0.0, f64::max);
    if points().next().is_none() {
        return Err(anyhow!("no points"));
    }
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..x_max.max(1.0), 0.0..roof(y_max))
            .map_err(words)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(text(12))
            .axis_desc_style(text(13))
            .x_desc(x_name)
            .y_desc(y_name)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| short(*y))
            .draw()
            .map_err(words)?;
        for (number, line) in lines.iter().enumerate() {
            let style = colour(number).stroke_width(2);
            let drawn = chart.draw_series(LineSeries::new(line.points.iter().copied(), style)).map_err(words)?;
            drawn.label(line.name.as_str()).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .label_font(text(13))
            .draw()
            .map_err(words)
    })
}

/// Bars in groups, with their values above them.
///
/// # Errors
/// Nothing to draw.
pub fn bars(y_name: &str, groups: &[String], sides: &[Bars], scale: Scale) -> Result<String> {
    let values = || sides.iter().flat_map(|side| side.values.iter().flatten().copied());
    let shown = values().filter(|value| *value > 0.0 || scale == Scale::Linear);
    let (low, high) = shown.fold((f64::MAX, 0.0), |(low, high), value| (value.min(low), value.max(high)));
    if groups.is_empty() || low == f64::MAX {
        return Err(anyhow!("no values"));
    }
    match scale {
        Scale::Linear => draw(|area| {
            let range = 0.0..roof(high);
            bar_chart(area, y_name, groups, sides, range.clone(), range)
        }),
        Scale::Logarithmic => {
            let range = floor_of_ten(low)..high * 3.0;
            draw(|area| bar_chart(area, y_name, groups, sides, range.clone().log_scale(), range))
        }
    }
}

fn bar_chart<Y>(
    area: &DrawingArea<SVGBackend, Shift>,
    y_name: &str,
    groups: &[String],
    sides: &[Bars],
    axis: impl AsRangedCoord<CoordDescType = Y, Value = f64>,
    range: Range<f64>,
) -> Result<()>
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_top(34)
        .margin_bottom(LABELS)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..groups.len() as f64, axis)
        .map_err(words)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(text(12))
        .axis_desc_style(text(13))
        .y_desc(y_name)
        .y_label_formatter(&|y| short(*y))
        .draw()
        .map_err(words)?;
    // A fifth of a group's width stays empty between it and the next.
    let width = 0.8 / sides.len() as f64;
    for (number, side) in sides.iter().enumerate() {
        for (group, value) in side.values.iter().enumerate() {
            let Some(value) = value.filter(|value| *value > 0.0) else { continue };
            let left = group as f64 + 0.1 + number as f64 * width;
            let (foot, head) = ((left + width * 0.04, range.start), (left + width * 0.96, value.max(range.start)));
            chart.draw_series([Rectangle::new([foot, head], colour(number).filled())]).map_err(words)?;
            let (x, y) = chart.backend_coord(&(left + width / 2.0, head.1));
            area.draw(&Text::new(short(value), (x, y - 3), anchored(11, HPos::Center, VPos::Bottom))).map_err(words)?;
        }
    }
    for (group, name) in groups.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(group as f64 + 0.5, range.start));
        area.draw(&Text::new(name.clone(), (x, y + 6), anchored(12, HPos::Center, VPos::Top))).map_err(words)?;
    }
    legend(area, sides)
}

/// Names of the sides in a row at the top.
fn legend(area: &DrawingArea<SVGBackend, Shift>, sides: &[Bars]) -> Result<()> {
    let mut x = 76;
    for (number, side) in sides.iter().enumerate() {
        area.draw(&Rectangle::new([(x, 9), (x + 12, 21)], colour(number).filled())).map_err(words)?;
        area.draw(&Text::new(side.name.clone(), (x + 18, 15), anchored(13, HPos::Left, VPos::Center)))
            .map_err(words)?;
        x += 40 + 8 * side.name.chars().count() as i32;
    }
    Ok(())
}

fn draw(paint: impl FnOnce(&DrawingArea<SVGBackend, Shift>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        paint(&area)?;
        area.present().map_err(words)?;
    }
    Ok(svg)
}

/// plotters' errors hold what may not leave the thread.
fn words(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

fn text(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn anchored(size: i32, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    text(size).pos(Pos::new(horizontal, vertical))
}

/// Where an axis from 0 ends that has room for `high`.
fn roof(high: f64) -> f64 {
    if high > 0.0 { high * 1.12 } else { 1.0 }
}

/// The power of ten below a value.
fn floor_of_ten(low: f64) -> f64 {
    10_f64.powf((low * 0.999).log10().floor())
}

/// A number in few characters: three digits that count, and k, M or G.
pub fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 999.5e6 => (value / 1e9, "G"),
        size if size >= 999.5e3 => (value / 1e6, "M"),
        size if size >= 9_999.5 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let decimals = match scaled.abs() {
        size if size >= 99.95 || size == 0.0 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        _ => 3,
    };
    let mut digits = format!("{scaled:.decimals$}");
    if digits.contains('.') {
        digits.truncate(digits.trim_end_matches('0').trim_end_matches('.').len());
    }
    digits + unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let expected = [
            (0.0, "0"),
            (0.0626, "0.063"),
            (3.0, "3"),
            (12.34, "12.3"),
            (850.4, "850"),
            (9_999.0, "9999"),
            (16_949.0, "16.9k"),
            (1_000_000.0, "1M"),
            (2.5e9, "2.5G"),
        ];
        for (value, text) in expected {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn figures_hold_their_series_names_and_values() {
        let line = |name: &str, y| Line { name: name.into(), points: vec![(1.0, y), (2.0, y / 2.0)] };
        let svg = lines("second", "per second", &[line("etcd", 10.0), line("<b>", 40.0)]).expect("drawn");
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("stroke=\"#D55E00\"").count(), 2, "a line and its key");
        assert!(svg.contains("etcd") && svg.contains("&lt;b&gt;") && !svg.contains("<b>"));

        let side = |name: &str, values: [Option<f64>; 2]| Bars { name: name.into(), values: values.into() };
        let sides = [side("etcd", [Some(48.5), Some(120.0)]), side("daymark", [Some(14.7), None])];
        let groups = ["puts".to_owned(), "gets".to_owned()];
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let svg = bars("us", &groups, &sides, scale).expect("drawn");
            for text in ["48.5", "120", "14.7", "puts", "gets", "daymark"] {
                assert!(svg.contains(text), "{text} is not in it");
            }
            assert_eq!(svg.matches("fill=\"#0072B2\"").count(), 2, "one bar and its key");
        }
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        assert!(lines("x", "y", &[]).is_err());
        assert!(bars("y", &["a".to_owned()], &[Bars { name: "s".into(), values: vec![None] }], Scale::Linear).is_err());
        assert!(
            bars("y", &["a".to_owned()], &[Bars { name: "s".into(), values: vec![Some(0.0)] }], Scale::Logarithmic)
                .is_err()
        );
    }

    #[test]
    fn a_logarithmic_axis_begins_below_the_smallest_value() {
        assert_eq!(floor_of_ten(0.5), 0.1);
        assert_eq!(floor_of_ten(10.0), 1.0);
        assert!((floor_of_ten(2345.0) - 1000.0).abs() < 1e-6);
    }
}
