//! Plain aligned text: tables, pairs, durations.

use weft_proto::UnixMillis;

/// Between two columns.
const GAP: &str = "  ";
/// Stands where a value is not known.
const NONE: &str = "-";

/// Rows under a heading, each column as wide as its widest cell. An empty cell is shown as `-`.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let shown = |cell: &str| if cell.is_empty() { NONE.to_owned() } else { cell.to_owned() };
    let heading = heading.map(str::to_owned);
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| shown(cell))).collect();
    let all = || std::iter::once(&heading).chain(&rows);
    let widths: [usize; N] = std::array::from_fn(|i| all().map(|row| row[i].chars().count()).max().unwrap_or(0));
    all().map(|row| line(row, &widths)).collect()
}

fn line<const N: usize>(row: &[String; N], widths: &[usize; N]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>();
    format!("{}\n", cells.join(GAP).trim_end())
}

/// A name and its value a line, the values aligned. An empty value is left out.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let shown = || pairs.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    shown().map(|(name, value)| format!("{name:width$}{GAP}{value}\n")).collect()
}

/// `1 node`, `3 nodes`.
pub(crate) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// A moment as people see it: `in 23h 40m`, `2m ago`. Empty for a moment that is not known.
pub(crate) fn moment(at: UnixMillis, now: UnixMillis) -> String {
    match at {
        0 => String::new(),
        at if at >= now => format!("in {}", span((at - now) / 1000)),
        at => format!("{} ago", span((now - at) / 1000)),
    }
}

/// Seconds in at most two units: `3d 4h`, `23h 40m`, `2m`, `45s`. Seconds matter only below ten minutes.
pub(crate) fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let parts = match seconds {
        0..60 => return format!("{seconds}s"),
        60..600 => [(minutes, "m"), (seconds % 60, "s")],
        600..86_400 => [(hours, "h"), (minutes, "m")],
        _ => [(days, "d"), (hours, "h")],
    };
    let shown: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_by_characters_and_lines_have_no_trailing_blanks() {
        let rows = [["a".into(), "live".into(), String::new()], ["größer".into(), String::new(), "x".into()]];
        let text = table(["NAME", "STATE", "NOTE"], &rows);
        assert_eq!(text, "NAME    STATE  NOTE\na       live   -\ngrößer  -      x\n");
        assert_eq!(pairs(&[("a", "1".into()), ("long", "2".into()), ("none", String::new())]), "a     1\nlong  2\n");
    }

    #[test]
    fn moments_are_durations() {
        let hour = 3_600_000;
        assert_eq!(moment(100 + 23 * hour + 40 * 60_000, 100), "in 23h 40m");
        assert_eq!(moment(1, 2 * 60_000 + 1), "2m ago");
        assert_eq!(moment(0, 5), "");
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (61, "1m 1s"), (600, "10m"), (3600, "1h"), (90_000, "1d 1h"), (864_000, "10d")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
