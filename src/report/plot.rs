//! Charts as SVG inside a page. Colours are a few fixed values that the style sheet replaces, so
//! that a chart follows the reader's light or dark scheme.

use maud::{Markup, PreEscaped, html};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// What a mark stands for; the style sheet knows each by its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// What the page is about: the run, the suspects.
    Accent,
    /// What it is held against: the reference, all other pairs.
    Other,
    /// What is known from outside: the truth.
    Ink,
    /// Lines of the grid.
    Grid,
    /// Stretches of the horizontal axis.
    Band,
}

impl Tone {
    fn rgb(self) -> RGBColor {
        match self {
            Self::Accent => RGBColor(0xB0, 0x3A, 0x1E),
            Self::Other => RGBColor(0x7C, 0x86, 0x8E),
            Self::Ink => RGBColor(0x23, 0x29, 0x2E),
            Self::Grid => RGBColor(0xDD, 0xDA, 0xD2),
            Self::Band => RGBColor(0xEF, 0xEC, 0xE4),
        }
    }
}

/// Whole units are drawn, so a chart is drawn large and shown small.
const SCALE: u32 = 4;
const SIZE: (u32, u32) = (360 * SCALE, 200 * SCALE);
/// Of text, as `plotters` counts it: its SVG divides by 1.24.
const FONT: f64 = 11.0 * 1.24 * SCALE as f64;

/// A line through points.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Its points, from left to right; those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Its colour.
    pub tone: Tone,
    /// Whether it is drawn fainter, behind the others.
    pub faint: bool,
}

impl Line {
    /// A line of that colour.
    pub fn new(tone: Tone, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { points: points.into_iter().collect(), tone, faint: false }
    }
}

/// Lines over one axis.
#[derive(Clone, Debug, Default)]
pub(super) struct Chart {
    /// What it shows, for those who cannot see it.
    pub label: String,
    /// Its lines, the last on top.
    pub lines: Vec<Line>,
    /// Range of the horizontal axis; `None`: that of the lines.
    pub x: Option<(f64, f64)>,
    /// Range of the vertical axis; `None`: that of the lines.
    pub y: Option<(f64, f64)>,
    /// Stretches of the horizontal axis that are shaded.
    pub bands: Vec<(f64, f64)>,
    /// Places on the horizontal axis with a dotted line.
    pub rules: Vec<f64>,
    /// Places on the horizontal axis with a triangle.
    pub flags: Vec<f64>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a, 'b> = ChartContext<
    'b,
    SVGBackend<'a>,
    plotters::coord::cartesian::Cartesian2d<RangedCoordf64, RangedCoordf64>,
>;

/// Drawing goes to memory.
const DRAWN: &str = "memory takes every line";

/// Smallest range that holds all finite values, widened where it is a point; `None` where there is
/// no value, or they are too large or too close to each other for an axis.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.filter(|v| v.is_finite());
    let (low, high) =
        finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let size = low.abs().max(high.abs());
    let widened = if low == high {
        (low - 0.5 * size.max(1e-6), high + 0.5 * size.max(1e-6))
    } else {
        (low, high)
    };
    (size < 1e12 && widened.1 - widened.0 > 1e-9 * size).then_some(widened)
}

/// A number at an axis, without zeros that say nothing.
fn tick(value: &f64) -> String {
    let size = value.abs();
    if size < 1e-12 {
        return "0".into();
    }
    if !(1e-3..1e5).contains(&size) {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

fn svg(label: &str, draw: impl FnOnce(&Area)) -> Markup {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&area);
        area.present().expect(DRAWN);
    }
    let body = text.split_once('>').and_then(|(_, body)| body.trim_end().strip_suffix("</svg>"));
    let body = body.expect("plotters writes one element");
    let view = format!("0 0 {} {}", SIZE.0, SIZE.1);
    html! { svg.plot viewBox=(view) role="img" aria-label=(label) { (PreEscaped(body)) } }
}

