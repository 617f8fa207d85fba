//! A caller from outside the mesh.

use http::{Method, StatusCode, Uri};
use tokio::time::Instant;

use super::canary::apply;
use super::{Mesh, Told, until};
use crate::api::schema::ServiceSpec;
use crate::demo::stage::{Stage, local};
use crate::demo::traffic::call;
use crate::demo::words::{measured, milliseconds, step, text};

/// What is served at the gateway, at a port.
const DOCUMENTS: &str = r"apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: weft
  listeners: [{name: http, port: PORT, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: edge}]
  hostnames: [shop.example]
  rules:
  - matches: [{path: {value: /api}}]
    backendRefs: [{name: api, port: API}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: edge}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  action: DENY
  rules: [{to: [{operation: {notMethods: [GET]}}]}]
";

impl Mesh {
    /// 6: somebody outside comes in at a gateway.
    pub(super) async fn open_a_gateway(&self, stage: &mut Stage) -> Told<()> {
        step(6, "Node a serves a gateway: callers from outside reach api as shop.example/api, by GET alone.");
        let start = Instant::now();
        let to = local(stage.ports.take()?);
        let client = &stage.nodes[0].client;
        let gateway = ServiceSpec { name: "edge".to_owned(), gateway: true, ..ServiceSpec::default() };
        client.add_service(&gateway).await.map_err(text)?;
        let documents = DOCUMENTS.replace("PORT", &to.port().to_string()).replace("API", &self.ports[1].to_string());
        apply(client, &documents).await?;
        let uri = |text: &'static str| Uri::from_static(text);
        let asks = async |method: Method, uri: Uri, status: StatusCode| {
            until(&format!("a caller from outside gets {}", status.as_u16()), async || {
                let answer = call(to, method.clone(), &uri).await?;
                if answer.status == status { Ok(()) } else { Err(format!("it got {}", answer.status.as_u16())) }
            })
            .await
        };
        asks(Method::GET, uri("http://shop.example/api"), StatusCode::OK).await?;
        let took = milliseconds(start.elapsed());
        asks(Method::POST, uri("http://shop.example/api"), StatusCode::FORBIDDEN).await?;
        asks(Method::GET, uri("http://shop.example/admin"), StatusCode::NOT_FOUND).await?;
        measured(&format!(
            "GET /api 200 from outside {took:.0} ms after the gateway was asked for; POST 403, what no rule is for 404"
        ));
        Ok(())
    }
}
