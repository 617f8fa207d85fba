//! What a command tells systemd: what to do, and what it adds to a unit.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Stopped;
use crate::os::services::write_whole;

/// Where an administrator adds to units.
const UNITS: &str = "/etc/systemd/system";

/// Whether systemd runs this host: sd_booted(3).
pub(super) fn runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Has it do something, and says what it answers where that fails.
pub(super) fn systemctl(arguments: &[&str]) -> Result<(), Stopped> {
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

/// The file of a name that adds to a unit.
pub(super) fn drop_in(unit: &str, name: &str) -> PathBuf {
    Path::new(UNITS).join(format!("{unit}.d")).join(name)
}

/// The files of a name, whatever unit they would add to: there need be none.
pub(super) fn drop_ins(name: &str) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(UNITS).into_iter().flatten().flatten().map(move |entry| entry.path().join(name))
}

/// Writes a file that says something to systemd, which everybody may read.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Stopped> {
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| write_whole(path, text));
    let opened = written.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)));
    opened.map_err(|error| Stopped::failed(format!("{}: {error}", path.display())))
}

/// Removes such a file, and its directory where nothing else is in it; whether there was one.
pub(super) fn remove(path: &Path) -> Result<bool, Stopped> {
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
