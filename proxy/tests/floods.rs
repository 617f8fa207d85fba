//! What a listener does with those who want to keep it busy or fill its memory: it ends their connection or stops reading, and
//! goes on serving the others.

mod support {
    pub(crate) mod application;
    pub(crate) mod mesh;
    pub(crate) mod raw;
}

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::application;
use support::mesh::{Mesh, Setup, soon};
use support::raw::ask;

/// Types of frames (RFC 9113, 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u8 = 11;
/// `GET http://web.mesh/`, in HPACK.
const REQUEST: &[u8] = b"\x82\x86\x84\x41\x08web.mesh";

async fn mesh() -> (Mesh, SocketAddr) {
    let application = application::http().await;
    let mesh = Mesh::start(&Setup::over(Transport::Tcp), &[(8080, Protocol::Http, application.address)]).await;
    let at = mesh.ways_in[&8080];
    (mesh, at)
}

/// Others are served all the while.
async fn serves(at: SocketAddr) {
    let request = "GET /echo HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n\r\n";
    let told = Box::pin(soon("an answer", ask(at, request))).await;
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A connection in HTTP/2 with nothing on it yet.
async fn open(at: SocketAddr) -> (OwnedReadHalf, OwnedWriteHalf) {
    let mut stream = TcpStream::connect(at).await.expect("connects");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("written");
    stream.into_split()
}

/// Reads to the end: the codes with which the connection was ended.
fn goodbyes(mut reader: OwnedReadHalf) -> JoinHandle<Vec<u8>> {
    tokio::spawn(async move {
        let mut codes = Vec::new();
        let mut head = [0; 9];
        while reader.read_exact(&mut head).await.is_ok() {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            if reader.read_exact(&mut payload).await.is_err() {
                break;
            }
            if head[3] == GOAWAY {
                codes.push(payload[7]);
            }
        }
        codes
    })
}

#[tokio::test]
async fn who_opens_and_resets_streams_without_end_is_told_to_calm_down() {
    let (_mesh, at) = mesh().await;
    let (reader, mut writer) = open(at).await;
    let told = goodbyes(reader);
    for stream in (1..20_000).step_by(2) {
        let both =
            [frame(HEADERS, END_STREAM | END_HEADERS, stream, REQUEST), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])];
        if writer.write_all(&both.concat()).await.is_err() {
            break;
        }
    }
    let codes = soon("the end of the connection", told).await.expect("it does not panic");
    assert!(codes.contains(&ENHANCE_YOUR_CALM), "{codes:?}");
    serves(at).await;
}

#[tokio::test]
async fn a_head_without_an_end_is_cut_off() {
    let (_mesh, at) = mesh().await;
    let (reader, mut writer) = open(at).await;
    let told = goodbyes(reader);
    writer.write_all(&frame(HEADERS, END_STREAM, 1, REQUEST)).await.expect("written");
    // A field that is not put into the table: `x-N: ` and 100 bytes.
    let field = [b"\x00\x03x-a\x64".to_vec(), vec![b'a'; 100]].concat();
    let fields = field.repeat(100);
    let mut sent = 0;
    while sent < 16 << 20 && writer.write_all(&frame(CONTINUATION, 0, 1, &fields)).await.is_ok() {
        sent += fields.len();
    }
    assert!(sent < 16 << 20, "the connection is ended");
    let codes = soon("the end of the connection", told).await.expect("it does not panic");
    assert!(!codes.contains(&0), "{codes:?}");
    serves(at).await;
}

#[tokio::test]
async fn answers_that_nobody_reads_are_not_piled_up() {
    let (_mesh, at) = mesh().await;
    for (kind, payload) in [(PING, vec![0; 8]), (SETTINGS, vec![0, 3, 0, 0, 0, 100])] {
        let (_reader, mut writer) = open(at).await;
        let many = frame(kind, 0, 0, &payload).repeat(1000);
        let mut sent = 0;
        // What both kernels and the node hold is far less.
        while sent < 64 << 20 && matches!(timeout(Duration::from_secs(1), writer.write_all(&many)).await, Ok(Ok(()))) {
            sent += many.len();
        }
        assert!(sent < 64 << 20, "frames of type {kind} are no longer read, or the connection is ended");
        serves(at).await;
    }
}

#[tokio::test]
async fn trailers_have_a_bound() {
    let (_mesh, at) = mesh().await;
    let mut stream = TcpStream::connect(at).await.expect("connects");
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
        .await
        .expect("written");
    let field = format!("x-trailer: {}\r\n", "a".repeat(1000));
    let mut sent = 0;
    while sent < 16 << 20 && stream.write_all(field.as_bytes()).await.is_ok() {
        sent += field.len();
    }
    assert!(sent < 16 << 20, "the connection is ended");
    let (reader, mut writer) = open(at).await;
    let told = goodbyes(reader);
    writer.write_all(&frame(HEADERS, END_HEADERS, 1, REQUEST)).await.expect("written");
    let fields = [b"\x00\x03x-a\x64".to_vec(), vec![b'a'; 100]].concat().repeat(100);
    writer.write_all(&frame(HEADERS, END_STREAM, 1, &fields)).await.expect("written");
    let mut sent = 0;
    while sent < 16 << 20 && writer.write_all(&frame(CONTINUATION, 0, 1, &fields)).await.is_ok() {
        sent += fields.len();
    }
    assert!(sent < 16 << 20, "the connection is ended");
    soon("the end of the connection", told).await.expect("it does not panic");
    serves(at).await;
}
