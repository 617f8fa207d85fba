//! Hosts by name: a whole name goes before an end of names, a longer end before a shorter one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::VirtualHost;

/// Hosts of a port.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    exact: BTreeMap<Box<str>, Arc<VirtualHost>>,
    /// What names must end with, the longest first.
    ends: Vec<(Box<str>, Arc<VirtualHost>)>,
}

impl Hosts {
    /// One more: a name, `*.suffix` or `*`.
    pub(super) fn add(&mut self, pattern: &str, host: Arc<VirtualHost>) {
        match pattern.strip_prefix('*') {
            None => drop(self.exact.insert(pattern.into(), host)),
            Some(end) => {
                self.ends.push((end.into(), host));
                self.ends.sort_by_key(|(end, _)| std::cmp::Reverse(end.len()));
            }
        }
    }

    /// The host that a name means, which is in small letters and has no port.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<VirtualHost>> {
        let ends = |(end, _): &&(Box<str>, Arc<VirtualHost>)| {
            end.is_empty() || (name.len() > end.len() && name.ends_with(&**end))
        };
        self.exact.get(name).or_else(|| self.ends.iter().find(ends).map(|(_, host)| host))
    }
}