/// Axes with a grid of horizontal lines.
fn plane<'a, 'b>(
    area: &'b Area<'a>,
    x: (f64, f64),
    y: (f64, f64),
    bands: &[(f64, f64)],
) -> Plane<'a, 'b> {
    let units = |n: u32| n * SCALE;
    let mut plane = ChartBuilder::on(area)
        .margin(units(6))
        .margin_right(units(12))
        .set_label_area_size(LabelAreaPosition::Left, units(42))
        .set_label_area_size(LabelAreaPosition::Bottom, units(20))
        .build_cartesian_2d(x.0..x.1, y.0..y.1)
        .expect(DRAWN);
    let band = |&(from, to): &(f64, f64)| {
        Rectangle::new([(from.max(x.0), y.0), (to.min(x.1), y.1)], Tone::Band.rgb().filled())
    };
    plane.draw_series(bands.iter().map(band)).expect(DRAWN);
    let grid = Tone::Grid.rgb().stroke_width(SCALE);
    let text = ("sans-serif", FONT).into_font().color(&Tone::Other.rgb());
    plane
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(grid)
        .axis_style(grid)
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&tick)
        .y_label_formatter(&tick)
        .label_style(text)
        .set_all_tick_mark_size(units(4))
        .draw()
        .expect(DRAWN);
    plane
}

impl Chart {
    /// Draws it; where there is nothing to draw, says so.
    pub fn draw(&self) -> Markup {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let drawn = range(points().filter(|p| p.1.is_finite()).map(|p| p.0));
        let x = drawn.map(|x| self.x.unwrap_or(x));
        let y = self.y.or_else(|| range(points().map(|p| p.1)));
        let (Some(x), Some(y)) = (x, y) else {
            return html! { p.none { "Nothing to draw." } };
        };
        // A little air, so that no line runs along the frame.
        let air = if self.y.is_some() { 0.0 } else { 0.05 * (y.1 - y.0) };
        let y = (y.0 - air, y.1 + air);
        svg(&self.label, |area| {
            let mut plane = plane(area, x, y, &self.bands);
            for &at in self.rules.iter().filter(|at| (x.0..=x.1).contains(at)) {
                let style = Tone::Other.rgb().stroke_width(SCALE);
                let line = DashedLineSeries::new([(at, y.0), (at, y.1)], 8, 8, style);
                plane.draw_series(line).expect(DRAWN);
            }
            for line in &self.lines {
                let width = if line.faint { SCALE } else { 2 * SCALE };
                let finite =
                    line.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite());
                let points: Vec<(f64, f64)> = finite.collect();
                let style = line.tone.rgb().stroke_width(width);
                // Few values are points that someone measured; a single one has no line at all.
                if points.len() <= 40 && !line.faint {
                    let dot = |&point| Circle::new(point, 2 * width, line.tone.rgb().filled());
                    plane.draw_series(points.iter().map(dot)).expect(DRAWN);
                }
                plane.draw_series(LineSeries::new(points, style)).expect(DRAWN);
            }
            let inside = self.flags.iter().filter(|at| (x.0..=x.1).contains(*at));
            let flag =
                |&at: &f64| TriangleMarker::new((at, y.0), 5 * SCALE, Tone::Ink.rgb().filled());
            plane.draw_series(inside.map(flag)).expect(DRAWN);
        })
    }
}

/// Values of one group, counted in bins of equal width.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Its colour.
    pub tone: Tone,
    /// Whether its bars are filled; else their outline is drawn.
    pub filled: bool,
    /// Values in each bin.
    pub bins: Vec<u64>,
}

/// Draws groups over one another, each as shares of its own size: few are seen beside many.
pub(super) fn histogram(label: &str, (low, high): (f64, f64), groups: &[Group]) -> Markup {
    let shares = |group: &Group| -> Vec<f64> {
        let all = group.bins.iter().sum::<u64>().max(1) as f64;
        group.bins.iter().map(|&n| 100.0 * n as f64 / all).collect()
    };
    let top = groups.iter().flat_map(shares).fold(0.0, f64::max);
    let Some(x) = range([low, high].into_iter()).filter(|_| top > 0.0) else {
        return html! { p.none { "Nothing to draw." } };
    };
    svg(label, |area| {
        let mut plane = plane(area, x, (0.0, 1.05 * top), &[]);
        for group in groups.iter().filter(|group| group.bins.iter().any(|&n| n > 0)) {
            let width = (x.1 - x.0) / group.bins.len() as f64;
            let edge = |n: usize| x.0 + n as f64 * width;
            let color = group.tone.rgb();
            let shares = shares(group);
            if group.filled {
                let bar = |(n, share): (usize, &f64)| {
                    Rectangle::new([(edge(n), 0.0), (edge(n + 1), *share)], color.mix(0.4).filled())
                };
                plane.draw_series(shares.iter().enumerate().map(bar)).expect(DRAWN);
            } else {
                let step = |(n, share): (usize, &f64)| [(edge(n), *share), (edge(n + 1), *share)];
                let steps = shares.iter().enumerate().flat_map(step);
                let line = LineSeries::new(steps, color.stroke_width(2 * SCALE));
                plane.draw_series(line).expect(DRAWN);
            }
        }
    })
}

