//! Real `weft` processes on this machine, each with a directory and ports of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Bound on everything that is waited for.
pub const BOUND: Duration = Duration::from_secs(30);

/// Waits until the condition holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {BOUND:?}: {what}");
        thread::park_timeout(Duration::from_millis(30));
    }
}

/// A loopback address of this test process alone, so that no other one looks at its ports.
pub fn here() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high, middle, low)
}

/// A port of it that nobody listens on, for TCP and UDP, below those that the kernel gives to outgoing connections.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let port = 4096 + u16::try_from(TAKEN.fetch_add(1, Ordering::Relaxed) % 24_576).expect("in range");
        // A server of every address of the host holds it too.
        if TcpListener::bind((here(), port)).is_ok() && UdpSocket::bind((here(), port)).is_ok() {
            return port;
        }
    }
}

/// A node as a process.
pub struct Node {
    pub name: String,
    directory: TempDir,
    pub port: u16,
    pub proxy: u16,
    pub metrics: u16,
    child: Option<Child>,
    /// Whose time the process has, where it is not the host's: a file that says how far off it is.
    clock: Option<PathBuf>,
}

/// The library that gives a process another time than the host's; none where it is not installed.
pub fn faketime() -> Option<PathBuf> {
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let found = places.iter().map(|place| Path::new(place).join("faketime/libfaketime.so.1")).find(|at| at.exists());
    if found.is_none() {
        eprintln!("SKIPPED: libfaketime is not installed");
    }
    found
}

impl Node {
    pub fn new(name: &str) -> Self {
        let directory = TempDir::new().expect("a directory");
        Self {
            name: name.into(),
            directory,
            port: free_port(),
            proxy: free_port(),
            metrics: free_port(),
            child: None,
            clock: None,
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// From its next start on the node's time is as far off as the file says.
    pub fn set_clock(&mut self, file: &Path) {
        self.clock = Some(file.to_owned());
    }

    /// Runs a command against this node.
    pub fn weft(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.arg("--data-dir").arg(self.data_dir()).args(arguments).output().expect("weft runs")
    }

    /// Runs a command that must succeed; answers what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.weft(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "weft {arguments:?} on {}: {out}{err}", self.name);
        out.into_owned()
    }

    /// Runs a command that prints JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[&["--output", "json"], arguments].concat())).expect("JSON")
    }

    fn up_command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command
            .args(["--data-dir".as_ref(), self.data_dir().as_os_str()])
            .args(["up", "--name", &self.name, "--loopback", "off", "--workers", "1", "--access-sample", "1"])
            .args(["--listen", &format!("{}:{}", here(), self.port)])
            .args(["--proxy", &format!("{}:{}", here(), self.proxy)])
            .args(["--metrics", &format!("{}:{}", here(), self.metrics)])
            .args(more);
        if let (Some(file), Some(library)) = (&self.clock, faketime()) {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", file);
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command
    }

    /// Runs `weft up` that must end by itself; answers its end.
    pub fn up_fails(&self, more: &[&str]) -> Output {
        self.up_command(more).output().expect("weft runs")
    }

    /// Starts the node and waits until it is ready.
    pub fn up(&mut self, more: &[&str]) {
        self.launch(more);
        self.wait();
    }

    /// Starts the node.
    pub fn launch(&mut self, more: &[&str]) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.directory.path().join("log")).expect("a log");
        let child = self.up_command(more).stdout(Stdio::null()).stderr(log).spawn().expect("weft runs");
        self.child = Some(child);
    }

    /// Waits until the node is ready.
    pub fn wait(&mut self) {
        let (name, log) = (self.name.clone(), self.directory.path().join("log"));
        let deadline = Instant::now() + BOUND;
        while get(self.metrics, "/readyz").is_none_or(|answer| answer.0 != 200) {
            let ended = self.child.as_mut().expect("started").try_wait().expect("waited");
            let text = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "{name} ended: {}", text());
            assert!(Instant::now() < deadline, "{name} is not ready: {}", text());
            thread::park_timeout(Duration::from_millis(30));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Ends the process as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
    }

    /// Calls a URL through this node's forward proxy; answers status and body.
    pub fn call(&self, url: &str) -> Option<(u16, String)> {
        let host = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
        request(self.proxy, &format!("GET {url} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- log of {}\n{}", self.name, self.log());
        }
        self.kill();
    }
}

/// A plain GET on this machine.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    request(port, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
}

fn request(port: u16, text: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((here(), port)), BOUND).ok()?;
    stream.set_read_timeout(Some(BOUND)).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
}

/// A small HTTP/1.1 server that answers every request with `name`, its path and the caller that Weft tells.
pub fn server(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream, name));
        }
    });
    port
}

fn answer(mut stream: TcpStream, name: &str) {
    let mut head = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let path = text.split_whitespace().nth(1).unwrap_or("?");
        // A body whose length is said is read first: answered before, one that breaks off would be answered too.
        let length = text.to_ascii_lowercase();
        let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        if stream.read_exact(&mut vec![0; length]).is_err() {
            return;
        }
        let caller = text.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: ")).unwrap_or("nobody");
        let body = format!("{name} {path} {caller}");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
        head.clear();
    }
}

/// Writes a file and answers its path.
pub fn file(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}
