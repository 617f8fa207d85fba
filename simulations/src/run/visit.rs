//! In the end a visitor knocks: with a good line it is let in, with a bad one it is not.

use weft::config::Start;
use weft::join::{read_line, write_line};

use super::{Run, STEP};
use crate::host::{Host, Stage};
use crate::invariants::Breach;
use crate::trace::Kind;

/// How long an answer may take, of the mesh to an operator and to who knocks.
const ANSWER: u64 = 30_000;

/// What becomes of a token before the visitor shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Good,
    Used,
    Revoked,
    Expired,
    Guessed,
}

impl Run {
    /// Joins with a good token for one node, then as another one with that token, and with others that are no good.
    pub(super) fn visit(&mut self) -> Result<(), Breach> {
        let mut visitor = Host::new(&self.network, self.hosts.len(), self.setup.seed, &self.setup.mesh, false);
        for token in [Token::Good, Token::Used, Token::Revoked, Token::Expired, Token::Guessed] {
            let line = self.line_for(token)?;
            let entered = self.knock(&mut visitor, line)?;
            let text = format!("a node with a token that is {token:?}: {}", if entered { "in" } else { "out" });
            self.trace.add(self.network.now(), None, Kind::Node, text.to_lowercase());
            if entered != (token == Token::Good) {
                return Err(Breach { invariant: "joining takes a good token", text });
            }
            visitor.kill(false);
            visitor.wipe(&self.network, self.setup.seed);
        }
        Ok(())
    }

    fn line_for(&mut self, token: Token) -> Result<String, Breach> {
        if token == Token::Used {
            return Ok(self.token.clone().unwrap_or_default().0);
        }
        self.token = None;
        let lifetime = if token == Token::Expired { 1 } else { 3600 };
        let services = vec![self.setup.mesh.services[0].name.clone()];
        self.ask_for_token(0, (services, lifetime, 1));
        let deadline = self.network.now() + ANSWER;
        while self.token.is_none() && self.network.now() < deadline {
            self.step()?;
        }
        let Some((line, id)) = self.token.clone() else {
            return Err(Breach { invariant: "a whole mesh serves", text: "no token was made".into() });
        };
        match token {
            Token::Revoked => self.revoke(id),
            Token::Guessed => return Ok(guess(&line)),
            _ => {}
        }
        // Long enough for a token of a second to end, and for a revocation to be everywhere.
        if token != Token::Good {
            self.pass(5_000)?;
        }
        Ok(line)
    }

    fn revoke(&self, id: String) {
        let Some(node) = self.hosts[0].node() else { return };
        self.hosts[0].spawn(async move {
            let _ = node.api_revoke_token(&id).await;
        });
    }

    /// Whether the visitor is let in with that line.
    fn knock(&mut self, visitor: &mut Host, line: String) -> Result<bool, Breach> {
        visitor.start(Start::Join { line });
        let deadline = self.network.now() + ANSWER;
        while self.network.now() < deadline {
            self.step()?;
            visitor.tick(self.network.now(), STEP);
            match visitor.stage() {
                Stage::Running(_) => return Ok(true),
                Stage::Refused(_) => return Ok(false),
                Stage::Down | Stage::Starting => {}
            }
        }
        Ok(false)
    }
}

/// The same line with another secret.
fn guess(line: &str) -> String {
    let mut line = read_line(line).expect("a line that the mesh has made");
    line.token_secret = line.token_secret.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>().into();
    write_line(&line)
}
