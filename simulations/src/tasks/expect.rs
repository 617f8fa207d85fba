//! Whether what came is what a check expects. What this cannot judge is said, and never taken for granted.

use serde_json::{Map, Value};

use super::application::{Seen, Variation};
use super::ask::Came;
use super::logs;
use super::miss::{Miss, matches, texts};

/// What came of a check's calls.
pub(super) struct Outcome<'a> {
    pub(super) came: &'a [Came],
    pub(super) seen: &'a [Seen],
    /// Who runs at an address.
    pub(super) at: &'a dyn Fn(&str) -> Vec<String>,
    /// The access records of whom that name means.
    pub(super) records: &'a dyn Fn(&str) -> Vec<Value>,
}

/// Reads `v2 answers 500 after 3 s`.
pub(super) fn variation(text: &str) -> Result<(String, Variation), Miss> {
    let unknown = || Miss::Unknown(format!("the variation {text:?}"));
    if text.ends_with("asks for client certificates") {
        return Ok((String::new(), Variation { asks: true, ..Variation::default() }));
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let [version, "answers", status, "after", seconds, "s"] = words[..] else { return Err(unknown()) };
    let status = status.parse().map_err(|_| unknown())?;
    let seconds: u64 = seconds.parse().map_err(|_| unknown())?;
    Ok((version.to_owned(), Variation { status, milliseconds: seconds * 1000, asks: false }))
}

/// Holds what came against all that is expected.
pub(super) fn judge(expected: &Map<String, Value>, outcome: &Outcome<'_>) -> Result<(), Miss> {
    expected.iter().try_for_each(|(key, wanted)| match key.as_str() {
        "status" => every(outcome, |came| came.status == number(wanted), "status", wanted),
        "status_any" => every(outcome, |came| contains(wanted, came.status), "status", wanted),
        "status_not" => every(outcome, |came| !contains(wanted, came.status), "status", wanted),
        "status_sequence" => sequence(outcome, wanted),
        "statuses" => statuses(outcome, wanted, expected.get("others")),
        "others" => Ok(()),
        "latency_ms" => every(outcome, |came| within(wanted, came.milliseconds), "milliseconds", wanted),
        "refused_latency_ms" => {
            every(outcome, |came| came.status != 503 || within(wanted, came.milliseconds), "milliseconds", wanted)
        }
        "body_contains" => every(outcome, |came| texts(wanted).all(|text| came.body.contains(text)), "body", wanted),
        "body_contains_each" => {
            let each = wanted.as_array().into_iter().flatten().filter_map(Value::as_str);
            let missing = outcome.came.iter().zip(each).find(|(came, text)| !came.body.contains(text));
            missing.map_or(Ok(()), |(came, text)| Err(Miss::Failed(format!("{text:?} is not in {:?}", came.body))))
        }
        "body_lacks" => every(outcome, |came| !texts(wanted).any(|text| came.body.contains(text)), "body", wanted),
        "body_equals" => every(outcome, |came| Some(came.body.trim_end()) == wanted.as_str(), "body", wanted),
        "headers" => headers(outcome, wanted),
        "json" => json(outcome, wanted),
        "answered_only_by" => only_by(outcome, wanted),
        "shares" => shares(outcome, wanted, true),
        "shares_not" => shares(outcome, wanted, false),
        "not_called" => {
            let called = texts(wanted).find(|name| outcome.seen.iter().any(|seen| seen.service == *name));
            called.map_or(Ok(()), |name| Err(Miss::Failed(format!("{name} was called"))))
        }
        "backend_saw" => match wanted {
            Value::Array(all) => all.iter().try_for_each(|one| saw(outcome, one)),
            one => saw(outcome, one),
        },
        "tcp" => tcp(outcome, wanted),
        "fails" => every(outcome, |came| fails(wanted, came), "end", wanted),
        "fails_or_status" => every(outcome, |came| came.status == 0 || contains(wanted, came.status), "end", wanted),
        "protocol" => every(outcome, |came| speaks(wanted, came), "protocol", wanted),
        "tls" => tls(outcome, wanted),
        "log" => {
            let of = wanted.get("of").and_then(Value::as_str).unwrap_or_default();
            logs::hold(&(outcome.records)(of), wanted)
        }
        other => Err(Miss::Unknown(format!("expect.{other}"))),
    })
}

fn every(outcome: &Outcome<'_>, holds: impl Fn(&Came) -> bool, what: &str, wanted: &Value) -> Result<(), Miss> {
    let wrong = outcome.came.iter().filter(|came| !holds(came)).count();
    let first = outcome.came.iter().find(|came| !holds(came));
    let Some(first) = first else { return Ok(()) };
    let body: String = first.body.chars().take(100).collect();
    let told = match &first.secured {
        Some(secured) => format!("{} after {} ms, curl {}: {body:?}", first.status, first.milliseconds, secured.exit),
        None => format!("{} after {} ms: {body:?}", first.status, first.milliseconds),
    };
    let told = if first.error.is_empty() { told } else { format!("{told}, {}", first.error) };
    let count = outcome.came.len();
    Err(Miss::Failed(format!("{wrong} of {count} have another {what} than {wanted}, the first one: {told}")))
}

fn number(value: &Value) -> u16 {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).unwrap_or(u16::MAX)
}

