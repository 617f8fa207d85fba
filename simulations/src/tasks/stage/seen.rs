//! What applications and nodes have seen of calls.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::super::application::{Seen, Variation};
use super::super::internet::address;
use super::Stage;

impl Stage {
    /// What all applications have seen so far.
    pub(in crate::tasks) fn seen(&self) -> Vec<Seen> {
        let mut all = Vec::new();
        for at in (0..self.hosts.len()).chain(self.internet.places()).chain(self.strangers.places()) {
            let text = fs::read_to_string(self.seen_path(at)).unwrap_or_default();
            let namespace = self.hosts.get(at).map(|host| host.service.namespace.clone());
            let namespace = namespace.or_else(|| self.strangers.namespace(at)).unwrap_or_default();
            let seen = text.lines().filter_map(|line| serde_json::from_str(line).ok());
            all.extend(seen.map(|seen: Seen| Seen { namespace: namespace.clone(), ..seen }));
        }
        all
    }

    /// The access records of whom that name means since what was seen was forgotten.
    pub(in crate::tasks) fn records(&self, of: &str) -> Vec<Value> {
        let name = of.split('.').next().unwrap_or(of);
        let mine = self.hosts.iter().enumerate().filter(|(_, host)| host.names.iter().any(|own| own == name));
        let logged = self.logged.lock();
        let texts = mine.filter_map(|(at, _)| {
            let text = fs::read_to_string(self.log(at)).ok()?;
            text.get(logged.get(&at).copied().unwrap_or(0)..).map(str::to_owned)
        });
        let lines: Vec<Value> = texts
            .flat_map(|text| text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>())
            .collect();
        lines
    }

    fn log(&self, at: usize) -> PathBuf {
        self.data_dir(at).join("access.log")
    }

    /// Forgets what was seen.
    pub(in crate::tasks) fn forget(&self) {
        let length = |at: usize| fs::metadata(self.log(at)).map_or(0, |file| usize::try_from(file.len()).unwrap_or(0));
        *self.logged.lock() = (0..self.hosts.len()).map(|at| (at, length(at))).collect();
        for at in (0..self.hosts.len()).chain(self.internet.places()).chain(self.strangers.places()) {
            // A file that is not there has seen nothing.
            let _ = fs::remove_file(self.seen_path(at));
        }
    }

    /// Who runs at an address; none where that is nobody of the mesh.
    pub(in crate::tasks) fn at(&self, peer: &str) -> Vec<String> {
        let hosts = self.hosts.iter().enumerate().filter(|(at, _)| address(*at) == peer);
        hosts.flat_map(|(_, host)| &host.names).cloned().collect()
    }

    /// Lets instances of a version behave differently, or as ever.
    pub(in crate::tasks) fn vary(&self, version: &str, variation: Option<Variation>) -> Result<(), String> {
        for (at, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.service.version == version) {
            let path = self.seen_path(at).with_extension("variation");
            let changed = match variation {
                Some(variation) => serde_json::to_vec(&variation)
                    .map_err(|error| error.to_string())
                    .and_then(|text| fs::write(&path, text).map_err(|error| format!("{}: {error}", host.service.name))),
                None => fs::remove_file(&path).map_err(|error| error.to_string()),
            };
            changed?;
        }
        Ok(())
    }
}
