use svg::Document;
use svg::node::element::{Circle, Group, Line, Path, Rectangle, Text, Title, path::Data};

/// A picture with two axes.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// What its horizontal axis counts.
    pub x: String,
    /// What is drawn.
    pub series: Vec<Series>,
}

/// Points of one kind.
#[derive(Clone, Debug)]
pub struct Series {
    /// What they are, in the legend.
    pub name: String,
    /// Their colour, by its number.
    pub colour: usize,
    /// How they are drawn.
    pub mark: Mark,
    /// Places and values.
    pub points: Vec<(f64, f64)>,
    /// Half the height of a point's interval; none where there is none.
    pub intervals: Option<Vec<f64>>,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mark {
    /// A line.
    Line,
    /// A line with a dot on every point.
    Dots,
    /// A line of dashes.
    Dashes,
    /// Bars of this width, around their places.
    Bars(f64),
}

const COLOURS: [&str; 8] =
    ["#8d99ae", "#d9480f", "#1864ab", "#2b8a3e", "#862e9c", "#e67700", "#0b7285", "#c2255c"];

/// Size of a panel, and of the edges around what is drawn in it.
const SIZE: (f64, f64) = (440.0, 300.0);
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 52.0;
/// Height of a line of the legend.
const LINE: f64 = 15.0;
const BOTTOM: f64 = 44.0;

/// An SVG of panels side by side, `columns` in a row. The same panels give the same text.
///
/// Values that are not finite are left out.
pub fn chart(title: &str, panels: &[Panel], columns: usize) -> String {
    let columns = columns.clamp(1, panels.len().max(1));
    let rows = panels.len().div_ceil(columns);
    let (width, height) = (columns as f64 * SIZE.0, rows as f64 * SIZE.1 + 40.0);
    let mut document = Document::new()
        .set("viewBox", (0, 0, width, height))
        .set("width", width)
        .set("height", height)
        .set("font-family", "system-ui, sans-serif")
        .set("font-size", 12)
        .add(Title::new(title))
        .add(Rectangle::new().set("width", width).set("height", height).set("fill", "#ffffff"))
        .add(text(title, 16.0, 27.0, "start").set("font-size", 17).set("font-weight", 600));
    for (i, panel) in panels.iter().enumerate() {
        let (x, y) = ((i % columns) as f64 * SIZE.0, (i / columns) as f64 * SIZE.1 + 36.0);
        document = document.add(draw(panel).set("transform", format!("translate({x} {y})")));
    }
    format!("{document}\n")
}

/// From values to places.
struct Axis {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Axis {
    /// An axis from `start` to `end` that holds all of `values`.
    fn new(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let finite = values.filter(|value| value.is_finite());
        let (mut low, mut high) =
            finite.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low <= 1e-9 * low.abs().max(high.abs()).max(1e-9) {
            let around = (0.5 * high.abs()).max(0.5);
            (low, high) = (low - around, high + around);
        }
        Axis { low, high, start, end }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        round(self.start + share * (self.end - self.start))
    }

    /// Round numbers within, about `count` of them, with the digits that they need.
    fn ticks(&self, count: f64) -> (Vec<f64>, usize) {
        let rough = (self.high - self.low) / count;
        let power = 10f64.powf(rough.log10().floor());
        let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= rough).unwrap_or(10.0);
        let step = factor * power;
        let (first, last) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
        let digits = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
        ((first..=last).map(|i| i as f64 * step).collect(), digits)
    }
}

fn draw(panel: &Panel) -> Group {
    let all = || panel.series.iter().flat_map(|s| s.points.iter().map(move |point| (s, point)));
    let xs = all().flat_map(|(series, point)| {
        let half = if let Mark::Bars(width) = series.mark { width / 2.0 } else { 0.0 };
        [point.0 - half, point.0 + half]
    });
    let ys = panel.series.iter().flat_map(|series| {
        let floor = matches!(series.mark, Mark::Bars(_)).then_some(0.0);
        let ends = (0..series.points.len()).flat_map(|i| {
            let half = series.half(i);
            [series.points[i].1 - half, series.points[i].1 + half]
        });
        ends.chain(floor)
    });
    let x = Axis::new(xs, LEFT, SIZE.0 - RIGHT);
    let legend = legend(&panel.series);
    let y = Axis::new(ys, SIZE.1 - BOTTOM, TOP + legend.last().map_or(0.0, |place| place.1));
    let mut group = Group::new()
        .add(text(&panel.title, LEFT, 20.0, "start").set("font-weight", 600))
        .add(grey(text(&panel.x, (x.start + x.end) / 2.0, SIZE.1 - 10.0, "middle")));
    let (ticks, digits) = y.ticks(5.0);
    for tick in ticks {
        let (at, label) = (y.at(tick), format!("{tick:.digits$}"));
        group = group
            .add(line((x.start, at), (x.end, at), if tick == 0.0 { "#adb5bd" } else { "#e9ecef" }))
            .add(grey(text(&label, x.start - 6.0, at + 4.0, "end")));
    }
    let (ticks, digits) = x.ticks(6.0);
    for tick in ticks {
        let (at, label) = (x.at(tick), format!("{tick:.digits$}"));
        group = group.add(line((at, y.start), (at, y.start + 4.0), "#868e96")).add(grey(text(
            &label,
            at,
            y.start + 17.0,
            "middle",
        )));
    }
    group = group.add(line((x.start, y.start), (x.end, y.start), "#868e96"));
    for (series, (left, down)) in panel.series.iter().zip(legend) {
        group = group
            .add(series.draw(&x, &y))
            .add(
                Rectangle::new()
                    .set("x", left)
                    .set("y", 31.0 + down)
                    .set("width", 10)
                    .set("height", 10)
                    .set("rx", 2)
                    .set("fill", series.colour()),
            )
            .add(text(&series.name, left + 15.0, 40.0 + down, "start"));
    }
    group
}

/// Where each name begins: from the left, and down from the first line.
fn legend(series: &[Series]) -> Vec<(f64, f64)> {
    let (mut left, mut down) = (LEFT, 0.0);
    let place = |series: &Series| {
        let width = 33.0 + 6.4 * series.name.chars().count() as f64;
        if left > LEFT && left + width > SIZE.0 {
            (left, down) = (LEFT, down + LINE);
        }
        let at = (left, down);
        left += width;
        at
    };
    series.iter().map(place).collect()
}

impl Series {
    /// A series without intervals.
    pub fn new(name: &str, colour: usize, mark: Mark, points: Vec<(f64, f64)>) -> Self {
        Series { name: name.into(), colour, mark, points, intervals: None }
    }