fn contains(list: &Value, status: u16) -> bool {
    list.as_array().map_or(number(list) == status, |all| all.iter().any(|one| number(one) == status))
}

/// Whether a number is as `equals`, `min` and `max` say.
fn within(bounds: &Value, number: u64) -> bool {
    let bound = |name: &str| bounds.get(name).and_then(Value::as_u64);
    bounds.as_u64().is_none_or(|exactly| number == exactly)
        && bound("equals").is_none_or(|exactly| number == exactly)
        && bound("min").is_none_or(|least| number >= least)
        && bound("max").is_none_or(|most| number <= most)
}

fn sequence(outcome: &Outcome<'_>, wanted: &Value) -> Result<(), Miss> {
    let came: Vec<u16> = outcome.came.iter().map(|came| came.status).collect();
    let expected: Vec<u16> = wanted.as_array().into_iter().flatten().map(number).collect();
    if came == expected { Ok(()) } else { Err(Miss::Failed(format!("{came:?} came, not {expected:?}"))) }
}

fn statuses(outcome: &Outcome<'_>, wanted: &Value, others: Option<&Value>) -> Result<(), Miss> {
    let count = |status: u16| outcome.came.iter().filter(|came| came.status == status).count() as u64;
    let named: Vec<(u16, &Value)> = wanted
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(status, bounds)| Some((status.parse().ok()?, bounds)))
        .collect();
    for (status, bounds) in &named {
        if !within(bounds, count(*status)) {
            let text = format!("{} answers of {status}, not {bounds}", count(*status));
            return Err(Miss::Failed(text));
        }
    }
    let rest = outcome.came.iter().filter(|came| named.iter().all(|(status, _)| *status != came.status)).count() as u64;
    match others.filter(|others| !within(others, rest)) {
        Some(others) => Err(Miss::Failed(format!("{rest} answers of other statuses, not {others}"))),
        None => Ok(()),
    }
}

fn headers(outcome: &Outcome<'_>, wanted: &Value) -> Result<(), Miss> {
    for (name, wanted) in wanted.as_object().into_iter().flatten() {
        let holds = |came: &Came| matches(wanted, field(&came.fields, name).as_deref());
        if operator(wanted).is_none() {
            return Err(Miss::Unknown(format!("expect.headers.{name}")));
        }
        every(outcome, holds, name, wanted)?;
    }
    Ok(())
}

/// Whether bodies have values at places (RFC 6901); an echo lists the values of a field, whose name is in whatever case.
fn json(outcome: &Outcome<'_>, wanted: &Value) -> Result<(), Miss> {
    for (pointer, wanted) in wanted.as_object().into_iter().flatten() {
        let holds = |came: &Came| {
            let body: Value = serde_json::from_str(&came.body).unwrap_or_default();
            let found = pointer.split('/').skip(1).try_fold(&body, |within, name| {
                let mut fields = within.as_object()?.iter();
                fields.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
            });
            let text = found.map(|found| found.get(0).unwrap_or(found)).and_then(Value::as_str);
            matches(wanted, text)
        };
        every(outcome, holds, pointer, wanted)?;
    }
    Ok(())
}

