//! Assertions as people write them, one sentence each.
//!
//! ```text
//! CALLER may [not] call SERVICE [METHOD] [PATH] [while DOCUMENT | unless DOCUMENT] [at its own node]
//! no call from CALLER [to SERVICE] [METHOD] [PATH] is allowed [while DOCUMENT | unless DOCUMENT] [at its own node]
//! between LOW and HIGH % of calls from CALLER to SERVICE [METHOD] [PATH] are denied [while DOCUMENT | unless DOCUMENT]
//! retries of calls from CALLER to SERVICE [METHOD] [PATH] stay within PERCENT % or COUNT
//! after any one host is lost, PERCENT % of calls [from CALLER to SERVICE] succeed within SECONDS s
//! ```
//!
//! A caller is a service, `outside` for processes of no service, or `strangers` for those who come in at a gateway.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An assertion.
#[derive(Debug, Clone, PartialEq)]
pub struct Assertion {
    /// As it was written.
    pub text: String,
    /// What it says.
    pub claim: Claim,
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What an assertion says.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// These calls are allowed, or denied, as long as the condition holds.
    Calls {
        /// Which.
        calls: Calls,
        /// Whether they are allowed.
        allowed: bool,
        /// The condition.
        when: When,
        /// Whether the caller's node alone decides; else the callee's does too.
        at_caller: bool,
    },
    /// So many of these calls are denied, the others are allowed, as long as the condition holds.
    Share {
        /// Which.
        calls: Calls,
        /// Of a hundred, at least and at most.
        percent: (f64, f64),
        /// The condition.
        when: When,
    },
    /// However many of these calls fail, of those that are open to the service only so many are tried again at a time.
    Retries {
        /// Which; applications fail those for `/failing`.
        calls: Calls,
        /// Of a hundred open calls of the caller on a host.
        percent: f64,
        /// So many at least.
        least: usize,
    },
    /// When a host is lost, so many calls succeed all the same.
    Loss {
        /// Whose calls; none: all that are allowed.
        between: Option<(Caller, usize)>,
        /// Of a hundred.
        percent: f64,
        /// How long a call may take, in milliseconds.
        within: u64,
    },
}

/// Calls of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calls {
    /// Who calls.
    pub from: Caller,
    /// Which service, by its place; none: any.
    pub to: Option<usize>,
    /// With which method; none: any.
    pub method: Option<String>,
    /// For which path; none: any.
    pub path: Option<String>,
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Caller {
    /// A service, by its place.
    Service(usize),
    /// A process of a host that belongs to no service.
    Outside,
    /// Somebody outside the mesh, who comes in at a gateway.
    Stranger,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// None.
    Always,
    /// While that document is in force.
    While(String),
    /// While that document is not there.
    Unless(String),
}

/// The forms that there are.
const FORMS: &str = "an assertion is one of\n  CALLER may [not] call SERVICE [METHOD] [PATH] [while DOCUMENT | unless \
                     DOCUMENT] [at its own node]\n  no call from CALLER [to SERVICE] [METHOD] [PATH] is allowed [while \
                     DOCUMENT | unless DOCUMENT] [at its own node]\n  between LOW and HIGH % of calls from CALLER to SERVICE [METHOD] [PATH] are denied [while DOCUMENT | unless DOCUMENT]\n  retries of calls from CALLER to SERVICE [METHOD] [PATH] stay within PERCENT % or COUNT\n  after any one host is lost, PERCENT % of calls [from CALLER to SERVICE] succeed within SECONDS s";

/// Words that are still to be read.
struct Words<'a> {
    left: Vec<&'a str>,
    services: &'a [String],
}

impl Assertion {
    /// Reads one. `services` are the names of the mesh's services.
    pub fn parse(text: &str, services: &[String]) -> Result<Self, String> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let spaced = text.replace('%', " % ").replace(',', " , ");
        let mut words = Words { left: spaced.split_whitespace().rev().collect(), services };
        let claim = match words.left.last() {
            Some(&"after") => words.loss(),
            Some(&"no") => words.none(),
            Some(&"between") => words.share(),
            Some(&"retries") => words.retries(),
            _ => words.calls(),
        };
        let claim = claim.and_then(|claim| match words.left.pop() {
            None => Ok(claim),
            Some(word) => Err(format!("{word:?} is too much")),
        });
        match claim {
            Ok(claim) => Ok(Self { text, claim }),
            Err(fault) => Err(format!("{text:?}: {fault}; {FORMS}")),
        }
    }
}

