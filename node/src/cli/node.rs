//! `weft node`: who is in the mesh.

use clap::Subcommand;
use weft_proto::identity::NodeName;

use super::resource::Wait;
use super::{Context, Ended};

#[derive(Debug, Subcommand)]
pub(super) enum Node {
    /// Take a node out of the mesh: its admission, keys, certificates, vote and instances, on open links too
    Remove {
        /// As `weft members` names it; a host that comes back under the name joins anew, from an empty directory
        name: NodeName,
        #[command(flatten)]
        wait: Wait,
    },
}

impl Node {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        let Self::Remove { name, wait } = self;
        let applied = context.client.remove_node(&name).await?;
        wait.finish(context, applied).await
    }
}