/// Means of at most `bins` equal parts of what is finite: a line of a million points as people see
/// it.
pub(super) fn thinned(points: &[(f64, f64)], bins: usize) -> Vec<(f64, f64)> {
    let finite: Vec<_> = points.iter().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    let bins = bins.min(finite.len());
    let part = |n: usize| &finite[n * finite.len() / bins..(n + 1) * finite.len() / bins];
    let mean = |part: &[&(f64, f64)]| {
        let sum = part.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
    };
    (0..bins).map(|n| mean(part(n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tone_is_one_that_the_style_sheet_replaces() {
        let style = include_str!("page.css");
        for tone in [Tone::Accent, Tone::Other, Tone::Ink, Tone::Grid, Tone::Band] {
            let RGBColor(r, g, b) = tone.rgb();
            let name = format!("\"#{r:02X}{g:02X}{b:02X}\"");
            assert!(style.contains(&name), "{tone:?}: {name}");
        }
    }

    #[test]
    fn strange_values_are_drawn_or_refused() {
        let chart = |points: &[(f64, f64)]| {
            let lines = vec![Line::new(Tone::Accent, points.iter().copied())];
            Chart { label: "<&\">".into(), lines, ..Chart::default() }.draw().into_string()
        };
        let nan = f64::NAN;
        let drawn = chart(&[(0.0, 1.0), (1.0, nan), (2.0, 3.0)]);
        assert!(
            drawn.contains("aria-label=\"&lt;&amp;&quot;&gt;\"") && drawn.contains("<polyline")
        );
        assert!(!drawn.contains("http") && !drawn.contains("NaN"), "{drawn}");
        assert!(chart(&[(1.0, 7.0)]).contains("<circle"));
        for nothing in [&[][..], &[(0.0, nan)], &[(0.0, 1e300), (1.0, -1e300)], &[(nan, 1.0)]] {
            assert!(chart(nothing).contains("Nothing to draw"), "{nothing:?}");
        }
        assert!(histogram("x", (0.0, 0.0), &[]).into_string().contains("Nothing"));
        assert!(range([1e9, 1e9 + 1e-3].into_iter()).is_none());
    }

    #[test]
    fn bars_are_shares_of_their_group() {
        let group = |tone, filled, bins: &[u64]| Group { tone, filled, bins: bins.to_vec() };
        let groups = [group(Tone::Other, true, &[300, 100]), group(Tone::Accent, false, &[0, 2])];
        let drawn = histogram("x", (0.0, 2.0), &groups).into_string();
        // 75 % and 25 % of an axis up to 105 %: the bars' heights are as three to one.
        let heights: Vec<f64> = drawn
            .split("<rect ")
            .skip(1)
            .filter_map(|rect| rect.split("height=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(heights.len(), 2, "{drawn}");
        assert!((heights[0] / heights[1] - 3.0).abs() < 0.05, "{heights:?}");
    }

    #[test]
    fn thinning_keeps_the_mean() {
        let points: Vec<(f64, f64)> =
            (0..1000).map(|n| (f64::from(n), f64::from(n % 10))).collect();
        let thin = thinned(&points, 100);
        assert_eq!((thin.len(), thin[0], thin[99]), (100, (4.5, 4.5), (994.5, 4.5)));
        assert_eq!(thinned(&points[..3], 100), points[..3]);
        assert_eq!(thinned(&[(1.0, f64::NAN)], 9), []);
    }

    #[test]
    fn ticks_have_no_idle_digits() {
        let ticks = [0.0, 1.0, 0.25, -3.5, 100_000.0, 5e-6, 0.1 + 0.2].map(|v| tick(&v));
        assert_eq!(ticks, ["0", "1", "0.25", "-3.5", "1e5", "5e-6", "0.3"]);
    }
}