/// The value of a field; of several of a name the list of all (RFC 9110, 5.3).
fn field(fields: &[(String, String)], name: &str) -> Option<String> {
    let named = fields.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.clone()).reduce(|all, value| format!("{all},{value}"))
}

/// Which way a value is compared.
fn operator(wanted: &Value) -> Option<&str> {
    match wanted {
        Value::String(_) | Value::Number(_) => Some("equals"),
        Value::Object(fields) => {
            let known = ["equals", "one_of", "any_of", "absent", "contains", "matches"];
            known.into_iter().find(|name| fields.contains_key(*name))
        }
        _ => None,
    }
}

fn is_of(seen: &Seen, wanted: &Value) -> bool {
    let said = |name: &str| wanted.get(name).and_then(Value::as_str);
    said("namespace").is_none_or(|namespace| namespace == seen.namespace)
        && said("service")
            .is_none_or(|service| service == seen.service || service.split('.').next() == Some(&*seen.service))
        && said("version").is_none_or(|version| seen.version == version)
}

fn only_by(outcome: &Outcome<'_>, wanted: &Value) -> Result<(), Miss> {
    let service = wanted.get("service").and_then(Value::as_str).unwrap_or_default();
    let mut others = outcome.seen.iter().filter(|seen| seen.service == service && !is_of(seen, wanted));
    match others.next() {
        // A copy is no answer: what others saw counts only where somebody waited for it.
        Some(other) if outcome.seen.iter().filter(|seen| is_of(seen, wanted)).count() < outcome.came.len() => {
            Err(Miss::Failed(format!("{} {} was called", other.service, other.version)))
        }
        _ if !outcome.seen.iter().any(|seen| is_of(seen, wanted)) => {
            Err(Miss::Failed(format!("{wanted} was not called")))
        }
        _ => Ok(()),
    }
}

fn shares(outcome: &Outcome<'_>, wanted: &Value, holds: bool) -> Result<(), Miss> {
    for one in wanted.as_array().into_iter().flatten() {
        let name = one.get("service").and_then(Value::as_str).unwrap_or_default();
        let all = outcome.seen.iter().filter(|seen| seen.service == name).count();
        let part = outcome.seen.iter().filter(|seen| is_of(seen, one)).count();
        #[expect(clippy::cast_precision_loss, reason = "numbers of calls")]
        let share = part as f64 / all.max(1) as f64;
        let said = |field: &str| one.get(field).and_then(Value::as_f64).unwrap_or(0.0);
        if ((share - said("share")).abs() <= said("tolerance") + 1e-9) != holds {
            return Err(Miss::Failed(format!("{one} has a share of {share:.3} of {all}")));
        }
    }
    Ok(())
}

fn saw(outcome: &Outcome<'_>, wanted: &Value) -> Result<(), Miss> {
    let mine: Vec<&Seen> = outcome.seen.iter().filter(|seen| is_of(seen, wanted)).collect();
    let path = wanted.get("path");
    let mine: Vec<&Seen> =
        mine.into_iter().filter(|seen| path.is_none_or(|path| matches(path, Some(&seen.path)))).collect();
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        let all = |value: fn(&Seen) -> &str| mine.iter().all(|seen| matches(wanted, Some(value(seen))));
        let holds =
            match key.as_str() {
                "service" | "namespace" | "version" | "path" => true,
                "headers_absent" => {
                    let none = |seen: &&Seen| texts(wanted).all(|name| field(&seen.fields, name).is_none());
                    !mine.is_empty() && mine.iter().all(none)
                }
                "requests" => within(wanted, mine.len() as u64),
                "method" => all(|seen| &seen.method),
                "host" => all(|seen| &seen.host),
                "body" => all(|seen| &seen.body),
                "port" => mine.iter().all(|seen| Some(u64::from(seen.connection.port)) == wanted.as_u64()),
                "tls" => mine.iter().all(|seen| Some(seen.connection.sni.is_some()) == wanted.as_bool()),
                "sni" => mine.iter().all(|seen| matches(wanted, seen.connection.sni.as_deref())),
                "client_cert_subject_contains" => mine.iter().all(|seen| {
                    let names = seen.connection.certificate.as_deref().unwrap_or_default();
                    texts(wanted).all(|text| names.contains(text))
                }),
                "from" => {
                    let is = |seen: &&Seen| {
                        texts(wanted).all(|name| (outcome.at)(&seen.connection.peer).contains(&name.to_owned()))
                    };
                    !mine.is_empty() && mine.iter().all(is)
                }
                "connections" => within(wanted, mine.iter().filter(|seen| seen.nth == 1).count() as u64),
                "max_in_flight" => {
                    mine.iter().map(|seen| seen.in_flight).max().unwrap_or(0) as u64 <= wanted.as_u64().unwrap_or(0)
                }
                "requests_per_connection_max" => {
                    mine.iter().map(|seen| seen.nth).max().unwrap_or(0) as u64 <= wanted.as_u64().unwrap_or(0)
                }
                "headers" => wanted.as_object().into_iter().flatten().all(|(name, wanted)| {
                    mine.iter().all(|seen| matches(wanted, field(&seen.fields, name).as_deref()))
                }),
                other => return Err(Miss::Unknown(format!("expect.backend_saw.{other}"))),
            };
        if !holds {
            let first = mine.first().map(|seen| format!("{} {} at {}", seen.method, seen.path, seen.host));
            let text = format!("{key} is not {wanted}: {} requests, the first one: {first:?}", mine.len());
            return Err(Miss::Failed(text));
        }
    }
    Ok(())
}

