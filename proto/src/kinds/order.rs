//! Orders of certificates that are under way or have failed: written by the mesh, one for a `Certificate`, of its name, so that
//! any gateway can prove what is asked, and whoever leads next goes on where the last one was.

use serde::{Deserialize, Serialize};

use super::issuer::ChallengeType;
use super::{Faults, Kind, Names, Spec};
use crate::{Index, UnixMillis};

/// What an `Order` says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// The version of the `Certificate` that it is for.
    pub certificate: Index,
    /// The version of its issuer; 0 where there was none.
    #[serde(default)]
    pub issuer: Index,
    /// How it stands.
    pub state: OrderState,
    /// Why it has failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How often in a row it has failed.
    #[serde(default)]
    pub failures: u32,
    /// When it was tried last, in milliseconds since 1970.
    pub tried: UnixMillis,
    /// What is to be proved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub challenges: Vec<Challenge>,
}

/// How an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OrderState {
    /// It is under way.
    #[default]
    Pending,
    /// It has failed, and is tried again later.
    Errored,
}

/// What proves that a name is ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Challenge {
    /// How.
    pub r#type: ChallengeType,
    /// The name.
    pub dns_name: String,
    /// What the server asks by (RFC 8555, 8.3).
    pub token: String,
    /// What it is to be told (RFC 8555, 8.1).
    pub key: String,
}

impl Order {
    /// When it is tried again: at once while it has not failed.
    pub fn next(&self) -> UnixMillis {
        match self.failures {
            0 => 0,
            failures => self.tried + (FIRST_WAIT_MS << (failures - 1).min(DOUBLINGS_MAX)),
        }
    }
}

impl Spec for Order {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "Order",
        group: "acme.cert-manager.io",
        versions: &["v1"],
        plural: "orders",
        short: &[],
        about: "an order of a certificate that is under way or has failed; the mesh writes it",
        example: include_str!("order.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        for (at, one) in self.challenges.iter().enumerate() {
            let letters = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if one.token.is_empty() || !letters(&one.token) || !letters(&one.key) {
                let text = "a token and a key authorization are of base64url (RFC 8555, 8.1)";
                faults.push((format!("spec.challenges[{at}]"), text.into()));
            }
        }
    }
}

/// How long the first failure is waited out, which doubles with each: of five an hour that servers take for a name (Let's Encrypt)
/// that leaves one.
const FIRST_WAIT_MS: u64 = 2 * 60 * 1000;
/// With so many it is not doubled again: about 8 hours and a half.
const DOUBLINGS_MAX: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_ever_more_rarely() {
        let next = |failures| Order { failures, tried: 1, ..Order::default() }.next();
        assert_eq!([next(0), next(1), next(2), next(5)], [0, 120_001, 240_001, 1_920_001]);
        assert_eq!(next(9), next(u32::MAX));
        // What an hour sees.
        let (mut at, mut tries) = (1, 0);
        while at < 3_600_000 {
            tries += 1;
            at = Order { failures: tries, tried: at, ..Order::default() }.next();
        }
        assert_eq!(tries, 5);
    }
}
