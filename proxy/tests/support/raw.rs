//! Callers and applications that write bytes of their own and read messages as they are framed.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::mesh::soon;

/// An application that reads a head and, as far as it says, a body, tells what it has read, and answers the same text
/// always. It keeps the connection open unless told to reset it.
pub(crate) async fn scripted(answer: &'static str) -> (SocketAddr, UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (sender, heard) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut read = Vec::new();
                let mut chunk = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut chunk).await {
                    read.extend_from_slice(&chunk[..count]);
                    if whole(&read, "").is_some() {
                        let _ = sender.send(String::from_utf8_lossy(&read).into_owned());
                        let _ = stream.write_all(answer.as_bytes()).await;
                        read.clear();
                    }
                }
            });
        }
    });
    (address, heard)
}

/// Where a message ends, once it is whole (RFC 9112, 6.3): a request where `method` is empty, else the answer to one of
/// that method, with the informational answers before it. Nothing for an answer that ends with its connection.
fn whole(read: &[u8], method: &str) -> Option<usize> {
    let text = String::from_utf8_lossy(read);
    let head = text.find("\r\n\r\n")? + 4;
    let fields = text[..head].to_ascii_lowercase();
    let status = if method.is_empty() { None } else { fields.get(9..12) };
    match (method, status) {
        (_, Some("101")) => return Some(head),
        (_, Some(status)) if status.starts_with('1') => return Some(head + whole(read.get(head..)?, method)?),
        ("HEAD", _) | (_, Some("204" | "304")) => return Some(head),
        ("CONNECT", Some(status)) if status.starts_with('2') => return Some(head),
        _ => {}
    }
    if fields.contains("\r\ntransfer-encoding: chunked\r\n") {
        return text[head..].find("0\r\n").and_then(|_| chunks_end(&text, head));
    }
    let length = fields.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let end = head + length.or(if method.is_empty() { Some(0) } else { None })?;
    (read.len() >= end).then_some(end)
}

fn chunks_end(text: &str, from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let line = text.get(at..)?.find("\r\n")?;
        let size = usize::from_str_radix(text[at..at + line].split(';').next()?.trim(), 16).ok()?;
        at += line + 2;
        if size == 0 {
            // Trailers, if any, and the empty line.
            let rest = text.get(at..)?;
            let trailers = if rest.starts_with("\r\n") { 0 } else { rest.find("\r\n\r\n")? + 2 };
            return Some(at + trailers + 2);
        }
        at += size + 2;
    }
}

/// What comes back for a request of that method: a whole answer, or whatever was there before the connection ended.
pub(crate) async fn answer(stream: &mut TcpStream, method: &str) -> String {
    soon("an answer", async {
        let (mut read, mut chunk) = (Vec::new(), [0; 4096]);
        while whole(&read, method).is_none() {
            let Ok(count @ 1..) = stream.read(&mut chunk).await else { break };
            read.extend_from_slice(&chunk[..count]);
        }
        String::from_utf8_lossy(&read).into_owned()
    })
    .await
}

/// Sends a request over a connection of its own, and reads what comes back.
pub(crate) async fn ask(address: SocketAddr, request: &str) -> String {
    ask_over(&mut TcpStream::connect(address).await.expect("connects"), request).await
}

/// The same, and what comes back for a request to `/again` after it: nothing where the connection takes no other.
pub(crate) async fn ask_again(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let told = ask_over(&mut stream, request).await;
    let after = ask_over(&mut stream, "GET /again HTTP/1.1\r\nHost: web.mesh\r\n\r\n").await;
    (told, after)
}

/// Sends a request over a connection, and reads what comes back.
pub(crate) async fn ask_over(stream: &mut TcpStream, request: &str) -> String {
    // A listener that has refused a request need not read all of it.
    let _ = stream.write_all(request.as_bytes()).await;
    answer(stream, request.split(' ').next().unwrap_or_default()).await
}

/// Reads until the text is there, or the connection ends.
pub(crate) async fn read_until(stream: &mut TcpStream, awaited: &str) -> String {
    soon(awaited, async {
        let (mut read, mut chunk) = (String::new(), [0; 4096]);
        while !read.contains(awaited) {
            let Ok(count @ 1..) = stream.read(&mut chunk).await else { break };
            read.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
        read
    })
    .await
}
