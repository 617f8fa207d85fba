//! Names of hosts outside, as the host's own resolver answers them: its hosts file, its name servers, whatever nsswitch.conf says.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::lookup_host;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Answers of the host's resolver.
#[derive(Clone)]
pub(super) struct Names {
    known: Arc<Mutex<BTreeMap<Box<str>, Known>>>,
    asking: Arc<Semaphore>,
}

struct Known {
    addresses: Vec<IpAddr>,
    since: Instant,
}

impl Names {
    /// The addresses of a host. Where the resolver has no answer the last one that it had counts.
    pub(super) async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Some(fresh) = self.known(host, FRESH) {
            return Ok(fresh);
        }
        let asked = {
            let _turn = self.asking.acquire().await.map_err(io::Error::other)?;
            match self.known(host, FRESH) {
                Some(fresh) => return Ok(fresh),
                None => lookup_host((host, 0)).await,
            }
        };
        match asked {
            Ok(found) => {
                let mut addresses: Vec<IpAddr> = Vec::new();
                for address in found {
                    if !addresses.contains(&address.ip()) {
                        addresses.push(address.ip());
                    }
                }
                self.keep(host, &addresses);
                Ok(addresses)
            }
            Err(error) => self.known(host, Duration::MAX).ok_or(error),
        }
    }

    fn known(&self, host: &str, age_max: Duration) -> Option<Vec<IpAddr>> {
        let known = self.known.lock();
        known.get(host).filter(|known| known.since.elapsed() < age_max).map(|known| known.addresses.clone())
    }

    fn keep(&self, host: &str, addresses: &[IpAddr]) {
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX && !known.contains_key(host) {
            let oldest = known.iter().min_by_key(|(_, known)| known.since).map(|(host, _)| host.clone());
            oldest.and_then(|oldest| known.remove(&oldest));
        }
        known.insert(host.into(), Known { addresses: addresses.to_vec(), since: Instant::now() });
    }
}

impl Default for Names {
    fn default() -> Self {
        Self { known: Arc::default(), asking: Arc::new(Semaphore::new(ASKING_MAX)) }
    }
}

/// How long an answer is taken for new connections without asking again. What keeps answers for the time that they are said to
/// hold is the host's resolver.
const FRESH: Duration = Duration::from_secs(1);
/// Names whose answers are kept.
const KNOWN_MAX: usize = 1024;
/// Questions at once: each holds a thread for as long as the resolver takes.
const ASKING_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_answer_counts_where_there_is_no_new_one() {
        let names = Names::default();
        assert!(names.resolve("localhost").await.is_ok_and(|found| found.iter().all(IpAddr::is_loopback)));
        let host = "nothing.invalid";
        assert!(names.resolve(host).await.is_err());
        names.keep(host, &[IpAddr::from([192, 0, 2, 1])]);
        names.known.lock().get_mut(host).expect("it was kept").since -= FRESH;
        assert_eq!(names.resolve(host).await.ok(), Some(vec![IpAddr::from([192, 0, 2, 1])]));
    }

    #[test]
    fn answers_are_bounded() {
        let names = Names::default();
        for at in 0..=KNOWN_MAX {
            names.keep(&format!("host-{at}"), &[]);
        }
        assert_eq!(names.known.lock().len(), KNOWN_MAX);
        assert!(names.known("host-0", Duration::MAX).is_none());
    }
}