impl Words<'_> {
    fn take(&mut self, what: &str) -> Result<String, String> {
        self.left.pop().map(str::to_owned).ok_or_else(|| format!("{what} is missing at its end"))
    }

    fn expect(&mut self, words: &str) -> Result<(), String> {
        for wanted in words.split(' ') {
            let found = self.take(&format!("{wanted:?}"))?;
            if found != wanted {
                return Err(format!("{found:?} stands where {wanted:?} is expected"));
            }
        }
        Ok(())
    }

    fn next_is(&mut self, word: &str) -> bool {
        let is = self.left.last() == Some(&word);
        if is {
            self.left.pop();
        }
        is
    }

    fn service(&mut self) -> Result<usize, String> {
        let name = self.take("a service")?;
        let known = || format!("{name:?} is no service of this mesh; there are: {}", self.services.join(", "));
        self.services.iter().position(|service| *service == name).ok_or_else(known)
    }

    fn caller(&mut self) -> Result<Caller, String> {
        if self.next_is("strangers") {
            return Ok(Caller::Stranger);
        }
        if self.next_is("outside") { Ok(Caller::Outside) } else { self.service().map(Caller::Service) }
    }

    fn method_and_path(&mut self) -> (Option<String>, Option<String>) {
        let is_method = |word: &&str| word.bytes().all(|byte| byte.is_ascii_uppercase());
        let method = self.left.pop_if(|word| is_method(&&**word)).map(str::to_owned);
        let path = self.left.pop_if(|word| word.starts_with('/')).map(str::to_owned);
        (method, path)
    }

    fn condition(&mut self) -> Result<When, String> {
        if self.next_is("while") {
            return Ok(When::While(self.take("a document")?));
        }
        if self.next_is("unless") {
            return Ok(When::Unless(self.take("a document")?));
        }
        Ok(When::Always)
    }

    fn at_caller(&mut self) -> Result<bool, String> {
        let is = self.next_is("at");
        if is {
            self.expect("its own node")?;
        }
        Ok(is)
    }

    fn calls(&mut self) -> Result<Claim, String> {
        let from = self.caller()?;
        self.expect("may")?;
        let allowed = !self.next_is("not");
        self.expect("call")?;
        let to = Some(self.service()?);
        let (method, path) = self.method_and_path();
        let (when, at_caller) = (self.condition()?, self.at_caller()?);
        Ok(Claim::Calls { calls: Calls { from, to, method, path }, allowed, when, at_caller })
    }

    fn none(&mut self) -> Result<Claim, String> {
        self.expect("no call from")?;
        let from = self.caller()?;
        let to = if self.next_is("to") { Some(self.service()?) } else { None };
        let (method, path) = self.method_and_path();
        self.expect("is allowed")?;
        let (when, at_caller) = (self.condition()?, self.at_caller()?);
        Ok(Claim::Calls { calls: Calls { from, to, method, path }, allowed: false, when, at_caller })
    }

    fn percent(&mut self) -> Result<f64, String> {
        let percent = self.take("a number")?.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
        percent.ok_or_else(|| "the percentage is a number from 0 to 100".into())
    }

    fn share(&mut self) -> Result<Claim, String> {
        self.expect("between")?;
        let least = self.percent()?;
        self.expect("and")?;
        let percent = (least, self.percent()?);
        self.expect("% of calls from")?;
        let from = self.caller()?;
        self.expect("to")?;
        let to = Some(self.service()?);
        let (method, path) = self.method_and_path();
        self.expect("are denied")?;
        Ok(Claim::Share { calls: Calls { from, to, method, path }, percent, when: self.condition()? })
    }

    fn retries(&mut self) -> Result<Claim, String> {
        self.expect("retries of calls from")?;
        let from = self.caller()?;
        self.expect("to")?;
        let to = Some(self.service()?);
        let (method, path) = self.method_and_path();
        self.expect("stay within")?;
        let percent = self.percent()?;
        self.expect("% or")?;
        let least = self.take("a number")?.parse().map_err(|_| "how many at least is a whole number")?;
        Ok(Claim::Retries { calls: Calls { from, to, method, path }, percent, least })
    }

    fn loss(&mut self) -> Result<Claim, String> {
        self.expect("after any one host is lost ,")?;
        let percent = self.percent()?;
        self.expect("% of calls")?;
        let between = if self.next_is("from") {
            let from = self.caller()?;
            self.expect("to")?;
            Some((from, self.service()?))
        } else {
            None
        };
        self.expect("succeed within")?;
        let mut time = self.take("a time")?;
        if !time.ends_with('s') {
            time.push_str(&self.take("\"s\" or \"ms\"")?);
        }
        let millis = match time.strip_suffix("ms") {
            Some(number) => number.parse::<f64>().ok(),
            None => {
                time.strip_suffix('s').and_then(|number| number.parse::<f64>().ok()).map(|seconds| seconds * 1000.0)
            }
        };
        let within = millis.filter(|millis| (1.0..=WITHIN_MAX).contains(millis));
        let within = within.ok_or_else(|| format!("{time:?} is no time from 1 ms to 60 s"))?;
        Ok(Claim::Loss { between, percent, within: within as u64 })
    }
}

