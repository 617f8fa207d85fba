//! What systemd has to do with it: the control groups of units, and what makes the rules again.

use std::path::Path;
use std::process::{Command, Stdio};

use super::super::Stopped;
use super::super::systemd::{self, drop_in, drop_ins, remove, systemctl, write};
use crate::intercept::{Interception, WhenStopped};

/// The unit that makes the rules after a boot, which the package has.
const UNIT: &str = "weft-intercept.service";
/// What ties it to the node, where connections pass while that does not run.
const OWN: &str = "/etc/systemd/system/weft-intercept.service.d/pass.conf";
/// The files that make the rules again when a unit starts.
const DROP_IN: &str = "weft-intercept.conf";
/// The unit that rolls back.
const ROLLBACK: &str = "weft-intercept-rollback";

/// The control group of a unit, from the root; none where it does not run.
pub(super) fn group(unit: &str) -> Option<String> {
    let asked = Command::new("systemctl").args(["show", "--property=ControlGroup", "--value", unit]).output().ok()?;
    let group = String::from_utf8_lossy(&asked.stdout).trim().trim_start_matches('/').to_owned();
    (!group.is_empty() && Path::new("/sys/fs/cgroup").join(&group).is_dir()).then_some(group)
}

/// Sees to it that the rules are made after a boot, and when a unit that is named starts again.
pub(super) fn prepare(interception: &Interception) -> Result<(), Stopped> {
    if !systemd::runs() {
        return match interception.units.first() {
            Some(unit) => Err(Stopped::usage(format!("{unit}: there are no units where systemd does not run"))),
            None => Ok(()),
        };
    }
    forget()?;
    let program = std::env::current_exe().map_err(|error| Stopped::failed(format!("this program: {error}")))?;
    for unit in &interception.units {
        let path = drop_in(unit, DROP_IN);
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
    if !systemd::runs() {
        return Ok(());
    }
    let mut gone = remove(Path::new(OWN))?;
    for path in drop_ins(DROP_IN) {
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
    let mut command = match systemd::runs() {
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
            Err(Stopped::failed(format!("what rolls it back cannot be started ({status}), so all is as it was before")))
        }
        Err(error) => {
            Err(Stopped::failed(format!("what rolls it back cannot be started ({error}), so all is as it was before")))
        }
    }
}

/// Rolls back no more.
pub(super) fn disarm() {
    if systemd::runs() {
        // There may be none.
        let _ = Command::new("systemctl").args(["stop", ROLLBACK]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
