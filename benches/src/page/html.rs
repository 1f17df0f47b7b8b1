//! The page: figures with their tables, in light and in dark. Knows how it looks, not what it says.

use std::fmt::Write as _;

use super::plots::{COLOURS, GRID, INK};
use plotters::style::RGBColor;

/// A part of the page.
pub struct Section {
    pub title: String,
    pub about: String,
    pub blocks: Vec<Block>,
}

/// What a section holds.
pub enum Block {
    Figure(Figure),
    Table(Table),
}

/// A figure, with its values for those who cannot see it or want them exactly.
pub struct Figure {
    /// Name of its file.
    pub id: String,
    pub title: String,
    pub svg: String,
    pub values: Table,
}

/// The first column names its row.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// Colours of figures in dark surroundings, in the order of `COLOURS`.
const DARK_COLOURS: [&str; 6] = ["#ff8c42", "#56b4e9", "#35c99b", "#e6a5cc", "#e0c341", "#b8b8b8"];

const STYLE: &str = "
:root { color-scheme: light dark; --ground: #fdfdfc; --ink: #1a1a1a; --faint: #5c5c5c; --grid: #dddddc; --card: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15171a; --ink: #ececec; --faint: #a8a8a8; --grid: #3a3d42; --card: #1d2024; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 82rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.3rem; }
p { margin: .25rem 0 1rem; max-width: 60rem; color: var(--faint); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; }
figcaption { font-weight: 600; }
figure svg { width: 100%; height: auto; display: block; }
details { margin-top: .5rem; color: var(--faint); }
summary { cursor: pointer; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; color: var(--ink); font-size: .92rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; font-weight: 500; }
thead th { color: var(--faint); font-weight: 600; }
";

/// The whole page.
pub fn page(title: &str, about: &str, sections: &[Section]) -> String {
    let mut page = String::new();
    let title = escape(title);
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n<p>{}</p>\n",
        figure_style(),
        escape(about),
    )
    .expect("a String takes all");
    for section in sections {
        write!(page, "<section>\n<h2>{}</h2>\n<p>{}</p>\n", escape(&section.title), escape(&section.about))
            .expect("a String takes all");
        page.push_str("<div class=\"grid\">\n");
        section.blocks.iter().for_each(|block| page.push_str(&render(block)));
        page.push_str("</div>\n</section>\n");
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// A figure as a file of its own.
pub fn standalone(figure: &Figure) -> String {
    let style = format!(
        "<style>svg {{ background: #ffffff; --ink: #1a1a1a; --grid: #dddddc; }} @media (prefers-color-scheme: dark) {{ svg \
         {{ background: #1d2024; --ink: #ececec; --grid: #3a3d42; }} }}{}</style>",
        figure_style()
    );
    named(figure, &style)
}

fn render(block: &Block) -> String {
    match block {
        Block::Table(table) => format!("<div class=\"scroll\">{}</div>\n", render_table(table)),
        Block::Figure(figure) => format!(
            "<figure>\n<figcaption>{}</figcaption>\n{}\n<details><summary>Values</summary><div class=\"scroll\">{}</div>\
             </details>\n</figure>\n",
            escape(&figure.title),
            named(figure, ""),
            render_table(&figure.values),
        ),
    }
}

/// The SVG with its name for those who have it read to them.
fn named(figure: &Figure, style: &str) -> String {
    let title = escape(&figure.title);
    let named = figure.svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{title}\" "), 1);
    named.replacen('>', &format!("><title>{title}</title>{style}"), 1)
}

fn render_table(table: &Table) -> String {
    let mut text = String::from("<table><thead><tr>");
    for cell in &table.head {
        write!(text, "<th scope=\"col\">{}</th>", escape(cell)).expect("a String takes all");
    }
    text.push_str("</tr></thead><tbody>\n");
    for row in &table.rows {
        text.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let cell = escape(cell);
            let cell = if column == 0 { format!("<th scope=\"row\">{cell}</th>") } else { format!("<td>{cell}</td>") };
            text.push_str(&cell);
        }
        text.push_str("</tr>\n");
    }
    text + "</tbody></table>"
}

/// Gives the colours in figures their meaning: ink and grid follow the page, series get lighter in the dark.
fn figure_style() -> String {
    let mut style = String::new();
    for (colour, value) in [(INK, "var(--ink)"), (GRID, "var(--grid)")] {
        style += &paint(colour, value);
    }
    style += "@media (prefers-color-scheme: dark) {\n";
    for (colour, dark) in COLOURS.iter().zip(DARK_COLOURS) {
        style += &paint(*colour, dark);
    }
    style + "}\n"
}

fn paint(colour: RGBColor, value: &str) -> String {
    let RGBColor(red, green, blue) = colour;
    let hex = format!("#{red:02X}{green:02X}{blue:02X}");
    format!("svg [fill=\"{hex}\"] {{ fill: {value}; }} svg [stroke=\"{hex}\"] {{ stroke: {value}; }}\n")
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        Figure {
            id: "f".into(),
            title: "a < b".into(),
            svg: "<svg width=\"1\"><text fill=\"#010101\"/></svg>".into(),
            values: Table { head: vec!["load".into()], rows: vec![vec!["<puts>".into()]] },
        }
    }

    #[test]
    fn a_page_is_whole_by_itself_and_names_its_figures() {
        let section = Section { title: "S&S".into(), about: "why".into(), blocks: vec![Block::Figure(figure())] };
        let page = page("T", "when", &[section]);
        for text in
            ["S&amp;S", "aria-label=\"a &lt; b\"", "<title>a &lt; b</title>", "&lt;puts&gt;", "prefers-color-scheme"]
        {
            assert!(page.contains(text), "{text} is not in it");
        }
        for outside in ["http://", "https://", "src=", "<link", "<script"] {
            assert!(!page.contains(outside), "{outside}: the page needs something else");
        }
        assert_eq!(page.matches("<section>").count(), page.matches("</section>").count());
    }

    #[test]
    fn every_series_has_a_colour_for_the_dark() {
        let style = figure_style();
        for RGBColor(red, green, blue) in COLOURS {
            assert!(style.contains(&format!("svg [fill=\"#{red:02X}{green:02X}{blue:02X}\"]")));
        }
        assert!(standalone(&figure()).contains("<style>"));
    }
}