/// Longest time that calls can be given, in milliseconds.
const WITHIN_MAX: f64 = 60_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Vec<String> {
        ["front", "web", "db"].map(str::to_owned).to_vec()
    }

    #[test]
    fn sentences_say_what_they_say() {
        let all = |from, to| Calls { from, to, method: None, path: None };
        let front = Caller::Service(0);
        for (text, claim) in [
            (
                "front may call web",
                Claim::Calls { calls: all(front, Some(1)), allowed: true, when: When::Always, at_caller: false },
            ),
            (
                "front may  not call web DELETE /a unless open at its own node",
                Claim::Calls {
                    calls: Calls { from: front, to: Some(1), method: Some("DELETE".into()), path: Some("/a".into()) },
                    allowed: false,
                    when: When::Unless("open".into()),
                    at_caller: true,
                },
            ),
            (
                "between 20 and 40 % of calls from front to web /a are denied while open",
                Claim::Share {
                    calls: Calls { path: Some("/a".into()), ..all(front, Some(1)) },
                    percent: (20.0, 40.0),
                    when: When::While("open".into()),
                },
            ),
            (
                "retries of calls from front to web POST /failing stay within 20% or 3",
                Claim::Retries {
                    calls: Calls { method: Some("POST".into()), path: Some("/failing".into()), ..all(front, Some(1)) },
                    percent: 20.0,
                    least: 3,
                },
            ),
            (
                "no call from outside is allowed while closed",
                Claim::Calls {
                    calls: all(Caller::Outside, None),
                    allowed: false,
                    when: When::While("closed".into()),
                    at_caller: false,
                },
            ),
            (
                "strangers may call web",
                Claim::Calls {
                    calls: all(Caller::Stranger, Some(1)),
                    allowed: true,
                    when: When::Always,
                    at_caller: false,
                },
            ),
            (
                "no call from outside to db is allowed",
                Claim::Calls {
                    calls: all(Caller::Outside, Some(2)),
                    allowed: false,
                    when: When::Always,
                    at_caller: false,
                },
            ),
            (
                "after any one host is lost, 99.5% of calls succeed within 2 s",
                Claim::Loss { between: None, percent: 99.5, within: 2000 },
            ),
            (
                "after any one host is lost, 99 % of calls from front to db succeed within 500ms",
                Claim::Loss { between: Some((front, 2)), percent: 99.0, within: 500 },
            ),
        ] {
            let read = Assertion::parse(text, &services()).expect(text);
            assert_eq!(read.claim, claim, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, why) in [
            ("front may call shop", "\"shop\" is no service of this mesh; there are: front, web, db"),
            ("front must call web", "\"must\" stands where \"may\" is expected"),
            ("front may call web while", "a document is missing at its end"),
            ("front may call web or db", "\"or\" is too much"),
            ("after any one host is lost, 101 % of calls succeed within 2 s", "a number from 0 to 100"),
            ("after any one host is lost, 99 % of calls succeed within 2 h", "\"2h\" is no time from 1 ms to 60 s"),
            ("", "a service is missing at its end"),
        ] {
            let fault = Assertion::parse(text, &services()).expect_err(text);
            assert!(fault.contains(why), "{text}: {fault}");
            assert!(fault.contains("an assertion is one of"), "{fault}");
        }
    }
}
