//! A node whose process stays, when it drains, for what is open.

mod support {
    pub(crate) mod application;
    pub(crate) mod mesh;
}

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::application;
use support::mesh::{Mesh, Setup, soon};

const OPAQUE: u16 = 9000;

/// What comes back for a byte.
async fn echo(stream: &mut TcpStream) -> Option<u8> {
    stream.write_all(b"x").await.ok()?;
    let mut back = [0; 1];
    soon("an answer", stream.read_exact(&mut back)).await.ok().map(|_| back[0])
}

#[tokio::test]
async fn what_is_open_stays_until_it_is_cut() {
    for at_a in [true, false] {
        let application = application::greeter().await;
        let mesh = Mesh::start(&Setup::over(Transport::Tcp), &[(OPAQUE, Protocol::Tcp, application)]).await;
        let mut stream = TcpStream::connect(mesh.ways_in[&OPAQUE]).await.expect("connects");
        let mut hello = [0; 5];
        soon("a greeting", stream.read_exact(&mut hello)).await.expect("greeted");
        let leaving = if at_a { &mesh.a.plane } else { &mesh.b.plane };
        leaving.stay(Duration::from_secs(60));
        leaving.drain();
        soon("nothing else is left", leaving.alone()).await;
        for _ in 0..3 {
            assert_eq!(echo(&mut stream).await, Some(b'x'), "at the caller's node: {at_a}");
        }
        // Nobody else is let in.
        let other = async {
            let mut other = TcpStream::connect(mesh.ways_in[&OPAQUE]).await.ok()?;
            let mut hello = [0; 5];
            other.read_exact(&mut hello).await.ok()
        };
        assert_eq!(soon("a refusal", other).await, None);
        leaving.cut();
        let ended = async { while echo(&mut stream).await.is_some() {} };
        soon("the end", ended).await;
    }
}
