//! How a node comes to be part of a mesh: as the command line says, or as `weft init` and `weft join` have left it.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Args, FromArgMatches};
use weft_proto::identity::{NodeName, TrustDomain};

use super::Stopped;
use super::kept::BEGIN;

/// Longest join line that is read from a file: 64 KiB.
const JOIN_LINE_LENGTH_MAX: u64 = 64 << 10;

/// How a node comes to be part of a mesh.
#[derive(Debug, Args)]
pub(super) struct Begin {
    /// Make a new mesh; the line with which other hosts join it is printed
    #[arg(long, conflicts_with_all = ["join", "join_file"])]
    pub(super) init: bool,
    /// Name of the new mesh
    #[arg(long, value_name = "NAME", requires = "init", default_value = crate::config::TRUST_DOMAIN)]
    pub(super) trust_domain: TrustDomain,
    /// In the new mesh, deny every call that no ALLOW policy covers
    #[arg(long, requires = "init")]
    pub(super) deny_by_default: bool,
    /// Join a mesh with the line that `weft token create` printed
    #[arg(long, value_name = "LINE", conflicts_with = "join_file")]
    pub(super) join: Option<String>,
    /// The same from a file, or from standard input with -, which other users of this host cannot see
    #[arg(long, value_name = "FILE")]
    pub(super) join_file: Option<PathBuf>,
    /// Name of a new node [default: the host name's first label]
    #[arg(long)]
    pub(super) name: Option<NodeName>,
}

impl Begin {
    pub(super) fn says_nothing(&self) -> bool {
        !self.init && self.join.is_none() && self.join_file.is_none() && self.name.is_none()
    }
}

impl Default for Begin {
    fn default() -> Self {
        Self {
            init: false,
            trust_domain: crate::config::TRUST_DOMAIN.parse().expect("a name"),
            deny_by_default: false,
            join: None,
            join_file: None,
            name: None,
        }
    }
}

pub(super) fn read_line(file: &Path) -> Result<String, Stopped> {
    let read = |mut from: Box<dyn Read>| {
        let mut text = String::new();
        from.by_ref().take(JOIN_LINE_LENGTH_MAX).read_to_string(&mut text).map(|_| text)
    };
    let text = if file.as_os_str() == "-" {
        read(Box::new(io::stdin()))
    } else {
        fs::File::open(file).and_then(|file| read(Box::new(file)))
    };
    text.map_err(|error| Stopped::failed(format!("--join-file {}: {error}", file.display())))
}

/// What was left to begin with; none where nothing was.
pub(super) fn read(data_dir: &Path) -> Result<Option<Begin>, Stopped> {
    let path = data_dir.join(BEGIN);
    let mut text = String::new();
    match fs::File::open(&path).and_then(|file| file.take(LENGTH_MAX).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Stopped::failed(format!("{}: {error}", path.display()))),
    }
    let command = Begin::augment_args(clap::Command::new("up").no_binary_name(true));
    let matches = command.try_get_matches_from(text.lines());
    let begin = matches.and_then(|matches| Begin::from_arg_matches(&matches));
    begin.map(Some).map_err(|error| Stopped::failed(format!("{}: {error}", path.display())))
}

/// Longest such file: 64 KiB.
const LENGTH_MAX: u64 = 64 << 10;
