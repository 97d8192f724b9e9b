//! How times are distributed, as a small SVG that reads well on light and on dark ground.

use std::fmt::Write as _;

/// A distribution, shown as the share that is done by each moment.
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    /// What was measured, the lowest first.
    pub(crate) values: Vec<f64>,
    pub(crate) marks: Vec<Mark>,
}

/// A line at one value.
pub(crate) struct Mark {
    pub(crate) at: f64,
    pub(crate) label: String,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 56.0;
/// More points than this are not seen on that width.
const POINTS_MAX: usize = 400;
const LINE: f64 = 16.0;

/// Colours follow what the reader's ground is.
const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#3a3f47}\
.title{font-size:16px;font-weight:600;fill:#14171c}\
.grid{stroke:#d9dde3;stroke-width:1}\
.axis{stroke:#6b7280;stroke-width:1}\
.curve{fill:none;stroke:#1f5fbf;stroke-width:2.5;stroke-linejoin:round}\
.area{fill:#1f5fbf;opacity:.12}\
.mark{stroke:#b4531a;stroke-width:1.5;stroke-dasharray:5 4}\
.label{fill:#9a4312;font-weight:600}\
@media(prefers-color-scheme:dark){\
text{fill:#c3c9d2}.title{fill:#f2f4f7}.grid{stroke:#343a43}.axis{stroke:#8b93a0}\
.curve{stroke:#7fb0ff}.area{fill:#7fb0ff}.mark{stroke:#f0a35e}.label{fill:#f5b57c}}";

impl Plot {
    /// The whole document.
    pub(crate) fn svg(&self) -> String {
        let span = self.span();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"28\">{title}</text>\n",
            title = escaped(&self.title)
        );
        self.grid(&mut svg, span);
        self.curve(&mut svg, span);
        self.marks(&mut svg, span);
        svg.push_str("</svg>\n");
        svg
    }

    /// The axis ends at a round number, beyond every value and mark.
    fn span(&self) -> f64 {
        let marks = self.marks.iter().map(|mark| mark.at);
        let last = self.values.iter().copied().chain(marks).fold(1.0, f64::max);
        let step = step(last);
        (last / step).ceil() * step
    }

    fn grid(&self, svg: &mut String, span: f64) {
        for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let y = y(share);
            line(svg, "grid", (LEFT, y), (WIDTH - RIGHT, y));
            text(svg, "end", (LEFT - 8.0, y + 4.0), &format!("{:.0} %", share * 100.0));
        }
        let step = step(span);
        let mut at = 0.0;
        while at <= span + step / 2.0 {
            let x = x(at, span);
            line(svg, "axis", (x, y(0.0)), (x, y(0.0) + 5.0));
            text(svg, "middle", (x, y(0.0) + 20.0), &format!("{at:.0}"));
            at += step;
        }
        line(svg, "axis", (LEFT, y(0.0)), (WIDTH - RIGHT, y(0.0)));
        let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
        text(svg, "middle", (middle, HEIGHT - 14.0), &format!("time in {}", self.unit));
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of measurements")]
    fn curve(&self, svg: &mut String, span: f64) {
        let count = self.values.len();
        if count == 0 {
            return;
        }
        let every = count.div_ceil(POINTS_MAX);
        let mut path = format!("M{:.1} {:.1}", x(0.0, span), y(0.0));
        for (index, value) in self.values.iter().enumerate() {
            if index % every == 0 || index + 1 == count {
                let share = (index + 1) as f64 / count as f64;
                // Writing to a text cannot fail.
                let _written = write!(path, "L{:.1} {:.1}", x(*value, span), y(share));
            }
        }
        let end = x(self.values[count - 1], span);
        let _written = write!(
            svg,
            "<path class=\"area\" d=\"{path}L{end:.1} {:.1}Z\"/>\n<path class=\"curve\" d=\"{path}\"/>\n",
            y(0.0)
        );
    }

    /// Each with its label on a line of its own, on the side where there is room.
    fn marks(&self, svg: &mut String, span: f64) {
        let mut down = y(1.0) + LINE;
        for mark in &self.marks {
            let x = x(mark.at, span);
            line(svg, "mark", (x, y(1.0) - 6.0), (x, y(0.0)));
            let (anchor, beside) = match x < WIDTH * 0.7 {
                true => ("start", x + 6.0),
                false => ("end", x - 6.0),
            };
            let label = escaped(&mark.label);
            let _written = writeln!(
                svg,
                "<text class=\"label\" text-anchor=\"{anchor}\" x=\"{beside:.1}\" y=\"{down:.1}\">{label}</text>"
            );
            down += LINE;
        }
    }
}

fn x(value: f64, span: f64) -> f64 {
    LEFT + value / span * (WIDTH - LEFT - RIGHT)
}

fn y(share: f64) -> f64 {
    HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
}

/// A round distance between ticks, of which there are five to ten.
fn step(span: f64) -> f64 {
    let power = 10_f64.powf((span / 10.0).log10().ceil());
    [power / 5.0, power / 2.0, power].into_iter().find(|step| span / step <= 10.0).unwrap_or(power)
}

fn line(svg: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _written = writeln!(
        svg,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

fn text(svg: &mut String, anchor: &str, (x, y): (f64, f64), what: &str) {
    let what = escaped(what);
    let _written =
        writeln!(svg, "<text text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{what}</text>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(values: Vec<f64>) -> String {
        let marks = vec![Mark { at: 500.0, label: "limit <500>".to_owned() }];
        Plot { title: "a & b".to_owned(), unit: "ms", values, marks }.svg()
    }

    #[test]
    fn ticks_are_round_and_few() {
        for (span, expected) in [(1.0, 0.1), (7.0, 1.0), (500.0, 50.0), (1234.0, 200.0)] {
            assert!((step(span) - expected).abs() < 1e-9, "{span}: {}", step(span));
        }
    }

    #[test]
    fn document_names_its_unit_and_marks_and_escapes_what_it_is_given() {
        let svg = plot((0..10_000).map(f64::from).collect());
        assert!(svg.contains("time in ms") && svg.contains("limit &lt;500&gt;"));
        assert!(svg.contains("<title>a &amp; b</title>") && svg.contains("prefers-color-scheme"));
        assert!(svg.len() < 20_000, "{} bytes", svg.len());
        assert!(plot(Vec::new()).ends_with("</svg>\n"));
    }
}
