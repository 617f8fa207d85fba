//! Step 4: from a rule to a backend. A service has one rule to itself: its own port.

use std::sync::Arc;

use weft_proto::service::{Protocol, ServicePort};

use crate::authorize::Permit;
use crate::identify::Relation;
use crate::table::Settings;

/// Where an exchange goes, and under which settings.
#[derive(Debug)]
pub(crate) struct Route {
    permit: Permit,
}

/// The route of a permitted exchange.
pub(crate) fn choose(permit: Permit) -> Route {
    Route { permit }
}

impl Route {
    pub(crate) fn permit(&self) -> &Permit {
        &self.permit
    }

    pub(crate) fn relation(&self) -> &Arc<Relation> {
        self.permit.relation()
    }

    pub(crate) fn port(&self) -> ServicePort {
        self.relation().port
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.relation().service.settings
    }

    /// Whether refusals are told in gRPC's way whatever the request says of itself.
    pub(crate) fn is_grpc(&self) -> bool {
        self.port().protocol == Protocol::Grpc
    }
}
