//! What the node tells about itself: its log on standard error, and its metrics in Prometheus' text format.

use std::fmt::Write;
use std::fs;
use std::io::{IsTerminal, stderr};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;
use tokio::time::{MissedTickBehavior, interval};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How often histogram samples are folded into their buckets, so that they do not pile up between renderings.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Upper bounds of histograms of seconds, from a loopback call to a request that hangs.
const SECONDS_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Upper bounds of histograms of bytes, by powers of 16 from 256 B to 256 MiB.
const BYTES_BUCKETS: [f64; 6] = [256.0, 4096.0, 65_536.0, 1_048_576.0, 16_777_216.0, 268_435_456.0];
/// Upper bounds of histograms of anything else, which are counts.
const COUNT_BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
/// Clock ticks a second in `/proc` (`USER_HZ`): 100 on every architecture that Linux still gives new ports of.
const TICKS_PER_SECOND: f64 = 100.0;
/// The field of `/proc/self/stat` that holds the start time, counted after the process' name (proc_pid_stat(5), field 22).
const START_TIME_FIELD: usize = 19;

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, the journal where standard error leads there, JSON elsewhere.
    Auto,
    /// The journal of systemd, with fields of their own.
    Journal,
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts the log, once a process. The filter is written as `info` or `info,weft::join=debug`.
pub fn start_log(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = parse_filter(filter)?;
    if format == LogFormat::Journal || (format == LogFormat::Auto && leads_to_journal()) {
        return start_journal(filter);
    }
    let terminal = stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let started = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Auto if !terminal => builder.json().flatten_event(true).try_init(),
        LogFormat::Auto | LogFormat::Text | LogFormat::Journal => {
            builder.with_ansi(terminal && !is_colourless()).with_target(false).try_init()
        }
    };
    started.map_err(|error| format!("the log cannot be started: {error}"))
}

/// Each event is one of the journal: its text, its level as priority, its fields as `WEFT_NAME`.
fn start_journal(filter: EnvFilter) -> Result<(), String> {
    let layer = tracing_journald::layer().map_err(|error| format!("the journal cannot be written to: {error}"))?;
    let layer = layer.with_field_prefix(Some("WEFT".into())).with_syslog_identifier("weft".into());
    let started = tracing_subscriber::registry().with(filter).with(layer).try_init();
    started.map_err(|error| format!("the log cannot be started: {error}"))
}

/// Whether standard error leads to the journal, as its service manager says (systemd.exec(5), `$JOURNAL_STREAM`).
fn leads_to_journal() -> bool {
    let said = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Ok(stream) = fs::metadata("/proc/self/fd/2") else { return false };
    said == format!("{}:{}", stream.dev(), stream.ino())
}

fn parse_filter(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter).map_err(|error| {
        format!("--log {filter:?} is not a filter: {error}; write a level such as info, or info,weft::join=debug")
    })
}

/// Whether the user asked every program for output without colours (no-color.org).
fn is_colourless() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Installs the recorder of metrics, once a process, before anything is counted.
pub fn start_metrics() -> Result<(), String> {
    let recorder = with_buckets(PrometheusBuilder::new()).install_recorder();
    let handle = recorder.map_err(|error| format!("metrics cannot be recorded: {error}"))?;
    METRICS.set(handle).map_err(|_| "metrics are recorded already".to_owned())
}

fn with_buckets(builder: PrometheusBuilder) -> PrometheusBuilder {
    let suffix = |text: &str| Matcher::Suffix(text.to_owned());
    builder
        .set_buckets(&COUNT_BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(suffix("_seconds"), &SECONDS_BUCKETS))
        .and_then(|builder| builder.set_buckets_for_metric(suffix("_bytes"), &BYTES_BUCKETS))
        .expect("the lists of buckets are not empty")
}

/// What was recorded, and what the kernel knows of this process.
pub fn render() -> String {
    let mut text = METRICS.get().map(PrometheusHandle::render).unwrap_or_default();
    render_process(&mut text);
    text
}

/// Keeps the memory that histograms take bounded; runs until the node stops.
pub async fn upkeep() {
    let Some(handle) = METRICS.get() else { return };
    let mut ticks = interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        handle.run_upkeep();
    }
}

/// Appends the process' metrics under the names that Prometheus' own clients use. What cannot be read is left out.
fn render_process(out: &mut String) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = |name| status_field(&status, name).map(|kibibytes| kibibytes * 1024.0);
    let rows = [
        ("process_cpu_seconds_total", "counter", "User and system time in seconds.", cpu_seconds()),
        ("process_resident_memory_bytes", "gauge", "Resident memory.", memory("VmRSS:")),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory.", memory("VmSize:")),
        ("process_threads", "gauge", "Threads.", status_field(&status, "Threads:")),
        ("process_open_fds", "gauge", "Open file descriptors.", open_files()),
        ("process_max_fds", "gauge", "Limit of open file descriptors.", open_files_max()),
        ("process_start_time_seconds", "gauge", "Start, in seconds since the Unix epoch.", start_seconds()),
    ];
    for (name, kind, help, value) in rows {
        if let Some(value) = value {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
    }
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    #[expect(clippy::cast_precision_loss, reason = "seconds of processor time are far below 2^53 microseconds")]
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn status_field(status: &str, name: &str) -> Option<f64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "a count of open files")]
fn open_files() -> Option<f64> {
    // The directory that is being read is one of them.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

#[expect(clippy::cast_precision_loss, reason = "a limit on open files; unlimited is a very large number either way")]
fn open_files_max() -> Option<f64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft as f64)
}

fn start_seconds() -> Option<f64> {
    let own = fs::read_to_string("/proc/self/stat").ok()?;
    let host = fs::read_to_string("/proc/stat").ok()?;
    start_of(&own, &host)
}

fn start_of(own: &str, host: &str) -> Option<f64> {
    // The name is in brackets and may itself hold brackets and blanks.
    let (_, fields) = own.rsplit_once(") ")?;
    let ticks: f64 = fields.split_whitespace().nth(START_TIME_FIELD)?.parse().ok()?;
    let boot: f64 = host.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + ticks / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_have_buckets_by_their_unit() {
        let recorder = with_buckets(PrometheusBuilder::new()).build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("weft_wait_seconds").record(0.003);
            metrics::histogram!("weft_body_bytes").record(5000.0);
            metrics::histogram!("weft_batch").record(3.0);
        });
        let text = recorder.handle().render();
        for line in [
            "weft_wait_seconds_bucket{le=\"0.005\"} 1",
            "weft_body_bytes_bucket{le=\"65536\"} 1",
            "weft_batch_bucket{le=\"5\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn the_process_is_measured() {
        let mut text = String::new();
        render_process(&mut text);
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).expect(name);
            line.rsplit(' ').next().expect("a value").parse().expect("a number")
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_start_time_seconds") > 1.6e9);
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }

    #[test]
    fn a_process_name_with_brackets_and_blanks_is_stepped_over() {
        let own = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 1 0 250 1000 10";
        assert_eq!(start_of(own, "cpu 1 2\nbtime 1000\n"), Some(1002.5));
    }

    #[test]
    fn a_bad_filter_is_refused_with_what_would_be_right() {
        assert!(parse_filter("info,weft::join=debug").is_ok());
        assert!(parse_filter("weft=loud").expect_err("not a level").contains("such as info"));
    }
}
