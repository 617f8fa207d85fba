//! Where streams of TLS go by the name that their callers ask for, field for field as the Gateway API's `TLSRoute`
//! (gateway.networking.k8s.io) with services or gateways as its parents. A field that is not listed is refused.

use serde::{Deserialize, Serialize};

use super::http_route::{ParentRef, check_hostnames};
use super::tcp_route::{TcpRoute, TcpRule};
use super::{Faults, Kind, Names, Spec};

/// `spec` of a `TLSRoute`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsRoute {
    /// The services whose streams it is about, and the gateways through which streams come.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// The names that it is for (SNI, RFC 6066); `*.example.com` is any that ends so. None: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// The rules, of which the first counts.
    #[serde(default)]
    pub rules: Vec<TcpRule>,
}

impl TlsRoute {
    /// The same in the words of a `TCPRoute`.
    pub fn to_tcp(&self) -> TcpRoute {
        let (parent_refs, rules) = (self.parent_refs.clone(), self.rules.clone());
        TcpRoute { parent_refs, hostnames: Some(self.hostnames.clone()), rules }
    }
}

impl Spec for TlsRoute {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "TLSRoute",
        group: "gateway.networking.k8s.io",
        versions: &["v1", "v1alpha3", "v1alpha2"],
        plural: "tlsroutes",
        short: &[],
        about: "where streams of TLS to a service go, as the Gateway API has it",
        example: include_str!("tls_route.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        self.to_tcp().check_form(faults);
        check_hostnames(&self.hostnames, faults);
    }

    fn hints(&self) -> Vec<String> {
        self.to_tcp().hints()
    }
}
