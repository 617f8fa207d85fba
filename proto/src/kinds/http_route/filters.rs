//! What rules of the Gateway API's routes do to calls.

use serde::{Deserialize, Serialize};

use super::service_kind;

/// What is done to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum Filter {
    /// Changes header fields of the request.
    #[serde(rename_all = "camelCase")]
    RequestHeaderModifier {
        /// What is changed.
        request_header_modifier: HeaderModifier,
    },
    /// Changes header fields of the answer.
    #[serde(rename_all = "camelCase")]
    ResponseHeaderModifier {
        /// What is changed.
        response_header_modifier: HeaderModifier,
    },
    /// Answers with another place.
    #[serde(rename_all = "camelCase")]
    RequestRedirect {
        /// Where to.
        request_redirect: RequestRedirect,
    },
    /// Changes path or host.
    #[serde(rename = "URLRewrite", rename_all = "camelCase")]
    UrlRewrite {
        /// What is changed.
        url_rewrite: UrlRewrite,
    },
    /// Sends a copy, whose answer nobody gets.
    #[serde(rename_all = "camelCase")]
    RequestMirror {
        /// Where to.
        request_mirror: RequestMirror,
    },
    /// Says which origins may share the answers.
    #[serde(rename = "CORS", rename_all = "camelCase")]
    Cors {
        /// Which.
        cors: Cors,
    },
}

/// Where a copy of a call goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// The service.
    pub backend_ref: MirrorRef,
    /// How many calls are copied, in percent. Unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// How many calls are copied, as a fraction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// Where copies go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MirrorRef {
    /// Empty or `core`: that of `Service`; `networking.istio.io`: that of `Hostname`.
    #[serde(default)]
    pub group: String,
    /// `Service`, or `Hostname` for a host by its whole name.
    #[serde(default = "service_kind")]
    pub kind: String,
    /// The service, or the host.
    pub name: String,
    /// The namespace of a service. Unset: that of the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<std::num::NonZeroU16>,
}

/// A part of a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fraction {
    /// The part.
    pub numerator: u32,
    /// The whole. Unset: 100.
    #[serde(default = "hundred")]
    pub denominator: u32,
}

/// Which origins may share answers (the Fetch standard, 3.2).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cors {
    /// Origins: `https://example.org`, `https://*.example.org`, `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_origins: Vec<String>,
    /// Whether credentials may go with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<bool>,
    /// Methods; `*` is any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_methods: Vec<String>,
    /// Header fields of requests; `*` is any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_headers: Vec<String>,
    /// Header fields of answers that scripts may read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose_headers: Vec<String>,
    /// How long the answer to a preflight holds, in seconds. Unset: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<u32>,
}

/// Changes of header fields: overwritten, added, removed, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderModifier {
    /// In the place of all values there are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<NamedValue>,
    /// Beside the values there are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<NamedValue>,
    /// Gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// A header field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedValue {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Another place: what is not said is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestRedirect {
    /// `http` or `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// The port; unset: that of the scheme where one is given, else the one that was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<std::num::NonZeroU16>,
    /// 301, 302, 303, 307 or 308. Unset: 302.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
}

/// Another path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum PathModifier {
    /// In the place of the whole.
    #[serde(rename_all = "camelCase")]
    ReplaceFullPath {
        /// The path.
        replace_full_path: String,
    },
    /// In the place of the prefix that matched.
    #[serde(rename_all = "camelCase")]
    ReplacePrefixMatch {
        /// The prefix.
        replace_prefix_match: String,
    },
}

/// Another path or host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlRewrite {
    /// In the place of the Host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

fn hundred() -> u32 {
    100
}
