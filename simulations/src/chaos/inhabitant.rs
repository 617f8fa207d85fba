//! What lives on a real host: a process in its network namespace that runs applications, and makes calls as the user that
//! it is.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::watch;
use weft_proxy::net::host::HostNet;

use crate::application::{Application, Seen};
use crate::call::Call;
use crate::caller;
use crate::host::target;
use crate::mesh::Service;

/// What an inhabitant is told, a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Who is who, and which services to run here. The first line.
    Settle(Vec<Service>, Vec<usize>),
    /// Make a call.
    Call(u64, Call),
    /// Take connections, or do not.
    Open(bool),
}

/// What it tells.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    /// Unix milliseconds; some later than what was seen.
    pub at: u64,
    /// What was seen then.
    pub seen: Seen,
}

/// How often what was seen is told.
const TELLING: Duration = Duration::from_millis(5);

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "real processes compare moments by the host's clock")]
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Lives until the input ends.
pub async fn live() -> Result<(), String> {
    let (seen, net) = (Arc::new(Mutex::new(Vec::new())), HostNet::new(Arc::new(|_, _| None)));
    let (open, mut services) = (watch::channel(true).0, Vec::new());
    tokio::spawn(tell(seen.clone()));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line).map_err(|error| format!("{line:?}: {error}"))? {
            Order::Open(is) => drop(open.send_replace(is)),
            Order::Settle(all, here) => {
                services = all;
                for service in here {
                    let protocol = services[service].protocol;
                    let (net, seen) = (net.clone(), seen.clone());
                    let application = Application { net, address: target(service), service, protocol, seen };
                    tokio::spawn(application.serve(open.subscribe()));
                }
            }
            Order::Call(number, call) => {
                let to = &services[call.to];
                let (made, seen) = (caller::make(net.clone(), number, call, to), seen.clone());
                tokio::spawn(async move {
                    let status = made.await;
                    seen.lock().push(Seen::Answered(number, status));
                });
            }
        }
    }
    Ok(())
}

async fn tell(seen: Arc<Mutex<Vec<Seen>>>) {
    loop {
        for seen in std::mem::take(&mut *seen.lock()) {
            let line = serde_json::to_string(&Told { at: unix_millis(), seen }).unwrap_or_default();
            println!("{line}");
        }
        tokio::time::sleep(TELLING).await;
    }
}
