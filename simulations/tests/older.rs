//! A node of an older version in a mesh that uses a kind which that version does not know.

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use weft::config::Start;
use weft_proto::kinds::Kinds;
use weft_simulations::host::Host;

use support::Stage;

const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
                      spec: {selector: {matchLabels: {app: nobody}}, action: DENY, rules: [{}]}\n";
const SETTINGS: &str = "apiVersion: weft/v1\nkind: Service\nmetadata: {name: nobody}\nspec: {retries: 1}\n";

#[test]
fn it_lives_on_enforces_the_rest_and_tells() {
    let mut stage = Stage::new(3);
    stage.hosts[2].know(Kinds::lacking(&["AuthorizationPolicy"]));
    stage.found(&[]);

    // The others enforce it; the older one says that it does not, and which.
    let index = stage.apply(0, POLICY);
    let enforced = stage.enforced(0, index);
    assert_eq!((enforced.nodes, enforced.enforced), (3, 2), "{enforced:?}");
    assert_eq!(enforced.lagging[0].node, "n2");
    assert!(enforced.lagging[0].why.contains("does not know the kind AuthorizationPolicy"), "{enforced:?}");
    let told = stage.on(2, |node| async move { node.problems() });
    assert!(
        told.iter().any(|one| one.kind == "not-enforced" && one.text.contains("AuthorizationPolicy default/p")),
        "{told:?}"
    );
    let read = |kind: &str| -> BTreeMap<String, String> {
        [("kind".to_owned(), kind.to_owned()), ("status".to_owned(), "true".to_owned())].into()
    };
    let query = read("ap");
    let documents = stage.on(0, |node| async move { node.api_resources(&query).await }).expect("read");
    let condition = |kind: &str| {
        let conditions = documents[0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|one| one["type"] == kind).unwrap_or(Value::Null)
    };
    assert_eq!(
        (&condition("Accepted")["status"], &condition("Programmed")["status"]),
        (&"True".into(), &"False".into())
    );
    assert!(condition("Programmed")["message"].as_str().is_some_and(|text| text.contains("node n2")), "{documents:?}");

    // It goes on: what it knows it enforces, and what it does not know it keeps, shows and deletes.
    let index = stage.apply(2, SETTINGS);
    assert_eq!(stage.enforced(2, index).enforced, 3);
    let query = read("AuthorizationPolicy");
    assert_eq!(stage.on(2, |node| async move { node.api_resources(&query).await }).expect("read").len(), 1);
    stage.hosts[2].kill(true);
    stage.until("its death is seen", |hosts| hosts[0].node().filter(|node| node.live().len() == 2).map(drop));
    stage.hosts[2].start(Start::Resume);
    stage.until("it is back", |hosts| {
        hosts[2].node().filter(|node| node.is_ready() && node.live().len() == 3).map(drop)
    });
    stage.until("all states are equal", |hosts| {
        let digests: Vec<u32> = hosts.iter().filter_map(Host::node).map(|node| node.state().digest()).collect();
        (digests.len() == 3 && digests.windows(2).all(|pair| pair[0] == pair[1])).then_some(())
    });
    stage
        .on(
            2,
            |node| async move { node.api_delete("AuthorizationPolicy.security.istio.io", "default", "p", None).await },
        )
        .unwrap_or_else(|failure| panic!("{failure:?}"));
    stage.until("nothing is amiss", |hosts| {
        let told = hosts[2].node()?.problems();
        told.iter().all(|one| one.kind != "not-enforced").then_some(())
    });
}
