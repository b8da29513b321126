//! Charts of the last hour as SVG: pure functions from series to text, of fixed classes and attributes, without styles.
//!
//! A chart has at most some KB: series are drawn by the minute. A minute without a measurement is a gap.

use std::fmt::Write as _;

/// A line of a chart.
pub(super) struct Line<'l> {
    /// Its class in the style sheet, and its name.
    pub(super) class: &'static str,
    pub(super) name: &'l str,
    /// One value for each minute, the oldest first.
    pub(super) values: Vec<Option<f64>>,
}

/// How the steps of a minute become its value.
#[derive(Clone, Copy)]
pub(super) enum Combine {
    Sum,
    Max,
}

/// The size of a spark line, and of a chart with the margins of its labels.
const SPARK: (f64, f64) = (120.0, 24.0);
const CHART: (f64, f64) = (600.0, 120.0);
const LEFT: f64 = 48.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 16.0;
/// Beside the line, so that a stroke at the edge is whole.
const EDGE: f64 = 2.0;

/// The values of each minute, of steps of 10 s.
pub(super) fn minutes(steps: &[Option<u32>], combine: Combine, divisor: f64) -> Vec<Option<f64>> {
    let minute = |steps: &[Option<u32>]| {
        let measured = steps.iter().flatten().map(|value| f64::from(*value) / divisor);
        measured.reduce(|one, other| match combine {
            Combine::Sum => one + other,
            Combine::Max => one.max(other),
        })
    };
    steps.chunks(6).map(minute).collect()
}

/// A small line without axes. `title` says what it shows.
pub(super) fn spark(title: &str, line: &Line<'_>) -> String {
    let mut svg = begin("spark", SPARK, title);
    let most = greatest(std::slice::from_ref(line));
    path(&mut svg, line, (EDGE, SPARK.0 - EDGE), (EDGE, SPARK.1 - EDGE), most);
    svg += "</svg>";
    svg
}

/// A chart with a scale, and its lines' names. `unit` follows the greatest value, and `from` and `to` are below the ends.
pub(super) fn chart(title: &str, unit: &str, [from, to]: [&str; 2], lines: &[Line<'_>]) -> String {
    let mut svg = begin("chart", CHART, title);
    let (right, low) = (CHART.0 - EDGE, CHART.1 - BOTTOM);
    let most = scale(greatest(lines));
    for (y, value) in [(TOP, most), (low, 0.0)] {
        push(&mut svg, format_args!("<path class=\"axis\" d=\"M{LEFT} {y}H{right}\"/>"));
        let (x, y, unit) = (LEFT - 4.0, y + 4.0, if value > 0.0 { unit } else { "" });
        text(&mut svg, "scale end", x, y, &format!("{value}{unit}"));
    }
    text(&mut svg, "scale", LEFT, CHART.1 - 3.0, from);
    text(&mut svg, "scale end", right, CHART.1 - 3.0, to);
    for (index, line) in lines.iter().enumerate() {
        path(&mut svg, line, (LEFT, right), (TOP, low), most);
        let x = LEFT + index as f64 * 130.0;
        text(&mut svg, &format!("key {}", line.class), x, TOP - 6.0, line.name);
    }
    svg += "</svg>";
    svg
}

fn begin(class: &str, (width, height): (f64, f64), title: &str) -> String {
    let mut svg = String::with_capacity(2048);
    push(
        &mut svg,
        format_args!(
            "<svg class=\"{class}\" role=\"img\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             aria-label=\""
        ),
    );
    escape(&mut svg, title);
    svg += "\"><title>";
    escape(&mut svg, title);
    svg += "</title>";
    svg
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, content: &str) {
    push(svg, format_args!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">"));
    escape(svg, content);
    *svg += "</text>";
}

/// The line from left to right; a gap begins another part of it, and a value between two gaps is a dot.
fn path(svg: &mut String, line: &Line<'_>, (left, right): (f64, f64), (high, low): (f64, f64), most: f64) {
    push(svg, format_args!("<path class=\"line {}\" d=\"", line.class));
    let width = (right - left) / line.values.len().saturating_sub(1).max(1) as f64;
    let mut is_drawing = false;
    for (index, value) in line.values.iter().enumerate() {
        let Some(value) = value else {
            is_drawing = false;
            continue;
        };
        let share = if most > 0.0 { (value / most).clamp(0.0, 1.0) } else { 0.0 };
        let (x, y) = ((left + width * index as f64).round(), (low - (low - high) * share).round());
        let is_alone = !is_drawing && line.values.get(index + 1).is_none_or(Option::is_none);
        push(svg, format_args!("{}{x} {y}{}", if is_drawing { 'L' } else { 'M' }, if is_alone { "h1" } else { "" }));
        is_drawing = true;
    }
    *svg += "\"/>";
}

