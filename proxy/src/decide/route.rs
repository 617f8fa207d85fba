//! From what is asked for to a backend: the service whose policies, identity, links and limits count from here on. A service
//! has one rule, to itself; at the callee's node the link has said who is called, and nothing is routed.

use std::sync::Arc;

use weft_proto::service::ServicePort;

use crate::table::Service;

/// Who is called.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) service: Arc<Service>,
    pub(crate) port: ServicePort,
}

/// The backend of an exchange that asks for a port of a service.
pub(crate) fn route((service, port): (Arc<Service>, ServicePort)) -> Backend {
    Backend { service, port }
}
