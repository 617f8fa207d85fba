//! What systemd has to do with it: the control groups of units, and what makes the rules again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::Stopped;
use crate::intercept::{Interception, WhenStopped};

/// The unit that makes the rules after a boot, which the package has.
const UNIT: &str = "weft-intercept.service";
/// What ties it to the node, where connections pass while that does not run.
const OWN: &str = "/etc/systemd/system/weft-intercept.service.d/pass.conf";
/// Where the files are that make the rules again when a unit starts.
const UNITS: &str = "/etc/systemd/system";
/// Their name.
const DROP_IN: &str = "weft-intercept.conf";
/// The unit that rolls back.
const ROLLBACK: &str = "weft-intercept-rollback";

/// Whether systemd runs this host.
pub(super) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The control group of a unit, from the root; none where it does not run.
pub(super) fn group(unit: &str) -> Option<String> {
    let asked = Command::new("systemctl").args(["show", "--property=ControlGroup", "--value", unit]).output().ok()?;
    let group = String::from_utf8_lossy(&asked.stdout).trim().trim_start_matches('/').to_owned();
    (!group.is_empty() && Path::new("/sys/fs/cgroup").join(&group).is_dir()).then_some(group)
}

/// Sees to it that the rules are made after a boot, and when a unit that is named starts again.
pub(super) fn prepare(interception: &Interception) -> Result<(), Stopped> {
    if !has_systemd() {
        return match interception.units.first() {
            Some(unit) => Err(Stopped::usage(format!("{unit}: there are no units where systemd does not run"))),
            None => Ok(()),
        };
    }
    forget()?;
    let program = std::env::current_exe().map_err(|error| Stopped::failed(format!("this program: {error}")))?;
    for unit in &interception.units {
        let path = drop_in(unit);
        // A unit gets a new control group each time it starts, and the rules name it.
        write(
            &path,
            &format!(
                "# Written by weft: `weft intercept off` takes it away.\n[Service]\nExecStartPre=+-{} intercept restore\n",
                program.display()
            ),
        )?;
    }
    if interception.when_stopped == WhenStopped::Pass {
        let text =
            "# Written by weft: rules are there while the node is.\n[Unit]\nBindsTo=weft.service\nAfter=weft.service\n";
        write(Path::new(OWN), text)?;
    }
    systemctl(&["daemon-reload"])?;
    let wanted_by = Command::new("systemctl").args(["cat", UNIT]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if wanted_by.is_ok_and(|status| status.success()) {
        systemctl(&["enable", UNIT])?;
        // It counts as started, so that it is stopped where it is bound to the node.
        systemctl(&["restart", "--no-block", UNIT])?;
    }
    Ok(())
}

/// Takes away all that was written.
pub(super) fn forget() -> Result<(), Stopped> {
    if !has_systemd() {
        return Ok(());
    }
    let mut gone = remove(Path::new(OWN))?;
    for entry in fs::read_dir(UNITS).into_iter().flatten().flatten() {
        let path = entry.path().join(DROP_IN);
        gone |= remove(&path)?;
    }
    let enabled = Command::new("systemctl").args(["is-enabled", "--quiet", UNIT]).status();
    if enabled.is_ok_and(|status| status.success()) {
        systemctl(&["disable", UNIT])?;
        systemctl(&["stop", UNIT])?;
    }
    if gone { systemctl(&["daemon-reload"]) } else { Ok(()) }
}

/// Rolls back after so many seconds, whatever becomes of this process and its session.
pub(super) fn arm(data_dir: &Path, attempt: u64, after: u64) -> Result<(), Stopped> {
    disarm();
    let program = std::env::current_exe().map_err(|error| Stopped::failed(format!("this program: {error}")))?;
    let mut command = match has_systemd() {
        true => {
            let mut command = Command::new("systemd-run");
            command.args(["--quiet", "--collect", "--unit", ROLLBACK]);
            command
        }
        false => {
            let mut command = Command::new("setsid");
            command.arg("--fork");
            command
        }
    };
    command.arg(program).arg("--data-dir").arg(data_dir).args(["intercept", "rollback"]);
    command.args(["--attempt", &attempt.to_string(), "--after", &after.to_string()]);
    let armed = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match armed {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            Err(Stopped::failed(format!("what rolls it back cannot be started ({status}), so it was switched off")))
        }
        Err(error) => {
            Err(Stopped::failed(format!("what rolls it back cannot be started ({error}), so it was switched off")))
        }
    }
}

/// Rolls back no more.
pub(super) fn disarm() {
    if has_systemd() {
        // There may be none.
        let _ = Command::new("systemctl").args(["stop", ROLLBACK]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

fn drop_in(unit: &str) -> PathBuf {
    Path::new(UNITS).join(format!("{unit}.d")).join(DROP_IN)
}

fn write(path: &Path, text: &str) -> Result<(), Stopped> {
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    written.map_err(|error| Stopped::failed(format!("{}: {error}", path.display())))
}

/// Removes a file, and its directory where nothing else is in it; whether there was one.
fn remove(path: &Path) -> Result<bool, Stopped> {
    match fs::remove_file(path) {
        Ok(()) => {
            // It is not empty where others have written there too.
            let _ = path.parent().map(fs::remove_dir);
            Ok(true)
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(Stopped::failed(format!("{}: {error}", path.display()))),
    }
}

fn systemctl(arguments: &[&str]) -> Result<(), Stopped> {
    let asked = Command::new("systemctl").arg("--quiet").args(arguments).stdout(Stdio::null()).output();
    match asked {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(Stopped::failed(format!("systemctl {}: {why}", arguments.join(" "))))
        }
        Err(error) => Err(Stopped::failed(format!("systemctl: {error}"))),
    }
}