fn greatest(lines: &[Line<'_>]) -> f64 {
    lines.iter().flat_map(|line| &line.values).flatten().fold(0.0, |most, value| value.max(most))
}

/// The next of 1, 2, 5, 10, 20 and so on that is not less.
fn scale(most: f64) -> f64 {
    let mut power = 1.0;
    while power * 10.0 < most {
        power *= 10.0;
    }
    [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= most).unwrap_or(most)
}

fn push(svg: &mut String, part: std::fmt::Arguments<'_>) {
    // A string takes everything.
    svg.write_fmt(part).ok();
}

fn escape(svg: &mut String, text: &str) {
    for sign in text.chars() {
        match sign {
            '&' => *svg += "&amp;",
            '<' => *svg += "&lt;",
            '>' => *svg += "&gt;",
            '"' => *svg += "&quot;",
            _ => svg.push(sign),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(class: &'static str, values: Vec<Option<f64>>) -> Line<'static> {
        Line { class, name: "done", values }
    }

    #[test]
    fn a_spark_line_has_gaps_and_dots() {
        let values = vec![None, Some(0.0), Some(10.0), None, Some(5.0), None, Some(10.0)];
        let expected = "<svg class=\"spark\" role=\"img\" viewBox=\"0 0 120 24\" width=\"120\" height=\"24\" \
                        aria-label=\"a &lt;b&gt; &amp; &quot;c&quot;\"><title>a &lt;b&gt; &amp; &quot;c&quot;</title>\
                        <path class=\"line ok\" d=\"M21 22L41 2M79 12h1M118 2h1\"/></svg>";
        assert_eq!(spark("a <b> & \"c\"", &line("ok", values)), expected);
        assert!(spark("", &line("ok", vec![None; 60])).ends_with("<path class=\"line ok\" d=\"\"/></svg>"));
        assert!(
            spark("", &line("ok", vec![Some(0.0); 2])).contains("d=\"M2 22L118 22\""),
            "no traffic is at the bottom"
        );
    }

    #[test]
    fn a_chart_has_a_scale_and_names() {
        let lines = [line("ok", vec![Some(3.0), Some(0.0)]), line("bad", vec![None, Some(4.0)])];
        let expected = "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 600 120\" width=\"600\" height=\"120\" \
                        aria-label=\"t\"><title>t</title>\
                        <path class=\"axis\" d=\"M48 18H598\"/><text class=\"scale end\" x=\"44\" y=\"22\">5 ms</text>\
                        <path class=\"axis\" d=\"M48 104H598\"/><text class=\"scale end\" x=\"44\" y=\"108\">0</text>\
                        <text class=\"scale\" x=\"48\" y=\"117\">02:00</text>\
                        <text class=\"scale end\" x=\"598\" y=\"117\">03:00</text>\
                        <path class=\"line ok\" d=\"M48 52L598 104\"/>\
                        <text class=\"key ok\" x=\"48\" y=\"12\">done</text>\
                        <path class=\"line bad\" d=\"M598 35h1\"/>\
                        <text class=\"key bad\" x=\"178\" y=\"12\">done</text></svg>";
        assert_eq!(chart("t", " ms", ["02:00", "03:00"], &lines), expected);
        let hour = (0..60).map(|minute| Some(f64::from(minute * 37 % 61))).collect();
        let size = chart("t", "", ["", ""], &[line("ok", hour)]).len();
        assert!((500..2000).contains(&size), "{size} bytes");
    }

    #[test]
    fn minutes_are_sums_or_the_greatest_and_absent_without_a_step() {
        let mut steps = vec![None; 12];
        (steps[2], steps[3]) = (Some(4), Some(6));
        assert_eq!(minutes(&steps, Combine::Sum, 1.0), [Some(10.0), None]);
        assert_eq!(minutes(&steps, Combine::Max, 2.0), [Some(3.0), None]);
    }

    #[test]
    fn a_scale_is_a_round_number() {
        for (most, expected) in
            [(0.0, 1.0), (1.0, 1.0), (1.5, 2.0), (4.0, 5.0), (7.0, 10.0), (11.0, 20.0), (4_100.0, 5_000.0)]
        {
            assert_eq!(scale(most), expected, "{most}");
        }
    }
}