/// Whether a call has failed as it should.
fn fails(wanted: &Value, came: &Came) -> bool {
    let exits = wanted.get("curl_exit").and_then(Value::as_array);
    let exit = came.secured.as_ref().map(|secured| i64::from(secured.exit));
    match (exits, exit) {
        (Some(exits), Some(exit)) => exits.iter().any(|one| match one.as_i64() {
            // Where a handshake would end a tunnel is refused already.
            Some(HANDSHAKE) => exit == HANDSHAKE || exit == TUNNEL,
            one => one == Some(exit),
        }),
        _ => came.status == 0,
    }
}

fn speaks(wanted: &Value, came: &Came) -> bool {
    let version = came.secured.as_ref().map(|secured| secured.version.as_str());
    version == wanted.as_str().map(|text| text.trim_start_matches('h'))
}

/// What a handshake has shown.
fn tls(outcome: &Outcome<'_>, wanted: &Value) -> Result<(), Miss> {
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        let text = wanted.as_str().unwrap_or_default();
        let holds = |secured: &super::ask::Secured| match key.as_str() {
            "verify" => (secured.exit == 0) == (text == "ok"),
            "peer_subject_contains" => {
                secured.told.lines().any(|line| line.contains("subject:") && line.contains(text))
            }
            "client_certificate_requested" => secured.told.contains("Request CERT") == (wanted.as_bool() == Some(true)),
            _ => false,
        };
        if !["verify", "peer_subject_contains", "client_certificate_requested"].contains(&key.as_str()) {
            return Err(Miss::Unknown(format!("expect.tls.{key}")));
        }
        every(outcome, |came| came.secured.as_ref().is_some_and(holds), key, wanted)?;
    }
    Ok(())
}

fn tcp(outcome: &Outcome<'_>, wanted: &Value) -> Result<(), Miss> {
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        let prefix = |reply: &String| reply.split(' ').next().map(str::to_owned);
        let holds = |came: &Came| match key.as_str() {
            "connects" => came.replies.is_empty() != (wanted.as_bool() == Some(true)),
            "reply_starts" => texts(wanted).any(|text| came.replies.iter().all(|reply| reply.starts_with(text))),
            "reply" => came.replies.is_empty(),
            "same_prefix_within_connection" => came.replies.windows(2).all(|two| prefix(&two[0]) == prefix(&two[1])),
            _ => false,
        };
        if !["connects", "reply_starts", "reply", "same_prefix_within_connection"].contains(&key.as_str()) {
            return Err(Miss::Unknown(format!("expect.tcp.{key}")));
        }
        if let Some(wrong) = outcome.came.iter().find(|came| !holds(came)) {
            return Err(Miss::Failed(format!("{key} is not {wanted}: {:?}", wrong.replies)));
        }
    }
    Ok(())
}

/// What curl ends with where the handshake of TLS has failed.
const HANDSHAKE: i64 = 35;
/// What curl ends with where a proxy has made no tunnel.
const TUNNEL: i64 = 56;
