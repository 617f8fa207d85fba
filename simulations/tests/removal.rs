//! A node is taken out of the mesh: what it was counts no more anywhere, on what is open either.

mod support;

use weft::api::operations::Failure;
use weft_simulations::application::Seen;
use weft_simulations::call::Call;
use weft_simulations::host::Host;
use weft_simulations::mesh::assertion::Caller;

use support::Stage;

/// Within this a removal is in force everywhere, milliseconds.
const IN_FORCE: u64 = 5_000;
/// The service that is called, and the one that calls.
const CALLEE: usize = 1;
const CALLER: usize = 0;
const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
                      spec: {selector: {matchLabels: {app: nobody}}, action: DENY, rules: [{}]}\n";

impl Stage {
    fn begin(&mut self, number: u64, host: usize, long: bool) {
        let call = Call {
            host,
            from: Caller::Service(CALLER),
            to: CALLEE,
            method: "GET".into(),
            path: "/".into(),
            via: None,
            long,
            began: self.network.now(),
            ended: None,
        };
        self.hosts[host].call(number, &call);
    }

    /// The status of a call that was begun; none where there was no answer.
    fn ended(&mut self, number: u64, host: usize) -> Option<u16> {
        self.until("an answer", |hosts| {
            hosts[host].take_seen().into_iter().find_map(|seen| match seen {
                Seen::Answered(of, status) if of == number => Some(status),
                _ => None,
            })
        })
    }

    fn call(&mut self, number: u64, host: usize) -> Option<u16> {
        self.begin(number, host, false);
        self.ended(number, host)
    }

    fn remove(&mut self, asked: usize, name: &str) -> Result<u64, Failure> {
        let name = name.to_owned();
        self.on(asked, move |node| async move { node.api_remove_node(&name).await }).map(|applied| applied.index)
    }
}

fn voters(host: &Host) -> Vec<String> {
    let voters = host.node().map(|node| node.raft_status().voters.clone()).unwrap_or_default();
    voters.iter().map(ToString::to_string).collect()
}

#[test]
fn a_node_that_is_removed_is_cut_off_within_seconds() {
    let mut stage = Stage::new(6);
    stage.found(&[(1, CALLEE), (5, CALLEE), (4, CALLER), (2, CALLER)]);
    for host in [2, 4] {
        stage.until("calls pass", |hosts| hosts[host].node().filter(|node| node.is_ready()).map(drop));
        assert_eq!(stage.call(1, host), Some(200), "from n{host}");
    }

    // A caller's node goes while its call is open.
    stage.begin(2, 4, true);
    stage.until("the long call is open", |hosts| {
        let seen: Vec<Seen> = [1, 5].into_iter().flat_map(|host| hosts[host].take_seen()).collect();
        (!seen.is_empty()).then_some(())
    });
    let began = stage.network.now();
    let index = stage.remove(0, "n4").expect("removed");
    stage.ended(2, 4);
    assert!(stage.network.now() - began < IN_FORCE, "its link was open for {} ms", stage.network.now() - began);
    assert_ne!(stage.call(3, 4), Some(200), "it calls on");
    let enforced = stage.enforced(0, index);
    assert_eq!((enforced.nodes, enforced.enforced), (5, 5), "{enforced:?}");
    stage.until("it tells", |hosts| hosts[4].node()?.problems().iter().any(|one| one.kind == "removed").then_some(()));

    // A callee's node goes: nobody calls it any more.
    stage.remove(2, "n5").expect("removed");
    stage.until("it is not live", |hosts| hosts[2].node().filter(|node| node.live().len() == 4).map(drop));
    stage.hosts[5].take_seen();
    for number in 10..30 {
        assert_eq!(stage.call(number, 2), Some(200));
    }
    assert!(stage.hosts[5].take_seen().is_empty(), "it was called");

    // A second time there is nothing to remove.
    assert!(stage.remove(0, "n5").is_err_and(|failure| failure.error.reason == "node-unknown"));
}

#[test]
fn the_leader_and_voters_are_removed_and_the_rest_decides() {
    let mut stage = Stage::new(4);
    stage.found(&[]);
    let leader = |hosts: &[Host], of: usize| hosts[of].node()?.raft_status().leader.as_ref().map(ToString::to_string);
    let first = stage.until("a leader", |hosts| leader(hosts, 3));
    stage.remove(3, &first).expect("removed");
    let rest: Vec<usize> = (0..4).filter(|host| format!("n{host}") != first).collect();
    let one = rest[0];
    stage.until("another one leads, and three vote", |hosts| {
        let voters = voters(&hosts[one]);
        (leader(hosts, one)? != first && voters.len() == 3 && !voters.contains(&first)).then_some(())
    });
    stage.apply(one, POLICY);
    // Two more go: one of the other three, and then the one of the two that leads.
    let second = format!("n{}", rest[2]);
    stage.remove(one, &second).expect("removed");
    stage.until("one votes", |hosts| (voters(&hosts[one]).len() == 1).then_some(()));
    let last = stage.until("it leads", |hosts| leader(hosts, one));
    let other = if format!("n{one}") == last { rest[1] } else { one };
    stage.until("both hold the authority's key", |hosts| {
        hosts[other].node().filter(|node| node.state().sealed_authority.len() == 2).map(drop)
    });
    stage.remove(other, &last).expect("removed");
    stage.until("the last one votes alone", |hosts| (voters(&hosts[other]) == [format!("n{other}")]).then_some(()));
    stage.until("it decides", |hosts| leader(hosts, other));
    stage
        .on(other, |node| async move { node.api_delete("AuthorizationPolicy", "default", "p", None).await })
        .expect("decided");
    let alone = format!("n{other}");
    assert!(stage.remove(other, &alone).is_err_and(|failure| failure.error.message.contains("only one")));
}
