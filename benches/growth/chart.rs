//! The chart: cost over size, a line per axis, as an SVG that is readable on light and dark backgrounds.
//!
//! It is drawn from the printed numbers. A point is the median over the rounds; the thin line through it goes from the
//! minimum to the maximum; the band is a tenth above and below the smallest size. Sizes are on a logarithmic scale;
//! zero is drawn at one, where the smallest relays are.

use std::fmt::Write as _;

use super::machine::Machine;

/// A line: its ratios to the smallest size.
pub(crate) struct Curve {
    pub(crate) label: &'static str,
    pub(crate) points: Vec<Point>,
}

pub(crate) struct Point {
    pub(crate) size: u64,
    pub(crate) middle: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 470.0;
/// Of the plot area.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 790.0;
const TOP: f64 = 74.0;
const BOTTOM: f64 = 380.0;
/// The approximate width of a letter of a label, and the least distance between labels.
const LETTER: f64 = 7.0;
const LINE: f64 = 17.0;
/// Half of the height that a label occupies.
const CLEAR: f64 = 9.0;

/// Colours for light and dark backgrounds, a class each.
const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:13px;fill:#57606a}\
text.title{font-size:16px;font-weight:600;fill:#1f2328}text.small{font-size:11.5px}\
.ground{fill:#fff}.band{fill:#1a7f37;opacity:.1}.grid{stroke:#d0d7de}.one{stroke:#57606a;stroke-dasharray:4 3}\
.c0{color:#0969da}.c1{color:#bc4c00}.c2{color:#1a7f37}.c3{color:#8250df}.c4{color:#cf222e}\
.line{fill:none;stroke:currentColor;stroke-width:2.2;stroke-linejoin:round}.range{stroke:currentColor;stroke-width:1.2;opacity:.55}\
.lead{stroke:currentColor;stroke-width:.8;opacity:.6}.dot{fill:currentColor}text.label{fill:currentColor;font-weight:600}\
@media(prefers-color-scheme:dark){text{fill:#9198a1}text.title{fill:#f0f6fc}.ground{fill:#0d1117}.band{fill:#3fb950;opacity:.14}\
.grid{stroke:#30363d}.one{stroke:#9198a1}.c0{color:#58a6ff}.c1{color:#f0883e}.c2{color:#3fb950}.c3{color:#bc8cff}.c4{color:#ff7b72}\
text.label{fill:currentColor}}";

/// The scales.
struct Field {
    /// The logarithm of the largest size.
    decades: f64,
    least: f64,
    most: f64,
}

pub(crate) fn draw(curves: &[Curve], machine: &Machine) -> String {
    let field = Field::of(curves);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <title>Processor time per push as the relay grows, over that of the smallest relay</title>\n<style>{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"8\"/>\n"
    );
    text(&mut svg, LEFT, 32.0, "start", "title", "What a push costs as the relay grows");
    let explanation = "the relay's processor time per push, over that of the smallest relay; median, least and most";
    text(&mut svg, LEFT, 52.0, "start", "", explanation);
    field.draw(&mut svg);
    let labels = places(&field, curves);
    for (number, (curve, label)) in curves.iter().zip(labels).enumerate() {
        draw_curve(&mut svg, &field, number, curve, label);
    }
    text(&mut svg, LEFT, HEIGHT - 18.0, "start", "small", &machine.to_string());
    svg + "</svg>\n"
}

impl Field {
    fn of(curves: &[Curve]) -> Self {
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let largest = points().map(|point| point.size).max().unwrap_or(1).max(1000);
        let least = points().map(|point| point.low).fold(0.75, f64::min);
        let most = points().map(|point| point.high).fold(1.25, f64::max);
        Self {
            decades: (largest as f64).log10().ceil(),
            least: (least * 10.0).floor() / 10.0,
            most: (most * 10.0).ceil() / 10.0,
        }
    }

    fn x(&self, size: u64) -> f64 {
        LEFT + (size.max(1) as f64).log10() / self.decades * (RIGHT - LEFT)
    }

    fn y(&self, ratio: f64) -> f64 {
        BOTTOM - (ratio - self.least) / (self.most - self.least) * (BOTTOM - TOP)
    }

    fn at(&self, point: &Point) -> (f64, f64) {
        (self.x(point.size), self.y(point.middle))
    }

    /// The band, the grid, and its labels.
    fn draw(&self, svg: &mut String) {
        let (top, height) = (self.y(1.1), self.y(0.9) - self.y(1.1));
        let width = RIGHT - LEFT;
        add(
            svg,
            &format!("<rect class=\"band\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{width}\" height=\"{height:.1}\"/>"),
        );
        let step = if self.most - self.least > 1.5 { 5 } else { 1 };
        for tenths in (1_u32..100).filter(|tenths| tenths % step == 0) {
            let ratio = f64::from(tenths) / 10.0;
            if (self.least - 0.01..self.most + 0.01).contains(&ratio) {
                let (y, class) = (self.y(ratio), if tenths == 10 { "grid one" } else { "grid" });
                stroke(svg, class, (LEFT, y), (RIGHT, y));
                text(svg, LEFT - 8.0, y + 4.5, "end", "", &format!("{ratio:.1}×"));
            }
        }
        let names = ["1", "10", "100", "1,000", "10 k", "100 k", "1 M", "10 M", "100 M"];
        for (size, name) in (0..).map(|power| 10_u64.pow(power)).zip(names).take(self.decades as usize + 1) {
            text(svg, self.x(size), BOTTOM + 21.0, "middle", "", name);
        }
        let sizes = "how many there are of each (the smallest relay: one of each, and an empty store)";
        text(svg, LEFT, BOTTOM + 43.0, "start", "", sizes);
    }
}

fn draw_curve(svg: &mut String, field: &Field, number: usize, curve: &Curve, label: (f64, f64)) {
    add(svg, &format!("<g class=\"c{number}\">"));
    let line: Vec<String> =
        curve.points.iter().map(|point| field.at(point)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    add(svg, &format!("<polyline class=\"line\" points=\"{}\"/>", line.join(" ")));
    for point in &curve.points {
        let (x, y) = field.at(point);
        stroke(svg, "range", (x, field.y(point.low)), (x, field.y(point.high)));
        add(svg, &format!("<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.4\"/>"));
    }
    if let Some(end) = curve.points.last().map(|point| field.at(point)) {
        if (label.1 - end.1).abs() > 1.0 {
            stroke(svg, "lead", end, (label.0 - 3.0, label.1));
        }
        text(svg, label.0, label.1 + 4.5, "start", "label", curve.label);
    }
    add(svg, "</g>");
}

/// The place of each curve's label: at its end, or as near as keeps it off lines and other labels.
fn places(field: &Field, curves: &[Curve]) -> Vec<(f64, f64)> {
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    for curve in curves {
        let end = curve.points.last().map_or((LEFT, field.y(1.0)), |point| field.at(point));
        let (x, width) = (end.0 + 12.0, curve.label.len() as f64 * LETTER);
        let is_free = |y: &f64| {
            let apart =
                |&(left, right, other): &(f64, f64, f64)| x > right || x + width < left || (y - other).abs() >= LINE;
            let steps = (0..=20).map(|step| x + width * f64::from(step) / 20.0);
            let crossed =
                |x: f64| curves.iter().any(|curve| height(field, curve, x).is_some_and(|at| (at - y).abs() < CLEAR));
            (TOP..BOTTOM).contains(y) && taken.iter().all(apart) && !steps.into_iter().any(crossed)
        };
        let mut ways = (0..40).flat_map(|step| [-1.0, 1.0].map(|way| end.1 + way * f64::from(step) * 6.0));
        let y = ways.find(is_free).unwrap_or(end.1);
        taken.push((x, x + width, y));
    }
    taken.into_iter().map(|(x, _, y)| (x, y)).collect()
}

/// The height of a curve at `x`, if it reaches it.
fn height(field: &Field, curve: &Curve, x: f64) -> Option<f64> {
    let within = |pair: &&[Point]| (field.x(pair[0].size)..=field.x(pair[1].size)).contains(&x);
    let (from, to) = curve.points.windows(2).find(within).map(|pair| (field.at(&pair[0]), field.at(&pair[1])))?;
    Some(from.1 + (to.1 - from.1) * (x - from.0) / (to.0 - from.0))
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    add(svg, &format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{text}</text>"));
}

fn stroke(svg: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let line = format!(
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        from.0, from.1, to.0, to.1
    );
    add(svg, &line);
}

fn add(svg: &mut String, element: &str) {
    writeln!(svg, "{element}").expect("a string takes all");
}