    fn half(&self, i: usize) -> f64 {
        self.intervals.as_ref().and_then(|halves| halves.get(i)).copied().unwrap_or(0.0)
    }

    fn colour(&self) -> &'static str {
        COLOURS[self.colour % COLOURS.len()]
    }

    fn draw(&self, x: &Axis, y: &Axis) -> Group {
        let mut group = Group::new();
        let finite = |point: &(f64, f64)| point.0.is_finite() && point.1.is_finite();
        let places: Vec<(usize, (f64, f64))> = self
            .points
            .iter()
            .enumerate()
            .filter(|(_, point)| finite(point))
            .map(|(i, point)| (i, (x.at(point.0), y.at(point.1))))
            .collect();
        if let Mark::Bars(width) = self.mark {
            let wide = round((x.at(x.low + width) - x.start) * 0.96);
            for (_, (at, top)) in places {
                group = group.add(
                    Rectangle::new()
                        .set("x", round(at - wide / 2.0))
                        .set("y", top)
                        .set("width", wide)
                        .set("height", round(y.at(0.0) - top))
                        .set("fill", self.colour())
                        .set("fill-opacity", 0.55),
                );
            }
            return group;
        }
        if self.intervals.is_some() {
            for &(i, (at, _)) in &places {
                let (value, half) = (self.points[i].1, self.half(i));
                let ends = [value - half, value + half].map(|end| (at, y.at(end)));
                group = group.add(line(ends[0], ends[1], self.colour()).set("stroke-width", 1.5));
            }
        }
        let mut data = Data::new();
        for (n, (_, place)) in places.iter().enumerate() {
            data = if n == 0 { data.move_to(*place) } else { data.line_to(*place) };
        }
        let mut path = Path::new()
            .set("d", data)
            .set("fill", "none")
            .set("stroke", self.colour())
            .set("stroke-width", 1.8)
            .set("stroke-linejoin", "round");
        if self.mark == Mark::Dashes {
            path = path.set("stroke-dasharray", "5 4");
        }
        group = group.add(path);
        if self.mark == Mark::Dots {
            for (_, (cx, cy)) in places {
                let dot = Circle::new().set("cx", cx).set("cy", cy).set("r", 3);
                group = group.add(dot.set("fill", self.colour()));
            }
        }
        group
    }
}

fn text(content: &str, x: f64, y: f64, anchor: &str) -> Text {
    Text::new(content).set("x", round(x)).set("y", round(y)).set("text-anchor", anchor)
}

fn grey(text: Text) -> Text {
    text.set("fill", "#495057")
}

fn line(from: (f64, f64), to: (f64, f64), colour: &str) -> Line {
    Line::new()
        .set("x1", from.0)
        .set("y1", from.1)
        .set("x2", to.0)
        .set("y2", to.1)
        .set("stroke", colour)
}

/// Hundredths of a unit are enough, and short.
fn round(place: f64) -> f64 {
    (place * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        let axis = |low, high| Axis { low, high, start: 0.0, end: 100.0 };
        assert_eq!(
            axis(0.0, 1.0).ticks(5.0),
            (vec![0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0], 1)
        );
        assert_eq!(axis(-3.0, 4.0).ticks(5.0), (vec![-2.0, 0.0, 2.0, 4.0], 0));
        assert_eq!(axis(0.0, 100.0).at(25.0), 25.0);
    }

    #[test]
    fn any_values_can_be_drawn() {
        let odd = [f64::NAN, f64::INFINITY, -1e300, 1e300, 0.0];
        let points: Vec<(f64, f64)> = odd.iter().flat_map(|&x| odd.map(|y| (x, y))).collect();
        for points in [points, vec![], vec![(1.0, 1.0)], vec![(0.0, f64::NAN)]] {
            for mark in [Mark::Line, Mark::Dots, Mark::Dashes, Mark::Bars(0.5)] {
                let series = vec![Series::new("a < b", 9, mark, points.clone())];
                let panel = Panel { title: "t & u".into(), x: "x".into(), series };
                let svg = chart("c", &[panel.clone(), panel], 2);
                assert!(svg.starts_with("<svg") && !svg.contains("NaN") && !svg.contains("inf"));
                assert!(svg.contains("a &lt; b") && svg.contains("t &amp; u"));
            }
        }
    }
}
