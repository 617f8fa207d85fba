//! Nodes and meshes that were off for longer than certificates live, and clocks that jump.

#![expect(clippy::disallowed_methods, unreachable_pub, reason = "tests of processes live in real time")]
#![allow(dead_code, reason = "each test file uses its own part")]

mod support;

use std::time::Instant;

use support::{BOUND, Node, faketime, file, server, until};

const URL: &str = "http://web.mesh:8080/hello";

/// Whole: every node knows the others as live, and calls go through.
fn whole(nodes: &[Node], what: &str) {
    let began = Instant::now();
    until(what, || {
        let all_live = |node: &Node| {
            let members = node.json(&["members"]);
            members.as_array().is_some_and(|all| all.len() == 3 && all.iter().all(|one| one["live"] == true))
        };
        nodes[0].call(URL).is_some_and(|answer| answer.0 == 200) && nodes.iter().all(all_live)
    });
    assert!(began.elapsed() < BOUND);
}

#[test]
fn a_mesh_that_was_off_for_a_weekend_comes_back_by_itself() {
    if faketime().is_none() {
        return;
    }
    let mut nodes = ["a", "b", "c"].map(Node::new);
    let clocks = tempfile::TempDir::new().expect("a directory");
    let clock = file(clocks.path(), "all", "+0\n");
    nodes.iter_mut().for_each(|node| node.set_clock(clock.as_ref()));
    nodes[0].up(&["--init"]);
    for index in 1..3 {
        let line = nodes[0].json(&["token", "create"])["line"].as_str().expect("a line").to_owned();
        nodes[index].up(&["--join", &line]);
    }
    let port = server("web");
    nodes[1].ok(&["service", "add", "web", "--port", &format!("8080:{port}/http"), "--check", "http:/healthz"]);
    nodes[0].ok(&["service", "add", "front", "--port", &format!("8081:{port}/http"), "--caller", "any"]);
    until("three voters", || {
        nodes.iter().all(|node| node.json(&["status"])["voters"].as_array().is_some_and(|voters| voters.len() == 3))
    });
    whole(&nodes, "the mesh is whole");

    // All at once.
    nodes.iter_mut().for_each(Node::kill);
    file(clocks.path(), "all", "+3d\n");
    nodes.iter_mut().for_each(|node| node.launch(&[]));
    nodes.iter_mut().for_each(Node::wait);
    whole(&nodes, "all come back after three days");

    // Each alone, while the others live on.
    for (off, days) in [(0, 6), (1, 9), (2, 12)] {
        nodes[off].kill();
        file(clocks.path(), "all", &format!("+{days}d\n"));
        let at = (off + 1) % 3;
        until("the others go on", || nodes[at].weft(&["apply", "-f", &policy(&nodes[at])]).status.success());
        nodes[off].up(&[]);
        whole(&nodes, "one comes back after three days");
    }

    // One clock jumps ahead and back.
    let own = file(clocks.path(), "own", "+12d\n");
    nodes[2].kill();
    nodes[2].set_clock(own.as_ref());
    nodes[2].up(&[]);
    for offset in ["+15d\n", "+9d\n", "+12d\n"] {
        file(clocks.path(), "own", offset);
        until("decisions reach it all the same", || {
            nodes[0].weft(&["apply", "-f", &policy(&nodes[0]), "--wait", "--timeout", "10s"]).status.success()
        });
    }
    whole(&nodes, "its clock is right again");
}

fn policy(node: &Node) -> String {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{}}}\nspec:\n  action: DENY\n  rules: [{{to: [{{operation: {{paths: [/no]}}}}]}}]\n",
        std::process::id()
    );
    file(&node.data_dir(), "policy.yaml", &text)
}
