//! What a node finds of the way to the others, and back.

use futures_util::future::join_all;
use weft_proto::identity::NodeName;

use super::schema::{Checked, CheckedNode, Way};
use crate::control::Reached;
use crate::node::Node;
use crate::world::World;

impl<W: World> Node<W> {
    /// `GET /v1/check`
    pub async fn api_check(&self) -> Checked {
        let live = self.live();
        let others = live.keys().filter(|name| *name != self.name()).cloned();
        let nodes = join_all(others.map(|name| self.check_node(name))).await;
        Checked { nodes }
    }

    async fn check_node(&self, name: NodeName) -> CheckedNode {
        let before = self.world.now();
        let (there, back) = tokio::join!(self.control.probe(&name), self.control.ask_to_probe(&name));
        let between = before.midpoint(self.world.now());
        let told = |text: &String| if text.is_empty() { None } else { Some(text.clone()) };
        let address = self.book.address(&name).map(|address| address.to_string()).unwrap_or_default();
        let there = way(there);
        match back {
            Ok(reply) => CheckedNode {
                node: name.to_string(),
                address,
                there,
                back: Some(Way { tcp: told(&reply.tcp), udp: told(&reply.udp) }),
                clock_ms: Some(i64::try_from(reply.now).unwrap_or(i64::MAX).saturating_sub_unsigned(between)),
                problem: None,
            },
            Err(why) => {
                CheckedNode { node: name.to_string(), address, there, back: None, clock_ms: None, problem: Some(why) }
            }
        }
    }
}

fn way(reached: Reached) -> Way {
    Way { tcp: reached.tcp.err(), udp: reached.udp.err() }
}
