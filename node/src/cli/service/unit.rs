//! What a unit of systemd is told that is an instance: it waits before it stops until it has answered its calls.

use std::fs;
use std::process::Command;

use weft_proto::service::{InstanceName, ServiceName};

use super::super::Stopped;
use super::super::systemd::{self, drop_ins, remove, systemctl, write};

/// The files that tell it.
const DROP_IN: &str = "weft-service.conf";
/// How long it waits at most, in seconds.
const WAITS: u64 = 10;

/// Tells the unit; what is not so, where it cannot be told.
pub(super) fn tell(unit: &str, service: &ServiceName, instance: &InstanceName) -> Result<Option<String>, Stopped> {
    if !systemd::runs() || !nix::unistd::geteuid().is_root() {
        let text = "calls under way are not waited for when it stops: only root can tell the unit, where systemd runs";
        return Ok(Some(format!("{unit}: {text}\n")));
    }
    let path = systemd::drop_in(unit, DROP_IN);
    remove(&path)?;
    let told = Command::new("systemctl").args(["cat", unit]).output();
    let told = told.map_err(|error| Stopped::failed(format!("systemctl: {error}")))?;
    if !told.status.success() {
        return Ok(Some(format!("there is no {unit} yet: it is an instance once it is there\n")));
    }
    let program = std::env::current_exe().map_err(|error| Stopped::failed(format!("this program: {error}")))?;
    let drain = format!("{} service drain {service} --instance {instance} --timeout {WAITS}", program.display());
    let text = drop_in(&drain, &stops(&String::from_utf8_lossy(&told.stdout)));
    write(&path, &text)?;
    systemctl(&["daemon-reload"])?;
    Ok(None)
}

/// Takes back what units were told for a service of this host, or one instance of it.
pub(super) fn forget(service: &ServiceName, only: Option<&InstanceName>) -> Result<(), Stopped> {
    let of_service = format!("service drain {service} --instance ");
    let mut gone = false;
    for path in drop_ins(DROP_IN) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let meant = text.split_once(&of_service).map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
        if meant.is_some_and(|instance| only.is_none_or(|only| only.as_str() == instance)) {
            gone |= remove(&path)?;
        }
    }
    if gone { systemctl(&["daemon-reload"]) } else { Ok(()) }
}

/// First the calls, then what the unit does itself to stop.
fn drop_in(drain: &str, stops: &[String]) -> String {
    let own: String = stops.iter().map(|stop| format!("ExecStop={stop}\n")).collect();
    format!(
        "# Written by weft: `weft service remove` takes it away.\n[Unit]\nAfter=weft.service\n\n[Service]\nExecStop=\n\
         ExecStop=+-{drain}\n{own}"
    )
}

/// What a unit does to stop, by its files (systemd.service(5)): an empty line forgets those before it.
fn stops(files: &str) -> Vec<String> {
    let mut stops = Vec::new();
    let joined = files.replace("\\\n", " ");
    for line in joined.lines() {
        match line.trim().strip_prefix("ExecStop=") {
            Some("") => stops.clear(),
            Some(stop) => stops.push(stop.trim().to_owned()),
            None => {}
        }
    }
    stops
}

/// The name of the instance that a unit is unless it is given one: that of a template has one.
pub(super) fn instance_of(unit: &str) -> Option<InstanceName> {
    let (_, rest) = unit.split_once('@')?;
    rest.strip_suffix(".service")?.to_ascii_lowercase().replace(['_', '.', ':'], "-").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_come_first_and_then_what_the_unit_does_itself() {
        let files = "# /lib/systemd/system/nginx.service\n[Service]\nExecStop=-/sbin/start-stop-daemon --stop \\\n  --retry QUIT/5\n\
                     # /etc/x\n[Service]\nExecStop=/bin/second\n";
        let stops = stops(files);
        assert_eq!(stops.len(), 2);
        let text = drop_in("/usr/bin/weft service drain default/web --instance default --timeout 10", &stops);
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("ExecStop")).collect();
        assert_eq!(lines[0], "ExecStop=");
        assert!(lines[1].starts_with("ExecStop=+-/usr/bin/weft service drain"), "{lines:?}");
        assert!(
            lines[2].contains("start-stop-daemon")
                && lines[2].ends_with("QUIT/5")
                && lines[3] == "ExecStop=/bin/second"
        );
        assert!(super::stops("ExecStop=/bin/a\nExecStop=\n").is_empty());
    }

    #[test]
    fn units_of_a_template_are_instances() {
        assert_eq!(instance_of("web@2.service").map(|name| name.to_string()).as_deref(), Some("2"));
        assert_eq!(instance_of("web@Eu_1.service").map(|name| name.to_string()).as_deref(), Some("eu-1"));
        assert_eq!(instance_of("web.service"), None);
    }
}
