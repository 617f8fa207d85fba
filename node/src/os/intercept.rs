//! What of this host's connections is sent to the node: kept in the data directory, and listened for while it is there.

use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

use tokio::sync::watch;

use super::services::write_whole;
use crate::intercept::Kept;
use crate::registry::Local;

/// The file, and who is told of it.
pub struct InterceptFile {
    path: PathBuf,
    local: watch::Sender<Arc<Local>>,
}

impl InterceptFile {
    /// Reads the file, if there is one.
    pub fn open(path: PathBuf, local: watch::Sender<Arc<Local>>) -> io::Result<Self> {
        let file = Self { path, local };
        match read(&file.path) {
            Ok(kept) => file.tell(kept.as_ref()),
            // What the firewall sends here is refused then.
            Err(error) => tracing::error!(file = %file.path.display(), %error, "what is intercepted cannot be read"),
        }
        Ok(file)
    }

    /// Keeps something else, or nothing.
    pub fn change(&self, kept: Option<&Kept>) -> Result<(), String> {
        let failed = |error: io::Error| format!("{}: {error}", self.path.display());
        match kept {
            Some(kept) => {
                let text = serde_json::to_string_pretty(kept).map_err(|error| error.to_string())?;
                write_whole(&self.path, &text).map_err(failed)?;
            }
            None => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            },
        }
        self.tell(kept);
        Ok(())
    }

    fn tell(&self, kept: Option<&Kept>) {
        let listened = kept.map(|kept| kept.interception.listened(super::has_ipv6())).unwrap_or_default();
        self.local.send_modify(|current| {
            let current = Arc::make_mut(current);
            (current.intercepts, current.intercepted) = (listened, kept.cloned());
        });
    }
}

/// What such a file says; nothing where there is none.
pub fn read(path: &std::path::Path) -> io::Result<Option<Kept>> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intercept::Interception;

    #[test]
    fn what_is_kept_is_listened_for_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || {
            let local = watch::channel(Arc::new(Local::default())).0;
            InterceptFile::open(directory.path().join("intercept.json"), local).expect("read")
        };
        let file = open();
        assert_eq!(file.local.borrow().intercepted, None);
        let interception = Interception { inbound: vec![80], users: vec!["app".into()], ..Interception::default() };
        let kept = Kept { interception, confirmed: true, before: None, attempt: 7, node_port: 7946 };
        file.change(Some(&kept)).expect("kept");
        let again = open();
        assert_eq!(again.local.borrow().intercepted, Some(kept));
        let listened = again.local.borrow().intercepts.clone();
        assert_eq!(listened.inbound.first().map(|at| at.port()), Some(15_006));
        assert_eq!(listened.outbound.first().map(|at| at.port()), Some(15_007));
        again.change(None).expect("gone");
        assert!(open().local.borrow().intercepts.inbound.is_empty());
        again.change(None).expect("gone already");
    }
}
