//! Rules, and whether a call matches them.

use std::net::IpAddr;

use http::header::HeaderName;

use super::pattern::{Blocks, Paths, Texts};
use super::{Call, PolicyId};

/// Which way a rule errs where it cannot be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lean {
    /// Towards matching: DENY and AUDIT.
    Match,
    /// Away from matching: ALLOW.
    Miss,
}

/// Matches if one group of `from`, one of `to` and every one of `when` do; an empty list matches all.
#[derive(Debug)]
pub(super) struct Rule {
    id: PolicyId,
    from: Vec<Group>,
    to: Vec<Group>,
    when: Vec<Group>,
    needs_http: bool,
}

/// Checks that must all hold: one `source`, one `operation` or one condition.
pub(super) type Group = Vec<Check>;

/// One field of a rule.
#[derive(Debug)]
pub(super) struct Check {
    /// Its name in the document.
    pub(super) field: &'static str,
    /// Whether it holds when the test does not: `notPaths`, `notValues`.
    pub(super) negated: bool,
    pub(super) test: Test,
}

/// The attribute that a check looks at, and what it accepts.
#[derive(Debug)]
pub(super) enum Test {
    Principal(Texts),
    Namespace(Texts),
    SourceIp(Blocks),
    RemoteIp(Blocks),
    DestinationIp(Blocks),
    /// Sorted.
    DestinationPort(Vec<u16>),
    Sni(Texts),
    Host(Texts),
    Method(Texts),
    Path(Paths),
    Header(HeaderName, Texts),
}

/// Why a rule does not match: the first part that ruled it out, every group of it.
pub(super) enum Miss<'r> {
    /// It belongs to an ALLOW policy, needs HTTP, and the call is an opaque stream.
    NeedsHttp,
    /// A check does not hold.
    Check { part: &'static str, entry: usize, check: &'r Check },
}

impl Rule {
    pub(super) fn new(id: PolicyId, from: Vec<Group>, to: Vec<Group>, when: Vec<Group>) -> Self {
        let needs_http = [&from, &to, &when].into_iter().flatten().flatten().any(|check| check.test.needs_http());
        Self { id, from, to, when, needs_http }
    }

    pub(super) fn id(&self) -> &PolicyId {
        &self.id
    }

    pub(super) fn needs_http(&self) -> bool {
        self.needs_http
    }

    /// Whether the call matches. `observe` hears of everything that spoke against it; deciding passes one that does
    /// nothing, explaining one that collects, so that both run the same code.
    pub(super) fn matches<'r>(&'r self, call: &Call<'_>, lean: Lean, mut observe: impl FnMut(Miss<'r>)) -> bool {
        if self.needs_http && call.http.is_none() && lean == Lean::Miss {
            observe(Miss::NeedsHttp);
            return false;
        }
        let mut holds = |part, (entry, group): (usize, &'r Group)| {
            let failed = group.iter().find(|check| !check.holds(call, lean));
            if let Some(check) = failed {
                observe(Miss::Check { part, entry, check });
            }
            failed.is_none()
        };
        (self.from.is_empty() || self.from.iter().enumerate().any(|group| holds("from", group)))
            && (self.to.is_empty() || self.to.iter().enumerate().any(|group| holds("to", group)))
            && self.when.iter().enumerate().all(|group| holds("when", group))
    }
}

impl Check {
    fn holds(&self, call: &Call<'_>, lean: Lean) -> bool {
        let unknown = lean == Lean::Match;
        let found = match &self.test {
            Test::Principal(texts) => call.caller.is_some_and(|caller| texts.contain(caller.principal())),
            Test::Namespace(texts) => {
                call.caller.and_then(|caller| caller.namespace()).is_some_and(|namespace| texts.contain(namespace))
            }
            Test::SourceIp(blocks) => blocks.contain(call.source_ip),
            Test::RemoteIp(blocks) => blocks.contain(call.remote_ip),
            Test::DestinationIp(blocks) => blocks.contain(call.destination_ip),
            Test::DestinationPort(ports) => ports.binary_search(&call.destination_port).is_ok(),
            Test::Sni(texts) => call.sni.is_some_and(|name| texts.contain(name)),
            Test::Host(texts) => match call.http {
                Some(http) => texts.contain(http.host),
                None => return unknown,
            },
            Test::Method(texts) => match call.http {
                Some(http) => texts.contain(http.method),
                None => return unknown,
            },
            Test::Path(paths) => match call.http {
                Some(http) => paths.contain(http.path),
                None => return unknown,
            },
            Test::Header(name, texts) => match call.http {
                // Leaning to a match wants any line found, or, negated, any line not found; leaning away wants all.
                Some(http) => header(http.headers, name, texts, unknown != self.negated),
                None => return unknown,
            },
        };
        found != self.negated
    }
}

/// Whether any line of the header is among the texts, or else whether every line is and there is one.
fn header(headers: &http::HeaderMap, name: &HeaderName, texts: &Texts, any: bool) -> bool {
    let mut lines = headers.get_all(name).iter().map(|line| texts.contain_bytes(line.as_bytes())).peekable();
    if any { lines.any(|found| found) } else { lines.peek().is_some() && lines.all(|found| found) }
}

impl Test {
    pub(super) fn needs_http(&self) -> bool {
        matches!(self, Self::Host(_) | Self::Method(_) | Self::Path(_) | Self::Header(..))
    }

    /// What the call has where the test looks, for people.
    pub(super) fn actual(&self, call: &Call<'_>) -> String {
        let quoted = |what: &str, value: Option<&str>| match value {
            Some(value) => format!("{what} is {value:?}"),
            None => format!("{what} is absent"),
        };
        let address = |what: &str, ip: IpAddr| format!("{what} is {}", ip.to_canonical());
        match self {
            Self::Principal(_) => quoted("the caller", call.caller.map(super::Caller::principal)),
            Self::Namespace(_) => quoted("the caller's namespace", call.caller.and_then(super::Caller::namespace)),
            Self::SourceIp(_) => address("the source address", call.source_ip),
            Self::RemoteIp(_) => address("the remote address", call.remote_ip),
            Self::DestinationIp(_) => address("the destination address", call.destination_ip),
            Self::DestinationPort(_) => format!("the port is {}", call.destination_port),
            Self::Sni(_) => quoted("the TLS server name", call.sni),
            Self::Host(_) => quoted("the host", call.http.map(|http| http.host)),
            Self::Method(_) => quoted("the method", call.http.map(|http| http.method)),
            Self::Path(_) => quoted("the path", call.http.map(|http| http.path)),
            // Its value may be a secret, and explanations are shown and kept.
            Self::Header(name, _) => {
                let lines = call.http.map_or(0, |http| http.headers.get_all(name).iter().count());
                format!("the header {name} has {lines} lines")
            }
        }
    }
}
