//! `weft run`: a command that is an instance of a service for as long as it runs.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command as Program};
use tokio::signal::unix::{SignalKind, signal};
use weft_proto::service::{InstanceName, ServiceName};

use super::{Context, Done, Ended, Stopped, values};
use crate::api::schema::{PortSpec, ServiceSpec};

/// How long calls under way are waited for before the command is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Command {
    /// Its service: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    service: ServiceName,
    /// The instance's name, where this host runs several of the service
    #[arg(long, value_name = "NAME")]
    instance: Option<InstanceName>,
    /// As of `weft service add`; may be repeated
    #[arg(long, required = true, value_name = "PORT[:TARGET][/PROTOCOL]", value_parser = values::port)]
    port: Vec<(PortSpec, bool)>,
    /// A label by which routes and policies choose among instances; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    label: Vec<(String, String)>,
    /// How its health is told, as of `weft service add`
    #[arg(long, value_parser = values::check)]
    check: Option<String>,
    /// Processes of this user call as its service
    #[arg(long)]
    user: Option<String>,
    /// The command and what it is given
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Command {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        let spec = ServiceSpec {
            name: self.service.to_string(),
            instance: self.instance.as_ref().map(ToString::to_string),
            labels: self.label.into_iter().collect(),
            service_account: None,
            ports: self.port.into_iter().map(|(port, _)| port).collect(),
            check: self.check,
            unit: None,
            user: self.user,
            caller: None,
            weight: None,
            gateway: false,
            egress: false,
        };
        let failed = |error: std::io::Error| Stopped::failed(error.to_string());
        let mut signals =
            (signal(SignalKind::terminate()).map_err(failed)?, signal(SignalKind::interrupt()).map_err(failed)?);
        context.client.add_service(&spec).await?;
        let (program, rest) = self.command.split_first().ok_or_else(|| Stopped::usage("no command"))?;
        let child = Program::new(program).args(rest).spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                context.client.remove_service(&self.service, self.instance.as_ref()).await?;
                return Err(Stopped::failed(format!("{program}: {error}")));
            }
        };
        let only = Some(self.instance.unwrap_or_default());
        let ended = tokio::select! {
            biased;
            ended = child.wait() => ended,
            _ = signals.0.recv() => stop(context, (&self.service, only.as_ref()), &mut child, Signal::SIGTERM).await,
            _ = signals.1.recv() => stop(context, (&self.service, only.as_ref()), &mut child, Signal::SIGINT).await,
        };
        context.client.remove_service(&self.service, only.as_ref()).await?;
        let ended = ended.map_err(failed)?;
        Ok(Done { text: String::new(), code: code(ended) })
    }
}

/// Waits for calls under way, then tells the command to stop, and waits for its end.
async fn stop(
    context: &Context,
    (service, only): (&ServiceName, Option<&InstanceName>),
    child: &mut Child,
    signal: Signal,
) -> std::io::Result<ExitStatus> {
    tokio::select! {
        biased;
        ended = child.wait() => return ended,
        // Where the node does not answer nobody waits.
        _ = context.client.drain_service(service, only, DRAIN) => {}
    }
    if let Some(process) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // It may have ended just now.
        let _ = kill(Pid::from_raw(process), signal);
    }
    child.wait().await
}

/// The exit code of whoever runs a command: that of the command, or 128 and the signal that ended it, as shells have it.
fn code(ended: ExitStatus) -> u8 {
    let code = ended.code().or_else(|| ended.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_that_of_the_command() {
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(15)), 143);
    }
}
