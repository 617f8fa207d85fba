//! An instance that is about to stop: it is given no more calls, and answers those that it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_proto::service::{InstanceId, InstanceName, ServiceName};

use super::operations::{Answered, Failure};
use super::schema::Drained;
use crate::node::Node;
use crate::world::World;

/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// How long others may take to hear that it is given no more calls: what they send until then is answered.
const HEARD: Duration = Duration::from_millis(500);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(20);

impl<W: World> Node<W> {
    /// `POST /v1/services/{namespace}/{name}/drain?instance=&timeout_ms=`
    pub async fn api_drain(&self, name: &str, query: &BTreeMap<String, String>) -> Answered<Drained> {
        let service: ServiceName = name.parse().map_err(|error| Failure::bad(format!("{error}")))?;
        let only = query.get("instance").map(|name| name.parse::<InstanceName>()).transpose();
        let only = only.map_err(|error| Failure::bad(format!("{error}")))?;
        let bound = query.get("timeout_ms").and_then(|text| text.parse().ok()).map_or(WAIT_MAX, Duration::from_millis);
        let meant = |id: &&InstanceId| id.service == service && only.as_ref().is_none_or(|only| *only == id.name);
        let instances: Vec<InstanceId> = self.local.borrow().instances.keys().filter(meant).cloned().collect();
        if instances.is_empty() {
            let instance = only.map(|name| format!("instance {name} of ")).unwrap_or_default();
            return Err(Failure::not_found(format!("this host runs no {instance}service {service}")));
        }
        self.local.send_modify(|current| Arc::make_mut(current).draining.extend(instances.iter().cloned()));
        let began = Instant::now();
        let deadline = began + bound.min(WAIT_MAX);
        let open = || instances.iter().map(|id| self.plane.served_by(id)).sum::<usize>();
        while (open() > 0 || began.elapsed() < HEARD) && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        Ok(Drained { instances: instances.iter().map(ToString::to_string).collect(), open: open() })
    }
}
