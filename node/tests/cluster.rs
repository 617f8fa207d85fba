//! Three real processes: join, call, decide, lose one, lose all.

#![expect(clippy::disallowed_methods, unreachable_pub, reason = "tests of processes live in real time")]
#![allow(dead_code, reason = "each test file uses its own part")]

mod support;

use support::{Node, file, get, server, until};

const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
  - to: [{operation: {paths: [\"/admin*\"]}}]
";

fn mesh() -> [Node; 3] {
    let mut nodes = ["a", "b", "c"].map(Node::new);
    nodes[0].up(&["--init"]);
    for index in 1..3 {
        let line = nodes[0].json(&["token", "create"])["line"].as_str().expect("a line").to_owned();
        nodes[index].up(&["--join", &line]);
    }
    until("three voters", || {
        nodes.iter().all(|node| node.json(&["status"])["voters"].as_array().is_some_and(|voters| voters.len() == 3))
    });
    nodes
}

#[test]
fn a_mesh_from_nothing_calls_decides_and_survives() {
    let mut nodes = mesh();
    let port = server("web");
    nodes[1].ok(&["service", "add", "web", "--port", &format!("8080:{port}/http"), "--check", "http:/healthz"]);
    nodes[0].ok(&["service", "add", "front", "--port", &format!("8081:{port}/http"), "--caller", "any"]);
    let url = "http://web.mesh:8080/hello";
    until("the call goes through", || nodes[0].call(url).is_some_and(|(status, _)| status == 200));
    let (_, body) = nodes[0].call(url).expect("answered");
    assert!(body.starts_with("web /hello") && body.contains("spiffe://mesh.local/ns/default/sa/front"), "{body}");

    let policy = file(&nodes[0].data_dir(), "policy.yaml", DENY);
    let applied = nodes[2].ok(&["apply", "-f", &policy, "--wait"]);
    assert!(applied.contains("3 of 3"), "{applied}");
    assert_eq!(nodes[0].call("http://web.mesh:8080/admin").map(|answer| answer.0), Some(403));
    assert_eq!(nodes[0].call(url).map(|answer| answer.0), Some(200));
    let explained = nodes[0].ok(&["explain", "front", "web:8080", "GET", "/admin"]);
    assert!(explained.contains("default/web"), "{explained}");

    // Whoever leads is killed; the others go on calling and deciding.
    let leader = nodes[0].json(&["status"])["leader"].as_str().expect("a leader").to_owned();
    let lost = nodes.iter().position(|node| node.name == leader).expect("one of ours");
    nodes[lost].kill();
    let left = (lost + 1) % 3;
    until("a decision without the leader", || {
        nodes[left].weft(&["delete", "AuthorizationPolicy", "web"]).status.success()
    });
    nodes[lost].up(&[]);
    let name = nodes[lost].name.clone();
    until("the others hear it again", || {
        let members = nodes[left].json(&["members"]);
        members.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == name.as_str() && one["live"] == true))
    });
    assert!(!nodes[lost].ok(&["get", "AuthorizationPolicy", "--consistent"]).contains("web"), "a stale read");

    nodes[0].ok(&["apply", "-f", &policy, "--wait"]);
    for node in &mut nodes {
        node.kill();
    }
    for node in &mut nodes {
        node.up(&[]);
    }
    assert!(nodes[2].ok(&["get", "AuthorizationPolicy"]).contains("web"), "an acknowledged decision was lost");
    until("calls go on", || nodes[0].call(url).is_some_and(|(status, _)| status == 200));
    assert_eq!(nodes[0].call("http://web.mesh:8080/admin").map(|answer| answer.0), Some(403));
    let metrics = get(nodes[0].metrics, "/metrics").expect("served").1;
    assert!(metrics.contains("weft_requests_total{") && metrics.contains("weft_raft_term"), "{metrics}");
}

#[test]
fn bad_tokens_leave_nothing_behind() {
    let mut first = Node::new("a");
    first.up(&["--init"]);
    let create = |more: &[&str]| {
        let made = first.json(&[&["token", "create"], more].concat());
        (made["id"].as_str().expect("id").to_owned(), made["line"].as_str().expect("line").to_owned())
    };
    let (id, revoked) = create(&[]);
    first.ok(&["token", "revoke", &id]);
    let (_, expired) = create(&["--lifetime", "1s"]);
    let (_, narrow) = create(&["--service", "only"]);
    let mut second = Node::new("b");
    second.up(&["--join", &narrow]);
    let refused = second.weft(&["service", "add", "other", "--port", "9000"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not admitted for service"), "{refused:?}");
    until("the token expires", || first.ok(&["token", "list"]).contains("expired"));
    let damaged = narrow.replacen("weft1.", "weft1.A", 1);
    for (line, expected) in
        [(&revoked, "revoked"), (&expired, "expired"), (&narrow, "has been used"), (&damaged, "join line is not valid")]
    {
        let third = Node::new("c");
        let output = third.up_fails(&["--join", line]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(expected), "{expected}: {text}");
        let again = third.up_fails(&[]);
        assert!(String::from_utf8_lossy(&again.stderr).contains("holds no node"), "{again:?}");
    }
    let founded = first.up_fails(&["--init"]);
    assert!(!founded.status.success());
    second.kill();
    second.up(&["--join", &narrow]);
}
