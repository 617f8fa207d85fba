//! A run as one page: hosts as lanes, faults as bars, what happened as marks that tell what they are.

use std::fmt::Write;

use crate::run::Report;
use crate::trace::{Event, Kind};

const LANE: usize = 36;
const LEFT: usize = 70;
const TOP: usize = 50;
/// Width of a simulated second, in pixels.
const SECOND: f64 = 8.0;

/// A self-contained HTML page.
pub fn page(seed: u64, hosts: usize, report: &Report) -> String {
    let width = LEFT + 40 + pixels(report.simulated);
    let height = TOP + (hosts + 2) * LANE + 30;
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>weft-sim, seed {seed}</title>\n<style>{STYLE}</style>\n\
         <h1>Seed {seed}</h1><p>{}</p>\n<p>{LEGEND}</p>\n<div class=\"scroll\"><svg width=\"{width}\" height=\"{height}\">\n",
        summary(report)
    );
    lanes(&mut page, hosts, report);
    for event in report.trace.events() {
        mark(&mut page, hosts, event);
    }
    page.push_str("</svg></div>\n<table>\n");
    let quiet = |event: &&Event| !matches!(event.kind, Kind::Allowed | Kind::Denied);
    for event in report.trace.events().iter().filter(quiet) {
        let host = event.host.map(|host| format!("n{host}")).unwrap_or_default();
        let (at, kind, text) = (seconds(event.at), class(event.kind), escape(&event.text));
        let _ = writeln!(page, "<tr class=\"{kind}\"><td>{at}</td><td>{host}</td><td>{kind}</td><td>{text}</td></tr>");
    }
    page.push_str("</table></html>\n");
    page
}

fn summary(report: &Report) -> String {
    let outcome = match &report.breach {
        None => "Everything held.".to_owned(),
        Some((at, breach)) => format!("<b>At {} s it broke: {}.</b>", seconds(*at), escape(&breach.to_string())),
    };
    let [allowed, denied, failed] = report.calls;
    format!(
        "{outcome} {} s, {} faults, {} decisions, {allowed} calls allowed, {denied} denied, {failed} failed; trace {:016x}.",
        report.simulated / 1000,
        report.faults,
        report.decisions.0,
        report.trace.hash()
    )
}

fn lanes(page: &mut String, hosts: usize, report: &Report) {
    let right = LEFT + pixels(report.simulated);
    for lane in 0..hosts + 2 {
        let y = TOP + lane * LANE + LANE / 2;
        let name = match lane {
            0 => "faults".to_owned(),
            1 => "decisions".to_owned(),
            host => format!("n{}", host - 2),
        };
        let _ = writeln!(
            page,
            "<text x=\"4\" y=\"{}\">{name}</text><line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y}\" y2=\"{y}\"/>",
            y + 4
        );
    }
    for second in (0..=report.simulated / 1000).step_by(10) {
        let x = LEFT + pixels(second * 1000);
        let _ = writeln!(page, "<text x=\"{x}\" y=\"{}\" class=\"tick\">{second}</text>", TOP - 8);
    }
}

fn mark(page: &mut String, hosts: usize, event: &Event) {
    let lane = match (event.kind, event.host) {
        (Kind::Fault | Kind::Broken, _) => 0,
        (Kind::Decision, _) | (_, None) => 1,
        (_, Some(host)) => 2 + host.min(hosts.saturating_sub(1)),
    };
    let (x, y) = (LEFT + pixels(event.at), TOP + lane * LANE + LANE / 2);
    let (kind, title) = (class(event.kind), escape(&format!("{} s: {}", seconds(event.at), event.text)));
    let _ = match event.kind {
        Kind::Broken => writeln!(
            page,
            "<line class=\"{kind}\" x1=\"{x}\" x2=\"{x}\" y1=\"{TOP}\" y2=\"{}\"><title>{title}</title></line>",
            TOP + (hosts + 2) * LANE
        ),
        Kind::Fault => writeln!(
            page,
            "<rect class=\"{kind}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"20\"><title>{title}</title></rect>",
            x - 2,
            y - 10,
            pixels(lasts(&event.text)).max(5)
        ),
        Kind::Node => writeln!(
            page,
            "<rect class=\"{kind}\" x=\"{}\" y=\"{}\" width=\"5\" height=\"20\"><title>{title}</title></rect>",
            x - 2,
            y - 10
        ),
        _ => writeln!(page, "<circle class=\"{kind}\" cx=\"{x}\" cy=\"{y}\" r=\"3\"><title>{title}</title></circle>"),
    };
}

/// How long a fault lasts that begins, in milliseconds, as its event tells it at its end.
fn lasts(text: &str) -> u64 {
    let number = text.strip_suffix(" ms").and_then(|text| text.rsplit(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "pixels")]
fn pixels(millis: u64) -> usize {
    (millis as f64 / 1000.0 * SECOND) as usize
}

fn seconds(millis: u64) -> String {
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Fault => "fault",
        Kind::Node => "node",
        Kind::Decision => "decision",
        Kind::Allowed => "allowed",
        Kind::Denied => "denied",
        Kind::Failed => "failed",
        Kind::Broken => "broken",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What the marks are; each tells more when it is pointed at.
const LEGEND: &str = "<b style=\"color:#c0392b\">&#9646;</b> a fault, from its beginning to its end \
<b style=\"color:#1d6fd1\">&#9646;</b> a node starts, ends, leads \
<b style=\"color:#1d6fd1\">&#9679;</b> a decision \
<b style=\"color:#2a9d5c\">&#9679;</b> a call was allowed \
<b style=\"color:#8a63d2\">&#9679;</b> denied \
<b style=\"color:#d97706\">&#9679;</b> failed. Seconds from left to right; point at a mark to read it.";

const STYLE: &str = "body{font:14px sans-serif;margin:24px;color:#222}.scroll{overflow-x:auto;border:1px solid #ddd}\
svg text{font-size:12px}svg line{stroke:#ccc}.tick{fill:#888}circle.allowed{fill:#2a9d5c}circle.denied{fill:#8a63d2}\
circle.failed{fill:#d97706}circle.decision{fill:#1d6fd1}rect.fault{fill:#c0392b;fill-opacity:.45}rect.node{fill:#1d6fd1}\
line.broken{stroke:#c0392b;stroke-width:3}table{margin-top:16px;border-collapse:collapse}td{padding:1px 10px 1px 0}\
tr.fault td,tr.broken td{color:#c0392b}tr.broken{font-weight:bold}tr.failed td{color:#b45309}";
