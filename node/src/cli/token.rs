//! `weft token`: making, listing and revoking what hosts join with.

use clap::Subcommand;
use weft_proto::service::Grant;

use super::table::{moment, table};
use super::{Context, Ended, values};
use crate::api::schema::{self, TokenRequest};

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token and print the line for `weft up --join`; it is shown only this once
    Create {
        /// How long it can be used, at most 30d
        #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = values::lifetime)]
        lifetime: u64,
        /// How many nodes may join on it
        #[arg(long, default_value = "1", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        uses: u32,
        /// What they may run: NAME, NAMESPACE/NAME, NAMESPACE/* or *; may be repeated
        #[arg(long, default_value = "*", value_name = "SERVICE")]
        service: Vec<Grant>,
    },
    /// List tokens; their secrets are not kept
    List,
    /// Let nobody join on a token any more; nodes that have stay
    Revoke {
        /// As `weft token list` prints it
        #[arg(value_parser = values::token_id)]
        id: String,
    },
}

impl Token {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        match self {
            Self::Create { lifetime, uses, service } => {
                let services = service.iter().map(ToString::to_string).collect();
                let request = TokenRequest { lifetime_s: lifetime, uses, services };
                let created = context.client.create_token(&request).await?;
                context.render(&created, |created| format!("{}\n", created.line))
            }
            Self::List => {
                let tokens = context.client.tokens().await?;
                context.render(&tokens, |tokens| list(tokens, context.now))
            }
            Self::Revoke { id } => {
                let answer = context.client.revoke_token(&id).await?;
                context.render(&answer, |_| format!("token {id} is revoked\n"))
            }
        }
    }
}

fn list(tokens: &[schema::Token], now: u64) -> String {
    if tokens.is_empty() {
        return "there are no tokens: make one with `weft token create`\n".to_owned();
    }
    let row = |token: &schema::Token| {
        let used = format!("{} of {}", token.used, token.uses);
        [token.id.clone(), token.state.clone(), used, moment(token.expires, now), token.services.join(", ")]
    };
    table(["ID", "STATE", "USED", "EXPIRES", "SERVICES"], &tokens.iter().map(row).collect::<Vec<_>>())
}
