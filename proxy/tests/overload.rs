//! An application that is asked for three times what it can do: what it can do is still answered in time, and the rest is
//! refused at once. With `--nocapture` each second is told.

mod support {
    pub(crate) mod mesh;
}

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{interval, sleep, timeout};
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::mesh::{Mesh, Setup, localhost};

const PORT: u16 = 8080;
const WORKERS: usize = 4;
const TAKES: Duration = Duration::from_millis(20);
/// How long a caller waits.
const PATIENCE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn three_times_what_it_can_do_leaves_it_doing_what_it_can() {
    let address = application().await;
    let mut mesh = Mesh::start(&Setup::over(Transport::Tcp), &[(PORT, Protocol::Http, address)]).await;
    let at = mesh.ways_in[&PORT];
    let peak = u32::try_from(WORKERS).expect("few") * 1000 / 20;
    offer(at, peak / 2, 2).await;
    let during = offer(at, peak * 3, 8).await;
    let good = |second: &BTreeMap<String, u32>| second.get("200").copied().unwrap_or(0);
    // The first seconds pass until it is noticed, and until what has queued up by then is gone.
    for (at, second) in during.iter().enumerate().skip(4) {
        assert!(good(second) >= peak * 7 / 10, "{at}: {during:?}");
        assert_eq!(second.get("late"), None, "{at}: {during:?}");
    }
    let refused = mesh.b.record(|record| record.reason == "overloaded").await;
    assert_eq!(refused.code, 503);
    assert!(mesh.b.plane.problems().iter().any(|problem| problem.contains("default/web")), "status tells");
    offer(at, peak / 2, 1).await;
    let after = offer(at, peak / 2, 2).await;
    assert!(after.iter().all(|second| good(second) >= peak * 4 / 10 && second.len() == 1), "{after:?}");
}

/// So many calls a second, whatever comes of them: what came, by the second in which they began.
async fn offer(at: SocketAddr, rate: u32, seconds: u32) -> Vec<BTreeMap<String, u32>> {
    let mut ticks = interval(Duration::from_secs(1) / rate);
    let mut calls = Vec::new();
    for _ in 0..rate * seconds {
        ticks.tick().await;
        calls.push(tokio::spawn(async move { timeout(PATIENCE, call(at)).await.ok().flatten() }));
    }
    let mut came = vec![BTreeMap::new(); seconds as usize];
    for (nth, call) in (0..).zip(calls) {
        let what = call.await.expect("it does not panic").unwrap_or_else(|| "late".to_owned());
        *came[(nth / rate) as usize].entry(what).or_insert(0) += 1;
    }
    came.iter().for_each(|second| println!("{rate}/s: {second:?}"));
    came
}

/// The status of one.
async fn call(at: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.to_owned();
    if status == "503" {
        assert!(answer.to_ascii_lowercase().contains("retry-after: 1"), "{answer}");
    }
    Some(status)
}

async fn application() -> SocketAddr {
    let listener = TcpListener::bind(localhost(0)).await.expect("an address");
    let address = listener.local_addr().expect("it has one");
    let workers = Arc::new(Semaphore::new(WORKERS));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let workers = workers.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while stream.read_buf(&mut head).await.is_ok_and(|count| count > 0) {
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let _worker = workers.acquire().await;
                        sleep(TAKES).await;
                        // Whoever has gone hears nothing.
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                    }
                }
            });
        }
    });
    address
}
