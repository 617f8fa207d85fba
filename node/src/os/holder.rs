//! The process that the service manager takes for the node's. It does nothing but to end when the node has let go of all but the exchanges that
//! are open: those live on in the process that carries them, and the service manager starts the next one meanwhile. A unit that keeps processes
//! of its own when it is stopped asks for it (`WEFT_HOLDER`).

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, io};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The other process, as the node sees it.
#[derive(Debug)]
pub(crate) struct Holder {
    line: UnixStream,
    pub(crate) pid: u32,
    told: watch::Receiver<bool>,
    ended: Arc<AtomicBool>,
}

impl Holder {
    /// Begins one, where the unit asks for it.
    pub(crate) fn begin() -> Option<Self> {
        env::var_os("NOTIFY_SOCKET").and(env::var_os("WEFT_HOLDER"))?;
        match Self::start() {
            Ok(holder) => Some(holder),
            Err(error) => {
                tracing::warn!(%error, "exchanges will end with this process: what would outlive it cannot be begun");
                None
            }
        }
    }

    fn start() -> io::Result<Self> {
        let (line, theirs) = UnixStream::pair()?;
        let node = std::process::id().to_string();
        let mut first = Command::new(env::current_exe()?)
            .args(["hold", "--node", &node])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        // It has begun another one, which is nobody's child then but the service manager's.
        if !first.wait()?.success() {
            return Err(io::Error::other("the process that would be held ended"));
        }
        line.set_read_timeout(Some(BEGIN_TIMEOUT))?;
        let mut told = String::new();
        BufReader::new(&line).read_line(&mut told)?;
        line.set_read_timeout(None)?;
        let pid = told.trim().parse().map_err(io::Error::other)?;
        let (tell, told) = watch::channel(false);
        let (ended, read) = (Arc::<AtomicBool>::default(), line.try_clone()?);
        let known = ended.clone();
        std::thread::Builder::new().name("weft-holder".into()).spawn(move || listen(&read, &tell, &known))?;
        Ok(Self { line, pid, told, ended })
    }

    /// Waits until the node is told to stop.
    pub(crate) async fn stopped(&self) {
        // The thread that tells it ends with the process.
        let _ = self.told.clone().wait_for(|told| *told).await;
    }

    /// The node has ended, with this code, or has let go of all that the next one needs, which is no failure.
    pub(crate) fn end(&self, code: u8) {
        self.ended.store(true, Ordering::Relaxed);
        // Where it has gone there is nobody to tell.
        let _ = writeln!(&self.line, "{code}");
    }
}

/// Passes on what is said. Where the other process is gone before the node has ended, the service manager has given up on both or begins the next one:
/// nothing of this one may be in its way.
fn listen(line: &UnixStream, tell: &watch::Sender<bool>, ended: &AtomicBool) {
    for _ in BufReader::new(line).lines().map_while(Result::ok) {
        tell.send_replace(true);
    }
    if !ended.load(Ordering::Relaxed) {
        tracing::error!("the process that stands for this one is gone, and so is this one");
        std::process::exit(1);
    }
}

/// Is that process, where it is `here`; else begins it and ends, so that it is nobody's child but the service manager's. The exit code.
pub(crate) fn hold(node: u32, here: bool) -> io::Result<u8> {
    if !here {
        Command::new(env::current_exe()?)
            .args(["hold", "--here", "--node", &node.to_string()])
            .stdin(Stdio::inherit())
            .stdout(Stdio::null())
            .spawn()?;
        return Ok(0);
    }
    let line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    writeln!(&line, "{}", std::process::id())?;
    line.set_nonblocking(true)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(wait(line, node))
}

async fn wait(line: UnixStream, node: u32) -> io::Result<u8> {
    let (read, mut write) = tokio::net::UnixStream::from_std(line)?.into_split();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // What the service manager says where the node hangs.
    let mut abort = signal(SignalKind::from_raw(Signal::SIGABRT as i32))?;
    let mut told = String::new();
    let mut read = tokio::io::BufReader::new(read);
    let mut ended = std::pin::pin!(read.read_line(&mut told));
    loop {
        tokio::select! {
            biased;
            _ = &mut ended => break,
            _ = abort.recv() => {
                if let Ok(node) = i32::try_from(node) {
                    kill(Pid::from_raw(node), Signal::SIGKILL)?;
                }
            }
            _ = terminate.recv() => drop(write.write_all(b"stop\n").await),
            _ = interrupt.recv() => drop(write.write_all(b"stop\n").await),
        }
    }
    // A node that says nothing has not ended by itself.
    Ok(told.trim().parse().unwrap_or(1))
}

/// How long it may take to begin.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);
