//! The services whose loopback addresses this host was asked to listen on by `weft listen`: one name a line, kept in the
//! data directory.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

use tokio::sync::watch;
use weft_proto::kinds::hosts::called;
use weft_proto::service::ServiceName;

use super::services::write_whole;
use crate::registry::Local;

/// The file and what was last read from it.
pub struct ListenFile {
    path: PathBuf,
    local: watch::Sender<Arc<Local>>,
}

impl ListenFile {
    /// Reads the file, if there is one.
    pub fn open(path: PathBuf, local: watch::Sender<Arc<Local>>) -> io::Result<Self> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let mut names = BTreeSet::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match called(line.trim()) {
                Ok(name) => drop(names.insert(name)),
                Err(error) => tracing::warn!(file = %path.display(), %error, "a line names no service"),
            }
        }
        local.send_modify(|current| Arc::make_mut(current).listened = names);
        Ok(Self { path, local })
    }

    /// Adds services, or takes them off; answers all that are listened for then.
    pub fn change(&self, services: &[ServiceName], remove: bool) -> Result<BTreeSet<ServiceName>, String> {
        let mut names = self.local.borrow().listened.clone();
        for service in services {
            match remove {
                true => drop(names.remove(service)),
                false => drop(names.insert(service.clone())),
            }
        }
        if names != self.local.borrow().listened {
            let text: String = names.iter().map(|name| format!("{name}\n")).collect();
            write_whole(&self.path, &text).map_err(|error| format!("{}: {error}", self.path.display()))?;
            self.local.send_modify(|current| Arc::make_mut(current).listened.clone_from(&names));
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_holds_at_the_next_start() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path().join("listen");
        let open = || ListenFile::open(path.clone(), watch::channel(Arc::new(Local::default())).0).expect("readable");
        let names = |all: &[&str]| all.iter().map(|name| name.parse().expect("a name")).collect::<Vec<ServiceName>>();
        let file = open();
        file.change(&names(&["db", "shop/web"]), false).expect("written");
        let left = file.change(&names(&["db", "never"]), true).expect("written");
        assert_eq!(left.into_iter().collect::<Vec<_>>(), names(&["shop/web"]));
        assert_eq!(open().local.borrow().listened.iter().cloned().collect::<Vec<_>>(), names(&["shop/web"]));
    }
}
